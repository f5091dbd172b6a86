"""Images and their label images from files to numbers.

A label image holds a number a pixel: grey of 1 to 16 bits or a palette, of which the index counts and never the
colour. What keeps no such number, as RGB and JPEG, is refused: it is a matter of the whole set, unlike a broken file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageOps

from edgetrain.data.images_decoding import read_image
from edgetrain.data.segmentation_labels import LabelMap
from edgetrain.errors import UserError

# What Pillow stretches grey of few bits by, when it gives 8: 1 of 4 bits becomes 17.
STRETCHED = {"L;2": 85, "L;4": 17}
LABELS = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow's modes of one number a pixel
LOSSY = {"JPEG", "MPO"}


class BrokenFile(UserError):
    """One file that cannot be decoded, where the set as a whole may be sound."""


@dataclass(frozen=True)
class Pair:
    """An image and its label image. key: a hash of the image's file; label: of the label's, in hexadecimal.

    where, label_where: how messages name them within the set; content: split and row.
    """

    key: bytes
    label: str
    where: str
    label_where: str
    content: tuple[str, int]


@dataclass(frozen=True)
class PairReader:
    """path: the set's name, for messages; open_image, open_label: the files of a pair."""

    path: str
    open_image: Callable[[Pair], BinaryIO]
    open_label: Callable[[Pair], BinaryIO]
    classes: LabelMap

    def __call__(self, pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """uint8 [height, width, 3], classes [height, width], and pixels of each class and of none, int64 [classes + 1].

        Raises BrokenFile for what cannot be decoded, and UserError for what the settings do not explain.
        """
        with self.open_image(pair) as file:
            try:
                image = read_image(file, f"data.path={self.path}: {pair.where}", 3).permute(1, 2, 0).numpy()
            except UserError as error:
                raise BrokenFile(str(error)) from error
        with self.open_label(pair) as file:
            values = read_label(file, f"data.path={self.path}: the label image of {pair.label_where}")
        if image.shape[:2] != values.shape:
            image_size, label_size = (f"{each.shape[1]}x{each.shape[0]}" for each in (image, values))
            raise UserError(
                f"data.path={self.path}: {pair.where} has {image_size} pixels, but its label image {label_size}; both "
                "need the same width and height: mend the pair, or take it out"
            )
        classes, pixels = self.classes(values, f"the label image of {pair.label_where}")
        return image, classes, pixels


def read_label(file: BinaryIO, where: str) -> np.ndarray:
    """The numbers of a label image, whole: [height, width] of uint8, uint16 or int32.

    Raises BrokenFile, naming `where`, for what cannot be decoded, and UserError for an image of colours.
    """
    try:
        image = PIL.Image.open(file)
        depth = image.tile[0].args if image.tile else None
        depth = depth[0] if isinstance(depth, tuple) and depth else depth
        PIL.ImageOps.exif_transpose(image, in_place=True)  # as read_image turns the image
        image.load()
    except Exception as error:  # of a broken file decoders raise whatever they stumble over
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise BrokenFile(f"{where} is no image that can be decoded ({reason}); mend it, or take it out") from error
    if image.mode not in LABELS:
        raise UserError(
            f"{where} has colours (mode {image.mode}), not a class a pixel; convert it to a grey or palette PNG "
            "whose values are class numbers"
        )
    if image.format in LOSSY:
        raise UserError(
            f"{where} is a {image.format}, which blurs the class numbers at every edge; give the PNG it was made of"
        )
    values = np.asarray(image)
    if image.mode == "1":
        return values.astype(np.uint8)
    values = values.astype(values.dtype.newbyteorder("="))
    return values // STRETCHED[depth] if depth in STRETCHED else values
