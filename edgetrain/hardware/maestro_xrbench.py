"""The analysis of the MAESTRO that XRBench ships, to the last unit: an earlier one than `maestro`.

XRBench (Kwon et al., MLSys'23; XRBench/XRBench-MLSys2023 at 89156663): the cycles and energies behind its figures 5 to
7 come from there. It differs from `maestro` in what it neglects: units below the
top always work on a full tile; the first step overlaps like all others; partial sums cost no reading back; clusters at
work in the last round are rounded down; and a tensor stays while a loop of its own further out stands still, though
one further in begins again. Accesses are those of the top level alone. Strides are ours: the release has none.
"""

from functools import lru_cache
from itertools import product
from math import prod, trunc
from typing import NamedTuple

from edgetrain.hardware.dataflow import DIMENSIONS, KERNEL_OF, C, Dataflow, Extents, K, Map, Shape, X, Y, bind
from edgetrain.hardware.maestro import INPUTS, WEIGHTS, Counts, innermost, volumes

SIDE_OF = {kernel: side for side, kernel in KERNEL_OF.items()}
FIRST, STEADY, EDGE = range(3)


class _Loop(NamedTuple):
    """A map at one level. whole: its first step covers the extent; short: that step reaches beyond it; counts: times
    that it stands at its first, a steady and its edge step, which for odd shapes may cancel out as -1 and 1."""

    dimension: int
    spatial: bool
    size: int
    offset: int
    extent: int
    whole: bool
    short: bool
    counts: tuple[int, int, int]

    @property
    def moves(self) -> int:
        """What a step brings: the offset, or all of a map that leaves gaps."""
        return min(self.size, self.offset)


class _Level(NamedTuple):
    """The loops of one level, outermost first, its units, and those at work in the last round."""

    loops: tuple[_Loop, ...]
    units: int
    last_units: int
    strides: tuple[int, int]

    @property
    def divided(self) -> int:
        """Place of the first spatial map."""
        return next(place for place, loop in enumerate(self.loops) if loop.spatial)


@lru_cache(maxsize=1 << 16)
def analyse(dataflow: Dataflow, shape: Shape, pes: int, bandwidth: int, lanes: int = 1) -> Counts:
    """As `maestro.analyse`; the shape may be degenerate, its kernel larger than its input."""
    outputs = (C, Y, X) if shape.depthwise else (K, Y, X)
    levels = _levels(dataflow, shape, pes)
    cycles = 0
    for level in reversed(levels[1:]):
        cycles = _count(level, outputs, cycles, bandwidth, lanes).cycles
    top = _count(levels[0], outputs, cycles, bandwidth, lanes)
    strides = (shape.stride_height, shape.stride_width)
    made = shape.extents[outputs[0]] * prod(
        (shape.extents[side] - shape.extents[kernel]) // stride + 1
        for (side, kernel), stride in zip(KERNEL_OF.items(), strides, strict=True)
    )
    sizes = (prod(shape.extents[d] for d in INPUTS), prod(shape.extents[d] for d in WEIGHTS), made)
    held = innermost(bind(dataflow, shape), shape.extents)
    return top._replace(
        shared=tuple(read + size for read, size in zip(top.shared, sizes, strict=True)),
        local_needed=tuple(2 * size for size in volumes(held, strides, outputs)),
    )


def _levels(dataflow: Dataflow, shape: Shape, pes: int) -> list[_Level]:
    """Every level with all six loops: those of the level above that it lacks come first, others it holds whole."""
    bound = bind(dataflow, shape)
    strides = (shape.stride_height, shape.stride_width)
    extents, above = shape.extents, ()
    levels = []
    for own, units in zip(bound.levels, bound.units(pes), strict=True):
        named = {one.dimension for one in own}
        inherited = [Map(one.dimension, False, one.size, one.offset) for one in reversed(above)]
        maps = [one for one in inherited if one.dimension not in named] + list(own)
        named |= {one.dimension for one in maps}
        rest = sorted((d for d in range(len(DIMENSIONS)) if d not in named), key=DIMENSIONS.__getitem__)
        maps += [Map(d, False, extents[d], extents[d]) for d in rest]
        levels.append(_bounded(maps, units, extents, strides))
        above = maps
        tiles = {one.dimension: min(one.size, extents[one.dimension]) for one in maps}
        extents = tuple(tiles[d] for d in range(len(DIMENSIONS)))
    return levels


