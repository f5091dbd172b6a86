"""Online hard example mining: train on the pixels that the model gets most wrong."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edgetrain.errors import UserError


@dataclass(frozen=True)
class HardExamples:
    """Online hard example mining (Shrivastava et al. 2016, arXiv 1604.03540) as in mmsegmentation's OHEMPixelSampler.

    Pixels count whose true class has a probability below `threshold`, and at least min_kept an image (of the batch as a
    whole), the hardest. Where a batch has fewer counted pixels than that, all do; mmsegmentation leaves out the
    easiest of them then. Raises UserError for numbers out of range.
    """

    threshold: float = 0.7
    min_kept: int = 100_000

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f"task.hard_examples.threshold={self.threshold} is a probability, above 0 and at most 1")
        if self.min_kept < 0:
            raise UserError(f"task.hard_examples.min_kept={self.min_kept} pixels an image cannot be below 0")

    def chosen(self, nats: Tensor, counted: Tensor) -> Tensor:
        """Which pixels count: bool, as `counted`. nats: -log of the true class's probability [n, h, w]."""
        found = nats.detach()[counted]
        hard = (-found).exp() < self.threshold
        least = min(self.min_kept * len(nats), len(found))
        if int(hard.sum()) < least:
            hard = torch.zeros_like(hard)
            hard[found.topk(least).indices] = True
        chosen = torch.zeros_like(counted)
        chosen[counted] = hard
        return chosen
