"""Cross-entropy of label maps whose scores are smaller than the labels, without scores of the labels' size in memory.

A head scores every fourth pixel; resized to the labels, 150 classes of a 512 x 512 image are 157 MB, of which a plain
loss holds several copies until the backward pass. Here the rows are done band by band: a band is resized, its loss and
the gradient of its scores computed while it is in the cache, and resized back. What stays is the gradient of the small
scores.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgetrain.ops.hard_examples import HardExamples

BAND = {"cpu": 2**20}  # scores of a band: what a core's cache takes
BAND_ELSEWHERE = 2**26  # what keeps a GPU busy


def resized_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    ignore_index: int,
    class_weights: Tensor | None = None,
    hard_examples: HardExamples | None = None,
) -> Tensor:
    """Mean nats of the pixels that count, at least in float32; 0, with a gradient of 0, where none does.

    scores [n, classes, h, w], resized to the labels int64 [n, H, W] as F.interpolate does it (bilinear, align_corners
    false); a label is a class or ignore_index. class_weights: float [classes], then the mean is the weighted one, as
    torch has it. Differentiable once.
    """
    counted = labels != ignore_index
    labels = labels.masked_fill(~counted, 0)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    with torch.autocast(scores.device.type, enabled=False):
        if hard_examples is not None:
            bands = Bands(scores, labels)
            nats = torch.cat([bands.softmax(band).nats for band in bands], 1)
            counted = hard_examples.chosen(nats, counted)
        weights = counted.to(scores.dtype)
        if class_weights is not None:
            weights = weights * class_weights[labels]
        total = weights.sum()
        return WeightedNats.apply(scores, labels, weights / torch.where(total > 0, total, 1.0))


class WeightedNats(torch.autograd.Function):
    """Sum over the pixels of weight times nats, its gradient computed on the way."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        bands = Bands(scores, labels)
        total, gradient = scores.new_zeros(()), torch.zeros_like(scores) if wanted else None
        for band in bands:
            softmax = bands.softmax(band)
            total += (softmax.nats * weights[:, band]).sum()
            if gradient is not None:
                bands.add_back(gradient, softmax.gradient(weights[:, band]), band)
        if wanted:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        return above * ctx.saved_tensors[0], None, None


class Softmax:
    """nats [n, h, w] of the labels int64 [n, h, w], and what the gradient needs; overwrites logits [n, c, h, w]."""

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        self.labels = labels[:, None]
        logits -= logits.amax(1, keepdim=True)
        true = logits.gather(1, self.labels)
        self.terms = logits.exp_()
        self.sum = self.terms.sum(1, keepdim=True)
        self.nats = (self.sum.log() - true)[:, 0]

    def gradient(self, weights: Tensor) -> Tensor:
        """Of the sum of weights [n, h, w] times nats, by the logits; in place of the terms."""
        weights = weights[:, None]
        return self.terms.mul_(weights / self.sum).scatter_add_(1, self.labels, -weights)


class Bands:
    """Bands of rows of the labels; for each, the scores resized to it and gradients brought back."""

    def __init__(self, scores: Tensor, labels: Tensor) -> None:
        (batch, classes, self.height, width), (self.rows, columns) = scores.shape, labels.shape[1:]
        self.scores, self.labels = scores.detach(), labels
        self.down, self.across = shares(self.height, self.rows, scores), shares(width, columns, scores)
        room = BAND.get(scores.device.type, BAND_ELSEWHERE)
        self.step = max(1, room // max(1, batch * classes * columns))

    def __iter__(self) -> Iterator[slice]:
        for start in range(0, self.rows, self.step):
            yield slice(start, min(start + self.step, self.rows))

    def sources(self, band: slice) -> slice:
        """Rows of the scores that those of the band are made of."""
        first, last = (max(0, int((row + 0.5) * self.height / self.rows - 0.5)) for row in (band.start, band.stop - 1))
        return slice(first, min(last + 2, self.height))

    def softmax(self, band: slice) -> Softmax:
        """Of the scores resized to the band [n, classes, rows of the band, columns]."""
        sources = self.sources(band)
        resized = self.down[band, sources] @ (self.scores[:, :, sources] @ self.across.T)
        return Softmax(resized, self.labels[:, band])

    def add_back(self, total: Tensor, gradient: Tensor, band: slice) -> None:
        """To the gradient of the scores, that of a band."""
        sources = self.sources(band)
        total[:, :, sources] += self.down[band, sources].T @ gradient @ self.across


def shares(small: int, large: int, like: Tensor) -> Tensor:
    """[large, small]: of what each of `large` resized places is made, bilinear, align_corners false."""
    places = ((torch.arange(large, dtype=torch.float64) + 0.5) * (small / large) - 0.5).clamp(min=0)
    first = places.long()
    beyond = (places - first)[:, None]
    matrix = torch.zeros(large, small, dtype=torch.float64)
    matrix.scatter_(1, first[:, None], 1 - beyond)
    return matrix.scatter_add_(1, (first + 1).clamp(max=small - 1)[:, None], beyond).to(like)
