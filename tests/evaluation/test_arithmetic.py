"""A trained network judged in whole numbers: against the network itself, answer by answer."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from edgetrain.errors import UserError
from edgetrain.evaluation.arithmetic import evaluate_in
from edgetrain.methods.lowering import lower
from edgetrain.methods.quantize import post_training
from edgetrain.tasks.classify import Classify

pytest.importorskip("executorch")


class Data:
    """Points of a plane, labelled by their quadrant."""

    def __init__(self) -> None:
        self.points = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
        self.labels = ((self.points[:, 0] > 0).long() * 2 + (self.points[:, 1] > 0)).long()

    def setup(self, stage: str) -> None:
        assert stage == "test"

    def samples(self, split: str) -> list[tuple[Tensor, Tensor]]:
        assert split == "train"
        return list(zip(self.points, self.labels, strict=True))

    def test_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.points, self.labels), batch_size=32)


def trained() -> Any:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 4))
    network.input_shape = (2,)
    data = Data()
    optimizer = torch.optim.Adam(network.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(data.points), data.labels).backward()
        optimizer.step()
    return SimpleNamespace(model=network, task=Classify(network, [], None, total_steps=1), data=data)


@pytest.mark.parametrize("arithmetic", ["int8", "q7"])
@torch.no_grad()
def test_figures_are_those_of_the_whole_numbers(arithmetic: str) -> None:
    with torch.enable_grad():
        run = trained()
    metrics = evaluate_in(run, arithmetic)
    assert set(metrics) == {"test/loss", "test/accuracy", "test/differs"}
    if arithmetic == "int8":
        example = (torch.zeros(1, 2),)
        logits = lower(post_training(run.model, example, run.data), example)(run.data.points)
        answers = logits.argmax(-1)
        assert metrics["test/accuracy"] == pytest.approx((answers == run.data.labels).double().mean().item())
        assert metrics["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, run.data.labels).item())
        assert metrics["test/differs"] == int((answers != run.model(run.data.points).argmax(-1)).sum())
    assert metrics["test/accuracy"] > 0.8


def test_a_run_that_is_quantised_already_is_not_quantised_again() -> None:
    run = trained()
    run.model = post_training(run.model, (torch.zeros(1, 2),), run.data, bits=3)
    run.task.model = run.model
    metrics = evaluate_in(run, "int8")
    with torch.no_grad():
        logits = lower(run.model, (torch.zeros(1, 2),))(run.data.points)
    assert metrics["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, run.data.labels).item())


def test_another_arithmetic_is_one_sentence() -> None:
    with pytest.raises(UserError, match="arithmetic=int4 is not known; there is int8, q7") as error:
        evaluate_in(SimpleNamespace(), "int4")
    assert "\n" not in str(error.value)
