"""What training sees of an image and its label image, both moved alike: the pipeline that segmentation papers share.

    resized by a random ratio -> cut at random, again while one class fills the cut -> mirrored -> colours distorted

as published in MMSegmentation's pipelines, with its numbers as defaults. It departs in that places lie at pixels'
centres for images and labels alike (nearest-exact), and that colours are not rounded between the distortions. What
happens is a function of the image and its key alone. Only the part of an image that the cut shows is resized.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from edgetrain.data.images_augmentation import INCREMENT, Keys, uniform

REDRAWS = 10  # of a cut that one class fills; the last one is taken as it is
COLOURS = 9  # draws of a distortion
RATIO, FLIP, COLOUR, PLACES = 0, 1, 2, 2 + COLOURS  # where each decision's draws stand
DRAWS = PLACES + 2 * (1 + REDRAWS)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18 / 180  # hue: of a circle

Box = tuple[int, int, int, int]  # top, left, height, width
Size = tuple[int, int]  # height, width


def draws_of(keys: Keys) -> np.ndarray:
    """float64 [n, DRAWS] in [0, 1): numbers of a splitmix64 sequence for each key."""
    return uniform(keys[:, None] + np.arange(DRAWS, dtype=np.uint64) * INCREMENT).numpy()


def scaled_size(own: Size, scale: list[int] | None, keep_ratio: bool, ratio: float = 1.0) -> Size:
    """The size to which an image of size `own` is resized: `scale` times `ratio`, of None its own.

    With keep_ratio `scale` is an upper limit on the longer and on the shorter side, whichever of them the height is.
    """
    if scale is None:
        factors = (ratio, ratio)
    elif keep_ratio:
        factors = (min(max(scale) * ratio / max(own), min(scale) * ratio / min(own)),) * 2
    else:
        factors = (scale[0] * ratio / own[0], scale[1] * ratio / own[1])
    height, width = (max(1, int(side * factor + 0.5)) for side, factor in zip(own, factors, strict=True))
    return height, width


def resized(image: np.ndarray, size: Size, box: Box | None = None) -> np.ndarray:
    """uint8 [height, width, 3] resized to `size`, bilinear with antialiasing; of that the box alone.

    Pillow weighs the pixels around a part of an image as it does for the whole, so both give the same up to rounding.
    """
    top, left, height, width = box or (0, 0, *size)
    if image.shape[:2] == size:
        return image[top : top + height, left : left + width]
    spans, places = [], []
    for own, new, start, length in zip(image.shape, size, (top, left), (height, width), strict=False):
        step = own / new
        begin, end = start * step, (start + length) * step
        reach = ceil(max(step, 1)) + 1  # how far a bilinear weight reaches, and a pixel for rounding
        first, last = max(0, int(begin) - reach), min(own, ceil(end) + reach)
        spans.append(slice(first, last))
        places.append((max(0.0, begin - first), min(last - first, end - first)))
    part = PIL.Image.fromarray(np.ascontiguousarray(image[spans[0], spans[1]]))
    source = (places[1][0], places[0][0], places[1][1], places[0][1])
    return np.asarray(part.resize((width, height), PIL.Image.Resampling.BILINEAR, box=source))


def resized_classes(classes: np.ndarray, size: Size, box: Box | None = None) -> np.ndarray:
    """[height, width] resized to `size` by taking the class at each new pixel's centre; of that the box alone."""
    top, left, height, width = box or (0, 0, *size)
    rows, columns = (
        (2 * np.arange(start, start + length) + 1) * own // (2 * new)  # floor((i + 1/2) own / new), exactly
        for own, new, start, length in zip(classes.shape, size, (top, left), (height, width), strict=True)
    )
    return classes[rows[:, None], columns]


