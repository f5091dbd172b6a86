"""Mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899) of a batch.

Every item is mixed with the one before it in the batch, by one share for all, as torchvision's transforms do; timm's
pairs items from both ends. What is drawn is a function of `seeds` alone.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mixed_inputs(
    inputs: Tensor, mixup: float, cutmix: float, switch: float, seeds: Sequence[int]
) -> tuple[Tensor, float]:
    """The inputs mixed, and the share that each item has in what became of it; the rest is the item's before it.

    inputs [batch, ...], for cutmix [batch, channels, height, width]. mixup, cutmix: alpha of the Beta distribution that
    the share is drawn from, 0 leaves that kind out; switch: how often it is cutmix where there are both. seeds: numbers
    from 0 up that name the batch.
    """
    draws = np.random.default_rng(list(seeds))
    cuts = cutmix > 0 and (mixup == 0 or draws.random() < switch)
    alpha = cutmix if cuts else mixup
    share = float(draws.beta(alpha, alpha))
    others = inputs.roll(1, 0)
    if not cuts:
        return share * inputs + (1 - share) * others, share
    height, width = inputs.shape[-2:]
    top, bottom, left, right = box(share, height, width, draws)
    mixed = inputs.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)  # what the image's edges have left of it


def mixed_labels(labels: Tensor, share: float, classes: int) -> Tensor:
    """Shares of classes, float32 [batch, classes], of labels int64 [batch] that were mixed as their inputs."""
    own = F.one_hot(labels, classes).to(torch.float32)
    return share * own + (1 - share) * own.roll(1, 0)


def box(share: float, height: int, width: int, draws: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of what is replaced: 1 - share of the image around a pixel of it, cut at its edges."""
    column, row = int(draws.integers(width)), int(draws.integers(height))
    side = 0.5 * math.sqrt(1 - share)
    half_height, half_width = int(side * height), int(side * width)
    return (
        max(0, row - half_height),
        min(height, row + half_height),
        max(0, column - half_width),
        min(width, column + half_width),
    )
