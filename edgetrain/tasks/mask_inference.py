"""From a network of images to the logits of a whole label map: at once or by windows, at several scales, mirrored too.

The windows are those of mmsegmentation's `slide_inference`, scales and mirroring its `aug_test`.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetrain.errors import UserError
from edgetrain.tasks.predictions import logits_of

Predict = Callable[..., Any]


@dataclass(frozen=True)
class MaskInference:
    """How label maps are predicted: Segment's arguments of the same names. Raises UserError for those out of range."""

    mode: Literal["whole", "slide"] = "whole"
    window: Sequence[int] | None = None
    stride: Sequence[int] | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.mode == "slide":
            for key in ("window", "stride"):
                value = getattr(self, key)
                if value is None or len(value) != 2 or min(value) < 1:
                    raise UserError(f"task.{key}={value} must be height and width of at least 1, as [512, 512]")
            if any(step > side for step, side in zip(self.stride, self.window, strict=True)):
                raise UserError(
                    f"task.stride={list(self.stride)} is longer than task.window={list(self.window)} and would leave "
                    "pixels between the windows out; make it as long at most"
                )
        elif self.window is not None or self.stride is not None:
            raise UserError("task.window and task.stride are for task.mode=slide; set that, or leave them null")
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise UserError(f"task.scales={list(self.scales)} must list numbers above 0, as [1.0]")

    def logits(self, predict: Predict, images: Tensor, size: Sequence[int]) -> Tensor:
        """float32 [n, classes, *size]. images [n, channels, h, w].

        Of several views (scales, mirrored) it is the logarithm of their mean probabilities.
        """
        mirrored = (False, True) if self.flip else (False,)
        views = list(itertools.product(self.scales, mirrored))
        if len(views) == 1:
            return self.view(predict, images, size, *views[0])
        total: Tensor | float = 0.0
        for scale, flipped in views:
            total = total + self.view(predict, images, size, scale, flipped).softmax(1)
        return (total / len(views)).clamp(min=torch.finfo(torch.float32).tiny).log()

    def view(self, predict: Predict, images: Tensor, size: Sequence[int], scale: float, flipped: bool) -> Tensor:
        """Logits [n, classes, *size] of the images at a scale; flipped: of their mirror images, mirrored back."""
        sides = [max(1, int(side * scale + 0.5)) for side in images.shape[2:]]  # as mmcv rounds
        images = resized(images, sides)
        logits = self.maps(predict, images.flip(-1) if flipped else images)
        return resized(logits.flip(-1) if flipped else logits, size)

    def maps(self, predict: Predict, images: Tensor) -> Tensor:
        """Logits at the images' size: float32 [n, classes, h, w]"""
        if self.mode == "whole":
            return full_size(predict, images)
        total: Tensor | None = None
        count = torch.zeros(images.shape[2:], device=images.device)
        for place in windows(images.shape[2:], self.window, self.stride):
            logits = full_size(predict, images[:, :, *place])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *images.shape[2:])
                count = count.to(logits.device)
            total[:, :, *place] += logits
            count[place] += 1
        return total / count


def windows(size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each window; the last of a side is moved back inside. A side may be below the window's."""
    starts = []
    for side, length, step in zip(size, window, stride, strict=True):
        count = max(side - length + step - 1, 0) // step + 1
        starts.append([max(min(index * step + length, side) - length, 0) for index in range(count)])
    for top, left in itertools.product(*starts):
        yield slice(top, min(top + window[0], size[0])), slice(left, min(left + window[1], size[1]))


def full_size(predict: Predict, images: Tensor) -> Tensor:
    """Logits of every pixel of the images, in float32, whatever the resolution that the model gives them at.

    Raises UserError when it gives no maps.
    """
    logits = logits_of(predict(images))
    check_maps(logits, images)
    return resized(logits.float(), images.shape[2:])


def check_maps(logits: Any, images: Tensor) -> None:
    shape = list(getattr(logits, "shape", ()))
    if len(shape) != 4 or shape[0] != len(images):
        raise UserError(
            f"task=segment needs logits [batch, classes, height, width], and the model gives {shape or type(logits)} "
            f"for images {list(images.shape)}; choose a model that segments, as model=segmenter"
        )


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned; the same where nothing changes. maps [n, channels, h, w]."""
    if list(maps.shape[2:]) == list(size):
        return maps
    return F.interpolate(maps, list(size), mode="bilinear", align_corners=False)
