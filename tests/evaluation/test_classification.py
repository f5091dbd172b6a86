"""Accuracy by label and group on answers that were chosen by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.evaluation.classification import Classification, confusion
from edgetrain.folder import RunFolder
from edgetrain.models.quantized import QuantizedModel, Scheme
from edgetrain.tasks.classify import Classify
from edgetrain.tasks.predictions import Predictions

TARGETS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
FLOAT = [0, 0, 1, 1, 1, 2, 2, 2, 0, 2]  # wrong at 2 and 8
INT8 = [0, 0, 0, 0, 0, 2, 2, 2, 0, 1]  # wrong at 3, 4, 8, 9
SPEAKERS = ["ann", "bob"] * 5


class Answers(nn.Module):
    """Logits of given answers; an input is the item's number."""

    def __init__(self, answers: list[int]) -> None:
        super().__init__()
        self.answers = torch.tensor(answers)

    def forward(self, x: Tensor) -> Tensor:
        return 5.0 * nn.functional.one_hot(self.answers[x.long().flatten()], 3).float()


class Data:
    labels = ("yes", "no", "unknown")

    def setup(self, stage: str) -> None:
        assert stage == "test"

    def test_dataloader(self) -> list[tuple[Tensor, Tensor]]:
        items = torch.arange(10.0)[:, None]
        return list(zip(items.split(4), TARGETS.split(4), strict=True))

    def groups(self, split: str) -> dict[str, list[str]]:
        assert split == "test"
        return {"speaker": SPEAKERS}

    def facts(self) -> dict[str, float]:
        return {"majority": 0.3}


def measured(model: nn.Module, path: Path, data: Any = None) -> tuple[dict[str, float], RunFolder]:
    folder = RunFolder(path)
    task = Classify(model, [], None, total_steps=1)
    return Classification().measure(SimpleNamespace(model=model, task=task, data=data or Data()), folder), folder


def test_a_float_model_stands_beside_chance_and_majority(tmp_path: Path) -> None:
    metrics, folder = measured(Answers(FLOAT), tmp_path)
    assert metrics["classification/accuracy"] == 0.8
    assert metrics["classification/chance"] == pytest.approx(1 / 3)
    assert metrics["classification/majority"] == 0.3
    assert "classification/speaker_worst" not in metrics  # two groups of five
    assert "classification/lost" not in metrics
    rows = folder.read_table("classification")
    assert [(row["model"], float(row["accuracy"])) for row in rows] == [
        ("chance", pytest.approx(1 / 3)),
        ("majority", 0.3),
        ("float", 0.8),
    ]
    loss = -torch.tensor([5.0, 0.0, 0.0]).log_softmax(0)
    assert float(rows[-1]["loss"]) == pytest.approx(0.8 * loss[0].item() + 0.2 * loss[1].item(), rel=1e-5)


def test_labels_and_groups_are_counted_item_by_item(tmp_path: Path) -> None:
    _, folder = measured(Answers(FLOAT), tmp_path)
    by_label = folder.read_table("classification_labels")
    assert [(row["value"], int(row["n"]), float(row["accuracy"])) for row in by_label] == [
        ("yes", 3, pytest.approx(2 / 3)),
        ("no", 2, 1.0),
        ("unknown", 5, 0.8),
    ]
    by_speaker = folder.read_table("classification_speaker")
    assert [(row["value"], float(row["accuracy"])) for row in by_speaker] == [("ann", 0.6), ("bob", 1.0)]


def test_a_quantised_model_is_paired_with_its_float_network(tmp_path: Path) -> None:
    """Only float right: 3, 4, 9; only int8 right: 2. p = 2 (1 + 4) / 16."""
    model = QuantizedModel(Answers(FLOAT), Answers(INT8), Scheme("int8", 0.1))
    metrics, folder = measured(model, tmp_path)
    assert metrics["classification/accuracy"] == 0.6
    assert metrics["classification/float_accuracy"] == 0.8
    assert metrics["classification/lost"] == pytest.approx(0.2)
    assert metrics["classification/differs"] == 4
    assert metrics["classification/p"] == 10 / 16
    binomtest = pytest.importorskip("scipy.stats").binomtest
    only_float, only_int8 = (binomtest(count, 10).proportion_ci(0.975) for count in (3, 1))
    assert metrics["classification/lost_low"] == pytest.approx(only_float.low - only_int8.high, abs=1e-6)
    assert metrics["classification/lost_high"] == pytest.approx(only_float.high - only_int8.low, abs=1e-6)
    rows = folder.read_table("classification")
    assert [row["model"] for row in rows] == ["chance", "majority", "float", "int8"]
    assert float(rows[-1]["change"]) == pytest.approx(-0.2)
    assert folder.read_table("classification_labels")[1]["accuracy"] == "0.0"  # of the quantised model: no is never no


def test_confusions_have_the_label_in_the_row() -> None:
    judged = Predictions(TARGETS, torch.tensor(FLOAT), torch.zeros(10))
    assert confusion(judged, 3).tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 4]]


def test_the_worst_group_is_one_of_at_least_thirty_items_that_have_a_speaker(tmp_path: Path) -> None:
    """ann 27 of 30 right, bob 0 of 2, silence (nobody's) 0 of 40."""
    data = Data()
    right = [True] * 27 + [False] * 3 + [False] * 42
    items = torch.arange(72.0)[:, None]
    data.test_dataloader = lambda: [(items, torch.zeros(72, dtype=torch.long))]
    data.groups = lambda split: {"speaker": ["ann"] * 30 + ["bob"] * 2 + [""] * 40}
    metrics, folder = measured(Answers([0 if each else 1 for each in right]), tmp_path, data)
    assert metrics["classification/speaker_worst"] == pytest.approx(0.9)
    assert [row["value"] for row in folder.read_table("classification_speaker")] == ["ann", "bob"]


@pytest.mark.parametrize("outside", [3, -1])
def test_an_answer_that_is_no_label_is_in_no_cell_of_the_confusions(outside: int) -> None:
    judged = Predictions(torch.tensor([1, 0]), torch.tensor([0, outside]), torch.zeros(2))
    with pytest.raises(UserError, match=f"the model answers class {outside}, but data.labels are 3"):
        confusion(judged, 3)


def test_data_without_labels_or_with_other_groups_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs data with labels"):
        measured(Answers(FLOAT), tmp_path, SimpleNamespace())
    data = Data()
    data.groups = lambda split: {"speaker": SPEAKERS[:9]}
    with pytest.raises(UserError, match="9 groups for 10 test items"):
        measured(Answers(FLOAT), tmp_path, data)