def one_class_fills(classes: np.ndarray, share: float, ignore_index: int) -> bool:
    """Whether there is but one class, or none, or one has `share` or more of the pixels that are counted."""
    pixels = np.bincount(classes.ravel())
    pixels = np.concatenate([pixels[:ignore_index], pixels[ignore_index + 1 :]])
    return bool((pixels > 0).sum() < 2 or pixels.max() >= share * pixels.sum())


def distorted(image: Tensor, draws: np.ndarray) -> Tensor:
    """Colours changed at random: float32 [3, height, width] of 0 to 255, to the same; draws: COLOURS numbers.

    Each with probability 1/2: up to 32 added; times 0.5 to 1.5, at the beginning or at the end; saturation in HSV times
    0.5 to 1.5; hue turned by up to a tenth of the circle.
    """
    brighter, delta, first, contrasted, alpha, saturated, factor, turned, angle = draws.tolist()
    if brighter < 0.5:
        image = (image + BRIGHTNESS * (2 * delta - 1)).clamp_(0, 255)
    if contrasted < 0.5 and first < 0.5:
        image = (image * between(CONTRAST, alpha)).clamp_(0, 255)
    if saturated < 0.5:
        image = with_saturation(image, between(SATURATION, factor))
    if turned < 0.5:
        image = functional.adjust_hue(image / 255, HUE * (2 * angle - 1)) * 255
    if contrasted < 0.5 and first >= 0.5:
        image = (image * between(CONTRAST, alpha)).clamp_(0, 255)
    return image


def between(bounds: tuple[float, float] | list[float], draw: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * draw


def with_saturation(image: Tensor, factor: float) -> Tensor:
    """The saturation of HSV times `factor`, at most 1; hue and value stay.

    With value v = max(r, g, b) and saturation s = (v - min) / v, a channel is v - (v - channel at s) * s' / s.
    """
    value, least = image.amax(0), image.amin(0)
    most = value / (value - least).clamp_(min=1e-6)  # the factor at which the saturation is 1
    return value - (value - image) * most.clamp_(max=factor)


@dataclass(frozen=True)
class JointAugmentation:
    """size: of the cut. scale, keep_ratio: as scaled_size's; ratio_range: of the random ratio.

    category_max_ratio: share of the counted pixels that no class of a cut is to reach; 1 takes the first cut. flip:
    probability of mirroring. photometric: whether colours are distorted.
    """

    size: Size
    scale: list[int] | None
    keep_ratio: bool
    ratio_range: list[float]
    category_max_ratio: float
    flip: float
    photometric: bool
    ignore_index: int

    def __call__(self, image: np.ndarray, classes: np.ndarray, draws: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """float32 [3, height, width] of 0 to 255, and classes [height, width], both at most of `size`.

        image: uint8 [height, width, 3]; draws: DRAWS numbers.
        """
        own = classes.shape
        whole = scaled_size(own, self.scale, self.keep_ratio, between(self.ratio_range, draws[RATIO]))
        box, cut = self.cut(classes, whole, draws[PLACES:])
        pixels = resized(image, whole, box)
        if draws[FLIP] < self.flip:
            pixels, cut = pixels[:, ::-1], cut[:, ::-1]
        colours = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))
        if self.photometric:
            colours = distorted(colours, draws[COLOUR:PLACES])
        return colours, cut

    def cut(self, classes: np.ndarray, whole: Size, draws: np.ndarray) -> tuple[Box, np.ndarray]:
        """Where an image that is resized to `whole` is cut, and the classes there."""
        height, width = (min(wanted, there) for wanted, there in zip(self.size, whole, strict=True))
        for attempt in range(1 + REDRAWS):
            top = int(draws[2 * attempt] * (whole[0] - height + 1))
            left = int(draws[2 * attempt + 1] * (whole[1] - width + 1))
            box = (top, left, height, width)
            found = resized_classes(classes, whole, box)
            if self.category_max_ratio >= 1 or not one_class_fills(found, self.category_max_ratio, self.ignore_index):
                break
        return box, found
