"""One pass over held-out images: what is counted of each, and those that are kept to be looked at."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetrain.errors import UserError
from edgetrain.ops.boundary import boundary_f
from edgetrain.tasks.mask_predictions import MaskPredictions, weighted

CHOSEN = 12  # images that are shown whatever is predicted
WORST = 3  # and those with the lowest mean IoU
DRAWS = 1000  # of the bootstrap


@dataclass
class Picture:
    """An image uint8 [3, h, w] at the size of its labels, and what is true and predicted there: int64 [h, w]."""

    image: Tensor
    truth: Tensor
    predicted: Tensor


@dataclass
class Judged:
    """Of every image, in order. outlines: boundary F of each class, float64 [n, classes]; pictures: by place."""

    predictions: MaskPredictions
    outlines: Tensor
    pictures: dict[int, Picture] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def mean_boundary_f(self) -> float:
        """Mean over the classes of each image that have an outline, then over the images that have one."""
        return self.outlines.nanmean(1).nanmean().item()


def judged(
    task: Any, predict: Callable[[Tensor], Tensor], data: Any, split: str, pictures_kept: bool = False
) -> Judged:
    """What `predict` says of a split, validation or test; pictures_kept: of twelve chosen and of the three worst.

    Raises UserError when its loader gives another number of images than it has, or no pixel counts.
    """
    images = len(data.splits[split].items)
    chosen = chosen_places(images if pictures_kept else 0)
    parts: list[MaskPredictions] = []
    outlines: list[Tensor] = []
    pictures: dict[int, Picture] = {}
    worst: dict[int, float] = {}  # mean IoU of the worst so far, the worst first
    for inputs, labels in data.val_dataloader() if split == "validation" else data.test_dataloader():
        with torch.inference_mode():
            logits = task.inference.logits(predict, inputs, labels.shape[1:])
            parts.append(MaskPredictions.of_logits(logits, labels, task.ignore_index))
            masks = logits.argmax(1)  # [n, h, w]
        outlines += [boundary_f(*pair, logits.shape[1], task.ignore_index) for pair in zip(labels, masks, strict=True)]
        if not pictures_kept:
            continue
        shown = data.denormalised(inputs)
        for number, score in enumerate(per_image_iou(parts[-1]).tolist()):
            place = len(outlines) - len(labels) + number
            if score == score:
                worst = dict(sorted((worst | {place: score}).items(), key=lambda item: item[1])[:WORST])
            if place in chosen or place in worst:
                pictures[place] = Picture(sized(shown[number], labels.shape[1:]), labels[number], masks[number])
        pictures = {place: each for place, each in pictures.items() if place in chosen or place in worst}
    if len(outlines) != images:
        raise UserError(
            f"the {split} split gave {len(outlines)} images and not {images}; its loader and `splits` disagree"
        )
    predictions = MaskPredictions.joined(parts)
    task.score(predictions)
    return Judged(predictions, torch.stack(outlines), pictures)


def sized(image: Tensor, size: torch.Size) -> Tensor:
    """uint8 [3, h, w] at another height and width."""
    if image.shape[1:] == size:
        return image
    resized = F.interpolate(image[None].float(), tuple(size), mode="bilinear", antialias=True)[0]
    return resized.round().clamp(0, 255).byte()


def chosen_places(images: int, number: int = CHOSEN) -> list[int]:
    """The middles of as many equal parts of the split: a function of its length alone, known before any training."""
    number = min(number, images)
    return [(2 * part + 1) * images // (2 * number) for part in range(number)]


def worst_places(predictions: MaskPredictions, number: int = WORST) -> list[int]:
    """The images with the lowest mean IoU, the worst first; those without a counted pixel are none of them."""
    scores = per_image_iou(predictions)
    order = scores.nan_to_num(torch.inf).argsort(stable=True)
    return [place for place in order.tolist() if not scores[place].isnan()][:number]


def per_image_iou(predictions: MaskPredictions) -> Tensor:
    """Mean IoU of each image over the classes that are there or predicted: float64 [n], nan without counted pixels."""
    return predictions.areas().mean_iou()


def mean_iou_interval(predictions: MaskPredictions, seed: int, draws: int = DRAWS) -> tuple[float, float]:
    """The 95% percentile-bootstrap interval of the mean IoU (Efron 1979): images drawn with replacement."""
    n = len(predictions)
    drawn = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(draws, n, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
    means = weighted(predictions.areas(), times).mean_iou()
    low, high = means.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
