"""Values of label images to classes: which value is which class, which pixels are void, and that there are no others.

One of three conventions says what a value v of a file stands for, and `void` lists the values that stand for no class:

    plain               v is class v                     most sets
    reduce_zero_label   0 is void, v is class v - 1      ADE20K
    label_map           what the map says of v           Cityscapes: labelIds to its 19 train ids

Void pixels become ignore_index. A value that none of this explains stops with its file, and with what to set.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from edgetrain.errors import UserError, listing

VALUES = 2**16  # that a label image of 16 bits can have


@dataclass(frozen=True)
class LabelMap:
    """path: the set's name, for messages. label_map: {value: class}, a class of None for void.

    ignore_index: what void pixels are given. Raises UserError for settings that contradict each other.
    """

    path: str
    classes: int
    label_map: dict[int, int | None] | None = None
    reduce_zero_label: bool = False
    void: list[int] = field(default_factory=list)
    ignore_index: int = 255

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise UserError(f"data.num_classes={self.classes} leaves nothing to tell apart; set it to at least 1")
        if not self.classes <= self.ignore_index < VALUES:
            raise UserError(
                f"data.ignore_index={self.ignore_index} has to be a number that is no class: {self.classes} to "
                f"{VALUES - 1}; 255 is the usual one, up to 255 classes"
            )
        if self.label_map is not None and self.reduce_zero_label:
            raise UserError(
                "data.label_map and data.reduce_zero_label both say what a value stands for; keep one of them"
            )
        for key, values in (("label_map", self.label_map or {}), ("void", self.void)):
            wrong = [value for value in values if not 0 <= value < VALUES]
            if wrong:
                raise UserError(f"data.{key} names the value {wrong[0]}; a label image has values of 0 to {VALUES - 1}")
        for value, label in (self.label_map or {}).items():
            if label is not None and not 0 <= label < self.classes:
                raise UserError(
                    f"data.label_map gives {value} the class {label}, which is not one of 0 to {self.classes - 1}; "
                    "mend it, or set data.num_classes, or give null for pixels that are not counted"
                )
            if label is not None and value in self.void:
                raise UserError(f"data.void names {value}, which data.label_map gives the class {label}; keep one")

    @property
    def dtype(self) -> np.dtype:
        """The smallest that holds every class and ignore_index."""
        return np.min_scalar_type(self.ignore_index)

    @property
    def settings(self) -> dict[str, Any]:
        """What shapes the classes of a file, as plain values."""
        return {
            "classes": self.classes,
            "label_map": self.label_map,
            "reduce_zero_label": self.reduce_zero_label,
            "void": sorted(self.void),
            "ignore_index": self.ignore_index,
        }

    @cached_property
    def class_of(self) -> np.ndarray:
        """The class of each value, int64 [VALUES]; -1 for what nothing explains."""
        table = np.full(VALUES, -1)
        if self.label_map is not None:
            for value, label in self.label_map.items():
                table[value] = self.ignore_index if label is None else label
        elif self.reduce_zero_label:
            table[0] = self.ignore_index
            table[1 : self.classes + 1] = np.arange(self.classes)
        else:
            table[: self.classes] = np.arange(self.classes)
        table[self.void] = self.ignore_index
        return table

    def __call__(self, values: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Classes of a label image, [height, width] of `dtype`, and how many pixels each has, int64 [classes + 1].

        The last number is of void pixels. Raises UserError, naming `where`, for a value that has no class.
        """
        if values.size and not 0 <= values.min() <= values.max() < VALUES:
            self._refuse({int(value) for value in (values.min(), values.max()) if not 0 <= value < VALUES}, where)
        pixels = np.bincount(values.ravel(), minlength=VALUES)
        unexplained = np.flatnonzero((pixels > 0) & (self.class_of < 0))
        if len(unexplained):
            self._refuse(set(unexplained.tolist()), where)
        counts = np.zeros(self.classes + 1, dtype=np.int64)
        present = np.flatnonzero(pixels)
        np.add.at(counts, np.minimum(self.class_of[present], self.classes), pixels[present])
        return self.class_of.astype(self.dtype)[values], counts

    def _refuse(self, values: set[int], where: str) -> None:
        names = listing(map(str, sorted(values)), 5)
        known = "that data.label_map names" if self.label_map is not None else f"of data.num_classes={self.classes}"
        zero = ", data.reduce_zero_label=true where 0 is no class" if self.label_map is None else ""
        raise UserError(
            f"data.path={self.path}: {where} has the value {names}, which is no class {known}; list it in data.void "
            f"where such pixels are not to be counted, or set data.num_classes, or data.label_map{zero}"
        )


def palette_of(classes: int) -> list[list[int]]:
    """A colour, [red, green, blue] of 0 to 255, for each class: the colour map of PASCAL VOC, without its black.

    Bits 0, 1, 2 of a number are the highest of red, green and blue, the next three the second highest, and so on.
    """
    colours = []
    for number in range(1, classes + 1):
        channels = [0, 0, 0]
        for place in range(24):
            channels[place % 3] |= (number >> place & 1) << 7 - place // 3
        colours.append(channels)
    return colours
