"""What every fit logs."""

from collections.abc import Callable
from pathlib import Path

import torch
from conftest import SMALL

from edgetrain.folder import RunFolder

Call = Callable[..., tuple[int, str, str]]


def test_the_tokens_trained_on_are_counted_through_a_resume(edgetrain: Call, workplace: Path) -> None:
    """A batch is 4 samples of 32 tokens, two batches a step; validation every second batch."""
    changes = ["trainer.val_check_interval=2", "trainer.accumulate_grad_batches=2", "measure=[]", "export=[]"]
    run = ["recipe=layerskip_llama", *SMALL, *changes, "task.exit_layers=[1,4]", "logger=[csv]"]
    assert edgetrain(*run, "trainer.max_steps=2", "out=run")[0] == 0
    code, _, err = edgetrain("resume=run", "trainer.max_steps=5")
    assert code == 0, err
    validated = [values for _, values in RunFolder(workplace / "run").training_curves() if "validation/loss" in values]
    assert [values["tokens_trained"] for values in validated] == [256.0 * step for step in (1, 2, 3, 4, 5)]
    assert all("validation/loss_exit_1" in values for values in validated)
    last = torch.tensor([[values["validation/loss"], values["validation/loss_exit_4"]] for values in validated])
    torch.testing.assert_close(last[:, 0], last[:, 1])
