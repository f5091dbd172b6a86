"""Images from files to numbers: decoded once, in one size and number of channels, and kept in the cache.

An image of another size is scaled until it covers the wanted one, with antialiasing, and cut around its centre; with
`crop` below 1 it is scaled to cover a larger one, of which the centre keeps that share of each side.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from edgetrain.data.packed import digest
from edgetrain.data.packing import cache_folder
from edgetrain.errors import UserError
from edgetrain.folder import atomic

MODES = {1: "L", 3: "RGB"}  # Pillow's, of as many channels
Interpolation = Literal["bilinear", "bicubic"]
TOGETHER = 256  # images that are decoded at a time for the cache
# Of what is kept: one more whenever decoding or scaling gives other numbers for the same settings.
VERSION = 1


@dataclass(frozen=True)
class LabelledImage:
    """label: its number among the labels; key: a hash of its file; where: how messages name it within the set; content:
    split and row.
    """

    label: int
    key: bytes
    where: str
    content: tuple[str, int]


@dataclass(frozen=True)
class Decoder:
    """path: the set's name, for messages; open: the file of an image; size: height and width; channels: 1 or 3;
    crop, interpolation: as `fitted` takes them.
    """

    path: str
    open: Callable[[LabelledImage], BinaryIO]
    size: tuple[int, int]
    channels: int
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __call__(self, images: Sequence[LabelledImage]) -> Tensor:
        """uint8 [n, channels, height, width]. Raises UserError that names an image which cannot be read."""
        originals = map(self.original, images)
        return torch.stack([fitted(each, self.size, self.crop, self.interpolation) for each in originals])

    def original(self, image: LabelledImage) -> Tensor:
        """uint8 [channels, height, width], as large as its file has it."""
        with self.open(image) as file:
            return read_image(file, f"data.path={self.path}: {image.where}", self.channels)

    def cached(self, images: list[LabelledImage]) -> Tensor:
        """All of them, memory-mapped, from the cache or decoded now. Raises UserError when it cannot be written."""
        settings = repr((VERSION, self.size, self.channels, self.crop, self.interpolation))
        path = cache_folder() / "images" / f"{digest(settings, *(image.key.hex() for image in images))}.npy"
        if not path.exists():
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), self.channels, *self.size)}
            starts = range(0, len(images), TOGETHER)
            console = Console(stderr=True)
            try:
                with atomic(path) as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    for start in track(starts, "decoding images", console=console, disable=len(starts) < 9):
                        file.write(self(images[start : start + TOGETHER]).numpy().tobytes())
            except OSError as error:
                raise UserError(
                    f"cannot write {path}: {error.strerror}; free some space or set EDGETRAIN_CACHE to another folder"
                ) from error
        return torch.from_numpy(np.load(path, mmap_mode="c"))  # c: torch wants what may be written; the file stays


def read_image(file: BinaryIO, where: str, channels: int) -> Tensor:
    """uint8 [channels, height, width], upright, of grey, palette, CMYK and transparent images too.

    Transparency is left out, as torchvision does it; 16 bits are cut to their upper 8. Raises UserError, naming
    `where`, for what cannot be decoded.
    """
    try:
        image = PIL.Image.open(file)
        PIL.ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("I", "F"):
            raise ValueError(f"its pixels have 32 bits, mode {image.mode}; save it with 8")
        if image.mode.startswith("I;16"):
            image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if "transparency" in image.info:
            image = image.convert("RGBA")  # a palette's transparent colours, else Pillow warns
        pixels = np.array(image.convert(MODES[channels]))
    except Exception as error:  # of a broken file decoders raise whatever they stumble over
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(f"{where} is no image that can be decoded ({reason}); mend it, or take it out") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def fitted(
    image: Tensor, size: tuple[int, int], crop: float = 1.0, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """uint8 [channels, height, width] of any size to `size`: scaled to cover size / crop, cut around the centre."""
    if image.shape[1:] == size and crop == 1:
        return image
    wanted = [math.floor(side / crop) for side in size]
    factor = max(side / given for side, given in zip(wanted, image.shape[1:], strict=True))
    covering = [max(side, round(given * factor)) for side, given in zip(wanted, image.shape[1:], strict=True)]
    scaled = transforms.resize(image, covering, InterpolationMode(interpolation), antialias=True)
    return transforms.center_crop(scaled, list(size))


def original_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height, from the beginning of the file alone."""
    with PIL.Image.open(file) as image:
        return image.size
