"""The measure beside the paper's table."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from edgetrain.errors import UserError
from edgetrain.evaluation.keyword_budget import KeywordBudget
from edgetrain.folder import RunFolder
from edgetrain.models.keyword import keyword


@pytest.mark.parametrize(
    ("family", "size", "frames", "memory_kb", "mops", "fits"),
    [
        ("ds_cnn", "s", 49, 38.6, 5.3855, ["yes", "yes", "yes"]),
        ("ds_cnn", "l", 49, 497.6, 56.9040, ["no", "no", "yes"]),
        ("dnn", "m", 25, 199.4, 0.397068, ["no", "yes", "yes"]),
    ],
)
def test_networks_stand_in_the_papers_classes(
    tmp_path: Path, family: str, size: str, frames: int, memory_kb: float, mops: float, fits: list[str]
) -> None:
    folder = RunFolder.create("x", str(tmp_path / "run"))
    trained = SimpleNamespace(model=keyword(family, size, frames=frames))
    metrics = KeywordBudget().measure(trained, folder)
    assert metrics["keyword_budget/memory_kb"] == pytest.approx(memory_kb, abs=0.1)
    assert metrics["keyword_budget/mops"] == pytest.approx(mops, rel=0.01)
    rows = folder.read_table("keyword_budget")
    assert [row["class"] for row in rows] == ["small", "medium", "large"]
    assert [row["fits"] for row in rows] == fits


def test_another_model_is_refused_before_training() -> None:
    with pytest.raises(UserError, match=r"counts keyword networks, not Linear; hardware=\[cortex_m7\]"):
        KeywordBudget().check(nn.Linear(2, 2))
