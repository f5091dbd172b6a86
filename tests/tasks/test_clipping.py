"""Gradients are clipped alike with a fused optimiser and without, in every precision that has unscaled ones."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

from edgetrain.errors import UserError
from edgetrain.tasks.base import Task


def clipped(precision: Precision, fused: bool, value: float | None, algorithm: str | None = None) -> torch.Tensor:
    """The gradient [3, 4] after `configure_gradient_clipping`."""
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    task = Task(model, [], None, total_steps=1)
    task._trainer = SimpleNamespace(
        precision_plugin=precision, gradient_clip_val=value, gradient_clip_algorithm=algorithm, strategy=None
    )
    task.configure_gradient_clipping(optimizer, value, algorithm)
    return model.weight.grad[0]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", [Precision(), MixedPrecision("bf16-mixed", "cpu")])
def test_the_norm_of_3_and_4_is_clipped_from_5_to_1(precision: Precision, fused: bool) -> None:
    torch.testing.assert_close(clipped(precision, fused, 1.0), torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(clipped(precision, fused, 6.0), torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(clipped(precision, fused, 3.5, "value"), torch.tensor([3.0, 3.5]))
    torch.testing.assert_close(clipped(precision, fused, None), torch.tensor([3.0, 4.0]))


def test_scaled_gradients_of_a_fused_optimizer_are_refused_in_a_sentence() -> None:
    scaled = MixedPrecision("16-mixed", "cpu")
    with pytest.raises(UserError, match=r"trainer\.precision=16-mixed .* set optimizer\.fused=false"):
        clipped(scaled, True, 1.0)
    torch.testing.assert_close(clipped(scaled, False, 1.0), torch.tensor([0.6, 0.8]))
