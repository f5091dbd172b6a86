"""Mean and standard deviation of an image's channels, which a network's inputs are normalised with."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgetrain.errors import UserError

Moments = tuple[list[float], list[float]]  # mean and standard deviation, a number a channel, of pixels in [0, 1]


def check_given(mean: list[float] | None, std: list[float] | None, channels: int) -> None:
    """Raises UserError for numbers that nothing can be normalised with; None stands for what is computed."""
    for key, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) != channels:
            raise UserError(f"data.{key}={given} has {len(given)} numbers for data.channels={channels}")
        if given is not None and not all(map(math.isfinite, given)):
            raise UserError(f"data.{key}={given} has to hold finite numbers; null computes them from train")
    if std is not None and min(std) <= 0:
        raise UserError(f"data.std={std} is divided by; every number of it is above 0")


def statistics(
    mean: list[float] | None, std: list[float] | None, compute: Callable[[], Moments], path: str
) -> tuple[Tensor, Tensor]:
    """mean and std, float32 [channels, 1, 1]: as given, else as computed.

    Raises UserError when a channel has one value only.
    """
    if mean is None or std is None:
        computed = compute()
        mean, std = mean or computed[0], std or computed[1]
    if min(std) == 0:
        raise UserError(
            f"channel {std.index(0)} of data.path={path} is the same everywhere in train; "
            "give data.std, or another data.channels"
        )
    return torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
