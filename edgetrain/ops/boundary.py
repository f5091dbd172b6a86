"""How well a label map follows the outlines of the true one: the boundary F-measure of Csurka et al. 2013.

"What is a good evaluation measure for semantic segmentation?", BMVC 2013, section 3. For each class: precision is the
share of the predicted outline's pixels that have a pixel of the true outline within a distance, recall the reverse, and
F their harmonic mean. The distance is 0.75% of the image's diagonal (MATLAB's bfscore has the same default).

The outline of a class is its pixels beside (above, below, left or right of) a pixel of another class. The image's edge
is no outline, and neither is the edge of what is not counted, in either map: nobody knows what is on its other side.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 0.0075  # of the diagonal

NOWHERE = -1  # in a map of outlines


def outlines(labels: Tensor, counted: Tensor) -> Tensor:
    """The class of each outline pixel, and -1 elsewhere: int64 [h, w]. labels: int64, counted: bool, both [h, w]."""
    found = torch.zeros_like(counted)
    for one, other in (((slice(1, None),), (slice(None, -1),)), ((..., slice(1, None)), (..., slice(None, -1)))):
        differ = (labels[one] != labels[other]) & counted[one] & counted[other]
        found[one] |= differ
        found[other] |= differ
    return labels.masked_fill(~found, NOWHERE)


def offsets_within(distance: float) -> Tensor:
    """Every (rows, columns) no longer than the distance in pixels, the shortest first: int64 [k, 2]."""
    reach = torch.arange(-math.floor(distance), math.floor(distance) + 1)
    pairs = torch.cartesian_prod(reach, reach)
    lengths = pairs.square().sum(1)
    pairs = pairs[lengths <= distance**2]
    return pairs[pairs.square().sum(1).argsort(stable=True)]


def near(outline: Tensor, other: Tensor, classes: int, distance: float) -> tuple[Tensor, Tensor]:
    """Pixels of each class's outline, and how many of them have one of the same class in `other` within the distance.

    outline, other: as `outlines` gives them, [h, w]. Returns int64 [classes] twice.
    """
    offsets = offsets_within(distance)
    reach = int(offsets.max())
    around = F.pad(other, (reach,) * 4, value=NOWHERE)
    stride = around.shape[1]
    around = around.flatten()
    rows, columns = (outline != NOWHERE).nonzero(as_tuple=True)
    label = outline[rows, columns]
    places = (rows + reach) * stride + columns + reach  # of what was not found yet, in `around`
    missed = label
    for down, right in offsets.tolist():  # most are found within a pixel or two
        kept = around[places + (down * stride + right)] != missed
        places, missed = places[kept], missed[kept]
        if not len(missed):
            break
    total = label.bincount(minlength=classes)
    return total, total - missed.bincount(minlength=classes)


def boundary_f(truth: Tensor, predicted: Tensor, classes: int, ignored: int, tolerance: float = TOLERANCE) -> Tensor:
    """F of each class in one image: float64 [classes], nan where neither map has an outline of the class.

    truth, predicted: int64 [h, w]; pixels whose truth is `ignored` are not counted. tolerance: of the diagonal.
    """
    counted = truth != ignored
    distance = tolerance * math.hypot(*truth.shape)
    real, said = outlines(truth, counted), outlines(predicted, counted)
    real_total, real_near = near(real, said, classes, distance)
    said_total, said_near = near(said, real, classes, distance)
    recall = real_near / real_total.clamp(min=1).double()
    precision = said_near / said_total.clamp(min=1).double()
    both = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(real_total + said_total > 0, both, torch.nan)
