"""The learning rate that a run's own batch asks for."""

from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import nn

from edgetrain.errors import UserError
from edgetrain.tasks.base import Task


def task_with(lr: float, lr_samples: int | None, batch: int, processes: int, accumulated: int) -> Task:
    def optimizer(groups: list) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=lr)

    task = Task(nn.Linear(2, 2), [], optimizer, total_steps=480_000, warmup_steps=1000, lr_samples=lr_samples)
    task._trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=batch), world_size=processes, accumulate_grad_batches=accumulated
    )
    return task


@pytest.mark.parametrize(
    ("lr_samples", "batch", "processes", "accumulated", "peak"),
    [
        (1024, 32, 32, 1, 2e-3),  # MobileLLM's paper: 32 GPUs of 32 sequences
        (1024, 32, 8, 1, 5e-4),  # its repository's script: 8 of them
        (1024, 32, 8, 4, 2e-3),
        (1024, 8, 1, 1, 1.5625e-5),
        (256, 32, 8, 1, 2e-3),
        (None, 32, 8, 1, 2e-3),
    ],
)
def test_mobilellms_learning_rate_scales_with_the_samples_of_a_step(
    lr_samples: int | None, batch: int, processes: int, accumulated: int, peak: float
) -> None:
    """And the schedule with it: a thousandth of the peak at first, the peak at 999, a tenth at the end."""
    configured = task_with(2e-3, lr_samples, batch, processes, accumulated).configure_optimizers()
    scheduler = configured["lr_scheduler"]["scheduler"]
    for group, function in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        assert group["initial_lr"] * function(999) == pytest.approx(peak)
        assert group["initial_lr"] * function(480_000) == pytest.approx(0.1 * peak)
        assert group["lr"] == pytest.approx(peak / 1000)


def test_without_a_trainer_the_rate_stands() -> None:
    task = task_with(2e-3, 1024, 32, 8, 1)
    task._trainer = None
    assert task.configure_optimizers()["optimizer"].param_groups[0]["initial_lr"] == 2e-3


def test_no_samples_a_step_are_refused() -> None:
    with pytest.raises(UserError, match="task.lr_samples=0 must be at least 1, or null"):
        task_with(2e-3, 0, 32, 8, 1)


def test_no_gradient_is_held_through_a_forward_pass_unless_they_accumulate() -> None:
    """Two batches a step: the first begins without gradients, the second with those of the first."""
    held = []

    class Squares(Task):
        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            held.append(self.model.weight.grad is not None)
            return self.model(batch).square().mean()

    task = Squares(nn.Linear(2, 2), [], lambda groups: torch.optim.SGD(groups, lr=0.1), total_steps=3)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=3, accumulate_grad_batches=2, enable_model_summary=False, **quiet)
    trainer.fit(task, torch.utils.data.DataLoader(torch.ones(12, 2), batch_size=2))
    assert held == [False, True] * 3
