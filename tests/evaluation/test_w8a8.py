"""The measure `w8a8` against the two models judged one by one."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetrain.errors import UserError
from edgetrain.evaluation.w8a8 import W8A8
from edgetrain.folder import RunFolder
from edgetrain.methods.w8a8 import quantize_w8a8


@pytest.mark.parametrize("head", [False, True])
def test_the_difference_is_that_of_two_evaluations(loaded: Any, tmp_path: Path, head: bool) -> None:
    metrics = W8A8(batches=2, head=head).measure(loaded, RunFolder(tmp_path))
    losses = [
        loaded.task.evaluate(model, islice(loaded.data.test_dataloader(), 2))
        for model in (loaded.model, quantize_w8a8(loaded.model, head))
    ]
    assert metrics["w8a8/loss"] == pytest.approx(losses[1]["loss"], rel=1e-5)
    assert metrics["w8a8/loss_difference"] == pytest.approx(losses[1]["loss"] - losses[0]["loss"], abs=1e-5)
    assert metrics["w8a8/accuracy_difference"] == pytest.approx(losses[1]["accuracy"] - losses[0]["accuracy"], abs=1e-6)
    table = RunFolder(tmp_path).read_table("w8a8")
    assert [int(row["layer"]) for row in table] == [1, 2, 3, 4]
    assert all(abs(float(row["loss_difference"])) < 0.05 for row in table)
    assert any(float(row["loss_difference"]) != 0 for row in table)
    assert (tmp_path / "figures" / "w8a8.png").is_file()


def test_the_model_that_is_measured_stays_as_it_was(loaded: Any, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    W8A8(batches=1).measure(loaded, RunFolder(tmp_path))
    after = loaded.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_no_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"measure\.w8a8\.batches=0"):
        W8A8(batches=0)