def _bounded(maps: list[Map], units: int, extents: Extents, strides: tuple[int, int]) -> _Level:
    def reach(dimension: int) -> int:
        """The extent that steps divide: of a side that of its outputs."""
        if dimension not in KERNEL_OF:
            return extents[dimension]
        stride = strides[dimension == X]
        return ((extents[dimension] - extents[KERNEL_OF[dimension]]) // stride + 1) * stride

    divided = next(one for one in maps if one.spatial)
    spread = divided.offset * units
    ragged = reach(divided.dimension) % spread != 0
    last = 1 if reach(divided.dimension) <= divided.size else reach(divided.dimension) % spread // divided.offset
    loops = []
    for one in maps:
        extent, stride = extents[one.dimension], one.offset * (units if one.spatial else 1)
        covered = (units - 1) * one.offset + one.size if one.spatial else one.size
        beyond = stride if one.spatial else one.size
        distance = reach(one.dimension)
        edge = ragged if one.spatial else distance % stride != 0
        steps = trunc(distance / stride) + (distance % stride != 0)
        counts = (1, 0 if covered >= extent else steps - 1 - edge, int(edge and beyond < extent))
        loops.append(_Loop(*one, extent, covered >= extent, beyond > extent, counts))
    return _Level(tuple(loops), units, last, strides)


def _count(level: _Level, outputs: tuple[int, ...], below: int, bandwidth: int, lanes: int) -> Counts:
    """Cycles and accesses of one cluster; below: cycles of a step of each of its units, 0 where those are PEs."""
    loops = level.loops
    loads: dict[tuple[int, tuple[int, ...]], list[tuple[int, int]]] = {}
    cycles = macs = 0
    read, local = [0, 0, 0], [0, 0, 0]
    first = (0, 0, 0)
    for steps in product(*[[kind for kind in range(3) if loop.counts[kind]] for loop in loops]):
        times = prod(loop.counts[step] for loop, step in zip(loops, steps, strict=True))
        partial, ragged, target = _outputs(level, steps, outputs)
        if partial == 0:
            continue
        divided, step = loops[level.divided], steps[level.divided]
        few = step == EDGE or (step == FIRST and divided.short)
        units = level.last_units if few else level.units
        moved = max((place for place, step in enumerate(steps) if step != FIRST), default=-1)
        still = tuple(place for place, loop in enumerate(loops) if loop.whole and steps[place] == FIRST)
        if (moved, still) not in loads:
            loads[moved, still] = [_load(level, tensor, moved, still) for tensor in (INPUTS, WEIGHTS)]
        arrived = [0, 0]
        for index, tensor in enumerate((INPUTS, WEIGHTS)):
            one, other = loads[moved, still][index]
            shared = all(not (loop.spatial and loop.dimension in tensor) for loop in loops)
            arrived[index] = one if shared else one + max(units - 1, 0) * other
            read[index] += times * arrived[index]
            local[index] += times * units * (one + partial)
        local[2] += times * (2 * partial - 1)
        compute = below or -(-partial // lanes)
        cycles += times * max(compute, -(-sum(arrived) // bandwidth), -(-target // bandwidth))
        macs += times * ((units - 1) * partial + ragged)
        if moved < 0:
            first = (2 * arrived[0], 2 * arrived[1], 2 * target)
    return Counts(cycles, macs, tuple(read), tuple(local), first, (0, 0, 0))


def _load(level: _Level, tensor: tuple[int, ...], moved: int, still: tuple[int, ...]) -> tuple[int, int]:
    """Elements of a tensor that the first unit and each other one take when `moved` is the innermost loop to move.

    still: loops that stand at a step that covers them.
    """
    own = [(place, loop) for place, loop in enumerate(level.loops) if loop.dimension in tensor]
    others = prod(loop.moves for _, loop in own if loop.spatial)
    units = prod(loop.size for _, loop in own if loop.spatial)
    divided = any(loop.spatial for _, loop in own)
    if moved >= 0:
        if any(place == moved for place, _ in own):
            part = prod(
                loop.moves if place == moved else loop.extent if loop.whole else loop.size
                for place, loop in own
                if not loop.spatial
            )
            return units * part, others * part
        if all(place in still for place, _ in own) or any(place < moved and place not in still for place, _ in own):
            return 0, 0
    part = prod(loop.extent % loop.offset if loop.short else loop.size for _, loop in own if not loop.spatial)
    return units * part, others * part if divided else 0


def _outputs(level: _Level, steps: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[int, int, int]:
    """Of a unit in a step: products that it sums, those of the last unit of a ragged round, outputs that it makes."""
    sizes = {loop.dimension: loop.size for loop in level.loops}
    start = not any(steps)
    partial = ragged = target = 1
    for loop, step in zip(level.loops, steps, strict=True):
        size = last = loop.size
        if not loop.spatial:
            if step == EDGE:
                size = last = loop.extent % loop.offset
            elif step == FIRST and loop.short:
                size = last = loop.extent
        elif step == EDGE or (step == FIRST and loop.short and (start or not loop.whole)):
            if loop.extent < loop.size:
                size = last = loop.extent
            else:
                last = loop.extent % loop.offset or loop.size
        made = size
        if loop.dimension in SIDE_OF:
            size = last = loop.size
        elif loop.dimension in KERNEL_OF:
            stride, kernel = level.strides[loop.dimension == X], sizes[KERNEL_OF[loop.dimension]]
            made = size if loop.size < kernel else (loop.size - kernel) // stride + 1
            size, last = (max((held - kernel) // stride + 1, 1) for held in (size, last))
        partial *= size
        ragged *= last
        if loop.dimension in outputs:
            target *= made
    return partial, ragged, target
