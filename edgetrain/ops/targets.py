"""What a batch asks a language model to predict, and where.

int64 [batch, n + 1]   text: every token is the target of the one before it
int64 [batch, 2, n]    inputs and targets apart; a target is IGNORED where nothing is asked (a prompt, padding)
"""

import torch
from torch import Tensor

IGNORED = -100  # what torch's cross-entropy leaves out by itself


def inputs_and_targets(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Both int64 [batch, n]."""
    if batch.ndim == 3:
        inputs, targets = batch.unbind(1)
        return inputs, targets
    return batch[:, :-1], batch[:, 1:]


def supervised_rows(batch: Tensor) -> Tensor | None:
    """Positions in the flattened targets that are not IGNORED, int64 [rows]; None for text, where that is all of them.

    Text is not looked at, so nothing waits for the device there.
    """
    return torch.nonzero(batch[:, 1].flatten() != IGNORED)[:, 0] if batch.ndim == 3 else None


def flat_rows(values: Tensor, rows: Tensor | None) -> Tensor:
    """values [batch, n, ...] as [batch * n, ...], or only those rows of it."""
    flat = values.flatten(0, 1)
    return flat if rows is None else flat[rows]
