"""Cross-entropy of label maps: pixels that do not count, classes that weigh more, and only the hardest pixels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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


def pixel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    class_weights: Tensor | None = None,
    hard_examples: HardExamples | None = None,
) -> Tensor:
    """Mean nats of the pixels that count, in float32; 0, with a gradient of 0, where none does.

    logits [n, classes, h, w], labels int64 [n, h, w] of classes or ignore_index; class_weights: float32 [classes], then
    the mean is the weighted one, as torch has it.
    """
    counted = labels != ignore_index
    nats = F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="none")  # 0 where not counted
    if hard_examples is not None:
        counted = hard_examples.chosen(nats, counted)
    weights = counted.float()
    if class_weights is not None:
        weights = weights * class_weights[labels.masked_fill(~counted, 0)]
    total = weights.sum()
    return (nats * weights).sum() / torch.where(total > 0, total, 1.0)
