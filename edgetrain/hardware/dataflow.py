"""A dataflow as data: the data-centric directives of MAESTRO, and what they say of one layer.

Kwon et al., "Understanding Reuse, Performance, and Hardware Cost of DNN Dataflows: A Data-Centric Approach", MICRO'19.
A dataflow is a list of directives, outermost first:

  TemporalMap(size,offset) D   a cluster holds `size` indices of dimension D and moves on by `offset` in time
  SpatialMap(size,offset) D    neighbouring clusters hold `size` indices each, `offset` apart
  Cluster(size)                what follows is the dataflow inside a cluster of `size` units

D is K, C (output and input channels), R, S (kernel), Y, X (input) or Y', X' (output); Sz(R) and Sz(S) are the kernel's
own sizes. A dimension that a level does not name is held whole. Sizes of Y and X are those at stride 1; at another
stride a map holds the input of as many outputs.
"""

import re
from functools import lru_cache
from math import prod
from typing import NamedTuple

from edgetrain.errors import UserError
from edgetrain.hardware.workload import Loops

DIMENSIONS = "KCRSYX"
K, C, R, S, Y, X = range(6)
KERNEL_OF = {Y: R, X: S}

Extents = tuple[int, ...]  # of K, C, R, S, Y, X

_MAP = re.compile(r"(Temporal|Spatial)Map\s*\(\s*(\d+|Sz\([RS]\))\s*,\s*(\d+|Sz\([RS]\))\s*\)\s*([KCRSYX]|[YX]')")
_CLUSTER = re.compile(r"Cluster\s*\(\s*(\d+|Sz\([RS]\))\s*(?:,\s*P\s*)?\)")


class Shape(NamedTuple):
    """One image and one group of a layer. extents: K, C, R, S and Y, X of the padded input that the outputs read."""

    extents: Extents
    stride_height: int = 1
    stride_width: int = 1
    depthwise: bool = False

    @property
    def out_height(self) -> int:
        return positions(self.extents[Y], self.extents[R], self.stride_height)

    @property
    def out_width(self) -> int:
        return positions(self.extents[X], self.extents[S], self.stride_width)

    @property
    def macs(self) -> int:
        return prod(self.extents[:Y]) * self.out_height * self.out_width


class Directive(NamedTuple):
    """size, offset: a number, or "R" or "S" for the kernel's; dimension: K ... X, or Y' and X'."""

    spatial: bool
    size: int | str
    offset: int | str
    dimension: str


class Dataflow(NamedTuple):
    """levels: the directives of each, outermost first; clusters: units in a cluster below each level but the last."""

    levels: tuple[tuple[Directive, ...], ...]
    clusters: tuple[int | str, ...]


class Map(NamedTuple):
    """A directive with the numbers of one layer; dimension: its place in K, C, R, S, Y, X."""

    dimension: int
    spatial: bool
    size: int
    offset: int


class Bound(NamedTuple):
    """A dataflow with the numbers of one layer."""

    levels: tuple[tuple[Map, ...], ...]
    clusters: tuple[int, ...]

    def units(self, pes: int) -> tuple[int, ...]:
        """Units that each level spreads its spatial maps over; the first is 0 when `pes` do not fill one cluster."""
        return (pes // prod(self.clusters), *self.clusters)


def shape_of(loops: Loops, depthwise: bool = False) -> Shape:
    """One image and one group of a layer's loops; a depthwise layer keeps all its groups, as MAESTRO's DSCONV does."""
    out_channels = loops.out_channels // loops.groups
    in_channels = loops.in_channels if depthwise else loops.in_channels // loops.groups
    extents = (
        out_channels,
        in_channels,
        loops.kernel_height,
        loops.kernel_width,
        loops.in_height,
        loops.in_width,
    )
    return Shape(extents, loops.stride_height, loops.stride_width, depthwise)


def positions(extent: int, kernel: int, stride: int) -> int:
    """Outputs along one side of an input."""
    return max((extent - kernel) // stride + 1, 0)


@lru_cache(maxsize=1 << 10)
def parse_dataflow(directives: tuple[str, ...], where: str) -> Dataflow:
    """A dataflow from its directives' text. Raises UserError, which begins with `where`, for anything else."""
    levels: list[list[Directive]] = [[]]
    clusters: list[int | str] = []
    for text in directives:
        if cluster := _CLUSTER.fullmatch(text.strip()):
            clusters.append(_size(cluster[1], text, where))
            levels.append([])
        elif found := _MAP.fullmatch(text.strip()):
            size, offset = (_size(part, text, where) for part in found.group(2, 3))
            levels[-1].append(Directive(found[1] == "Spatial", size, offset, found[4]))
        else:
            raise UserError(
                f"{where}: '{text}' is no directive; write TemporalMap(size,offset) D, SpatialMap(size,offset) D "
                "with D of K, C, R, S, Y, X, Y' or X', or Cluster(size)"
            )
    for index, level in enumerate(levels):
        names = [directive.dimension.rstrip("'") for directive in level]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UserError(f"{where}: level {index} of the dataflow maps {twice} twice; leave one directive of it")
        if not any(directive.spatial for directive in level):
            raise UserError(f"{where}: level {index} of the dataflow has no SpatialMap; say what its units divide")
    return Dataflow(tuple(map(tuple, levels)), tuple(clusters))


@lru_cache(maxsize=1 << 14)
def bind(dataflow: Dataflow, shape: Shape) -> Bound:
    """The maps of each level in units of the input: Y' of n outputs holds the rows that they read."""
    extents = shape.extents
    strides = {Y: shape.stride_height, X: shape.stride_width}

    def number(size: int | str) -> int:
        return size if isinstance(size, int) else extents[DIMENSIONS.index(size)]

    levels = []
    for directives in dataflow.levels:
        mapped = {DIMENSIONS.index(one.dimension[0]): number(one.size) for one in directives}
        maps = []
        for one in directives:
            dimension, size, offset = DIMENSIONS.index(one.dimension[0]), number(one.size), number(one.offset)
            kernel = KERNEL_OF.get(dimension)
            if kernel is not None:
                if one.dimension.endswith("'"):
                    size += min(mapped.get(kernel, extents[kernel]), extents[kernel]) - 1
                if size >= extents[kernel] and strides[dimension] > 1:
                    size = (size - extents[kernel]) * strides[dimension] + extents[kernel]
                    offset *= strides[dimension]
            maps.append(Map(dimension, one.spatial, size, offset))
        levels.append(tuple(maps))
    return Bound(tuple(levels), tuple(number(size) for size in dataflow.clusters))


def _size(text: str, directive: str, where: str) -> int | str:
    if text.startswith("Sz"):
        return text[3]
    if int(text) < 1:
        raise UserError(f"{where}: '{directive}' has a size or offset of 0; write one of at least 1")
    return int(text)
