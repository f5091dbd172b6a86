"""Where the elements of a network's tensors stand in memory, whose order is height, width, channels.

A tensor of the network [1, ...] has a tensor of places of its own shape: int64, each element's offset in the memory of
a value, PADDING where it is a zero that is nowhere. What only moves numbers moves places, by the same operator.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

PADDING = -1
Axes = tuple[int | None, int | None, int | None]
Shape = tuple[int, int, int]  # height, width, channels


class Format(NamedTuple):
    """Number k stands for (k - zero_point) * scale."""

    scale: float
    zero_point: int

    def limits(self, low: float, high: float) -> tuple[int, int]:
        """What two reals are quantised to, rounded as PyTorch does and saturated."""
        bounds = (torch.tensor([low, high]) * (1 / self.scale)).round() + self.zero_point
        low_number, high_number = bounds.clamp(-128, 127).int().tolist()
        return low_number, high_number


@dataclass(frozen=True)
class Stored:
    """A tensor of the network in a value's memory."""

    value: str
    places: Tensor


@dataclass(frozen=True)
class Pending:
    """What an operation gives, before it is rounded. write: (format, low, high) -> name of the value, in which `places`
    are; own: the format that it has when none is asked for, None where it has none; fixed: it has no other."""

    write: Callable[[Format, float, float], str]
    places: Tensor
    own: Format | None = None
    fixed: bool = False
    low: float = -torch.inf
    high: float = torch.inf


@dataclass(frozen=True)
class Frame:
    """How a tensor [1, channels, ...] lies in a value.

    padding: rows above and columns left that are PADDING; padded: whether any are, on any side; lengthwise: its one
    axis beside channels is the height, not the width; False for two axes.
    """

    shape: Shape
    padding: tuple[int, int]
    padded: bool
    lengthwise: bool = False

    def pair(self, numbers: tuple[int, ...], other: int) -> tuple[int, int]:
        """(of height, of width) from numbers for each axis; of an axis that is not there `other`."""
        if len(numbers) == 2:
            return numbers[0], numbers[1]
        return (numbers[0], other) if self.lengthwise else (other, numbers[0])

    def beyond(self, padding: tuple[int, ...]) -> tuple[int, int]:
        """Rows above and columns left that a window reads beyond the value: its own padding and the tensor's."""
        above, left = self.pair(padding, 0)
        return above + self.padding[0], left + self.padding[1]


def channels_last(places: Tensor, lengthwise: bool) -> Tensor:
    """[1, channels, height, width] or [1, channels, length] -> [height, width, channels]."""
    if places.ndim == 3:
        places = places[..., None] if lengthwise else places[:, :, None]
    return places[0].permute(1, 2, 0)


def trimmed(places: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """[height, width, channels] without rows and columns that are padding alone; how many were above and left."""
    there = places != PADDING
    rows, columns = there.any(2).any(1).nonzero().flatten(), there.any(2).any(0).nonzero().flatten()
    if not len(rows):
        return places, (0, 0)
    top, left = int(rows[0]), int(columns[0])
    return places[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1], (top, left)


def in_order(places: Tensor) -> bool:
    return torch.equal(places.flatten(), torch.arange(places.numel()))


def memory_of(shape: Shape) -> Tensor:
    """Places of a convolution's output: [1, channels, height, width]."""
    return torch.arange(shape[0] * shape[1] * shape[2]).view(shape).permute(2, 0, 1)[None]


def elements_in_order(shape: tuple[int, ...], axes: Axes) -> Tensor:
    """The elements of a tensor of that shape, by their number in its own order, in the order of memory."""
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    return numbers.permute([axis for axis in axes if axis is not None]).flatten()


def usual_axes(dims: int) -> Axes | None:
    """Height, width and channels of an input that no window reads; None for more than three axes."""
    return {1: (None, None, 0), 2: (0, 1, None), 3: (1, 2, 0)}.get(dims)


def axes_of(elements: Tensor, shape: tuple[int, ...]) -> Axes | None:
    """The axes of a tensor of `shape` that are the height, width and channels of [height, width, channels] elements.

    None when these are not the whole tensor with its axes permuted.
    """
    steps = {torch.Size(shape[axis + 1 :]).numel(): axis for axis, size in enumerate(shape) if size > 1}
    axes: list[int | None] = []
    for dim, size in enumerate(elements.shape):
        first = elements.narrow(dim, 0, min(size, 2)).flatten() if size > 1 else None
        step = None if first is None else int(elements.select(dim, 1).flatten()[0] - first[0])
        axes.append(steps.get(step))
    spare = [axis for axis in range(len(shape)) if axis not in axes]
    for dim in (2, 0, 1):  # axes of size 1 stand where one is lacking
        if axes[dim] is None and elements.shape[dim] == 1 and spare:
            axes[dim] = spare.pop(0)
    found: Axes = (axes[0], axes[1], axes[2])
    if sorted(axis for axis in axes if axis is not None) != list(range(len(shape))):
        return None
    return found if torch.equal(elements_in_order(shape, found), elements.flatten()) else None
