"""What makes every epoch see another version of an image: torchvision's transforms (v2), drawn from a key an image.

What happens to an image is a function of it and of (seed, epoch, index) alone, so that a resumed run sees the same.
RandomCrop and RandomHorizontalFlip work on a batch at once, with numbers of their own for every image; all others on
one image after the other, each with torch's generator seeded from its key.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode, functional

from edgetrain.errors import UserError

Keys = np.ndarray  # uint64 [n], one an image
ASPECT = (3 / 4, 4 / 3)  # width over height of a crop that is resized, smallest and largest
INCREMENT = np.uint64(0x9E3779B97F4A7C15)


def mixed(keys: np.ndarray) -> np.ndarray:
    """uint64 to uint64, one to one, every bit changed by every other: splitmix64 (Steele, Lea & Flood 2014)."""
    keys = keys + INCREMENT
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def keys_of(seed: int, epoch: int, indices: Sequence[int]) -> Keys:
    keys = np.asarray(indices, dtype=np.uint64)
    for number in (epoch, seed):
        keys = mixed(keys) + np.uint64(number % 2**64)
    return mixed(keys)


def uniform(keys: Keys) -> Tensor:
    """float64 [n] in [0, 1), a number a key."""
    return torch.from_numpy((mixed(keys) >> np.uint64(11)) * 2.0**-53)


def crop(transform: v2.RandomCrop, images: Tensor, keys: Keys) -> Tensor:
    """As `transform`, with a place of its own for every image."""
    if transform.padding is not None:
        images = functional.pad(images, transform.padding, transform.fill, transform.padding_mode)
    height, width = transform.size
    places = images.unfold(2, height, 1).unfold(3, width, 1)  # a view [n, channels, rows, columns, height, width]
    rows, columns = ((uniform(keys + np.uint64(side)) * places.shape[2 + side]).long() for side in (0, 1))
    return places[torch.arange(len(images)), :, rows, columns]


def flip(transform: v2.RandomHorizontalFlip, images: Tensor, keys: Keys) -> Tensor:
    return torch.where((uniform(keys) < transform.p)[:, None, None, None], images.flip(3), images)


def one_by_one(transform: Callable[[Tensor], Tensor], images: Iterable[Tensor], keys: Keys) -> Tensor:
    """The images, which may be of several sizes where the transform makes them one, drawn from torch."""
    with torch.random.fork_rng(devices=[]):
        changed = []
        for image, key in zip(images, keys.view(np.int64).tolist(), strict=True):
            torch.default_generator.manual_seed(key)  # torch.manual_seed would seed a GPU, which is training, too
            changed.append(transform(image))
    return torch.stack(changed)


def in_batches(transform: Callable[[Tensor], Tensor]) -> Callable[[Callable, Tensor, Keys], Tensor]:
    """How a transform is applied: `crop`, `flip` or `one_by_one`."""
    if type(transform) is v2.RandomHorizontalFlip:
        return flip
    if type(transform) is v2.RandomCrop and not transform.pad_if_needed and not isinstance(transform.fill, dict):
        return crop
    return one_by_one


class RandomNoiseErasing(v2.RandomErasing):
    """timm's random erasing in pixel mode: a rectangle of 2 to 33 % of the area becomes N(0, 1). For inputs."""

    def __init__(self, p: float = 0.25) -> None:
        super().__init__(p, value="random")


def resized_crop(size: tuple[int, int], share: list[float], interpolation: str) -> v2.RandomResizedCrop:
    """torchvision's, of an image of any size (Szegedy et al. 2015): share, the smallest and largest of its area."""
    mode = InterpolationMode(interpolation)
    return v2.RandomResizedCrop(size, scale=tuple(share), ratio=ASPECT, interpolation=mode, antialias=True)


@dataclass(frozen=True)
class Augmentation:
    """transforms: from [channels, height, width] of the type to the same, in order; those that draw do so from torch.

    key: where they were said, for messages.
    """

    transforms: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    key: str = "data.augmentation"
    dtype: torch.dtype = torch.uint8

    def __call__(self, images: Tensor, keys: Keys) -> Tensor:
        """[n, channels, height, width] to the same."""
        for place, transform in enumerate(self.transforms):
            own = mixed(keys + np.uint64(place))
            images = in_batches(transform)(transform, images, own)
        return images

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raises UserError for a transform that fails on an image [channels, height, width] or gives something else."""
        image = torch.zeros(1, *shape, dtype=self.dtype)
        for place, transform in enumerate(self.transforms):
            name = f"{self.key}.{place} ({type(transform).__name__})"
            if not callable(transform):
                raise UserError(f"{name} is no transform; give it a _target_, as torchvision.transforms.v2.ColorJitter")
            try:
                given = in_batches(transform)(transform, image, keys_of(0, 0, [0]))
            except Exception as error:  # a transform of anybody's
                reason = (str(error).strip() or type(error).__name__).split("\n")[0]
                raise UserError(f"{name} cannot take an image of {list(shape)}: {reason}") from error
            if not isinstance(given, Tensor) or given.shape != image.shape or given.dtype != self.dtype:
                said = f"{given.dtype} {list(given.shape[1:])}" if isinstance(given, Tensor) else type(given).__name__
                raise UserError(
                    f"{name} makes {said} of an image of {str(self.dtype).removeprefix('torch.')} {list(shape)}, and "
                    "has to keep both; data.size, data.mean and data.std do the rest"
                )
