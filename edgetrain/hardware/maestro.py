"""Cycles and accesses of one layer under a dataflow: MAESTRO's data-centric analysis, with nothing lost at the edges.

A level of the dataflow steps its units through the layer's loops. Steps that do the same are one case: the first, the
steady and the last of each loop. A step costs as long as the slowest of its units (the same question one level down,
for what those hold), of what comes in and of what goes out, which overlap except in the first step. A tensor comes in
anew when one of its own loops moves, or begins again because one outside it moved. Units that want the same element
get it in one transfer (multicast), partial sums of units that share an output are added on their way out.

A cluster starts every step of the level above from empty buffers; partial sums that come in again count as accesses
and delay nothing. So does MAESTRO at HEAD (4eb08d1), but for edges: it does not count what begins again in the very
step in which an outer loop moves, takes ragged tiles below the top for full ones, and steps over rows that a stride
never reads.
"""

from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from edgetrain.hardware.dataflow import (
    KERNEL_OF,
    Bound,
    C,
    Dataflow,
    Extents,
    K,
    Map,
    R,
    S,
    Shape,
    X,
    Y,
    bind,
    positions,
)
from edgetrain.hardware.dataflow_steps import Case, Sizes, loops_of

INPUTS, WEIGHTS = (C, Y, X), (K, C, R, S)

Tensors = tuple[int, int, int]  # of inputs, weights, outputs


class Counts(NamedTuple):
    """What one image of one group costs.

    macs: as mapped, more than the layer's own where maps overlap; shared, local: accesses, reads and writes, of the
    shared buffer (L2) and of the units' own (L1); shared_needed, local_needed: elements that they must hold, the next
    step's beside the current one's.
    """

    cycles: int
    macs: int
    shared: Tensors
    local: Tensors
    shared_needed: Tensors
    local_needed: Tensors


class _Level(NamedTuple):
    """Of one cluster: cycles, MACs; what came in (inputs, weights) from outside, and that times who got it; outputs
    that left; elements of the first step."""

    cycles: int
    macs: int
    came: tuple[int, int]
    received: tuple[int, int]
    left: int
    first: Tensors


@lru_cache(maxsize=1 << 16)
def analyse(dataflow: Dataflow, shape: Shape, pes: int, bandwidth: int, lanes: int = 1) -> Counts:
    """One layer on `pes` units, `lanes` MACs a cycle each, `bandwidth` elements a cycle on every level's network.

    The dataflow's outermost cluster must fit: Bound.units(pes)[0] > 0.
    """
    bound = bind(dataflow, shape)
    outputs = (K, C, Y, X) if shape.depthwise else (K, Y, X)
    strides = (shape.stride_height, shape.stride_width)
    level = _cluster(bound.levels, bound.units(pes), strides, outputs, bandwidth, lanes).cost(shape.extents)
    sizes = volumes(shape.extents, strides, outputs)
    read_back = max(level.left - sizes[2], 0)  # partial sums that left before they were complete come in again
    return Counts(
        cycles=level.cycles,
        macs=level.macs,
        shared=(level.came[0] + sizes[0], level.came[1] + sizes[1], level.left + read_back),
        local=(level.received[0] + level.macs, level.received[1] + level.macs, 2 * level.macs),
        shared_needed=tuple(2 * size for size in level.first),
        local_needed=tuple(2 * size for size in volumes(innermost(bound, shape.extents), strides, outputs)),
    )


@lru_cache(maxsize=1 << 14)
def _cluster(
    levels: tuple[tuple[Map, ...], ...],
    units: tuple[int, ...],
    strides: tuple[int, int],
    outputs: tuple[int, ...],
    bandwidth: int,
    lanes: int,
) -> "_Cluster":
    """One for all layers and designs that are alike from this level down."""
    return _Cluster(levels, units, strides, outputs, bandwidth, lanes)


class _Cluster:
    """The units of one level, each a cluster of the next; of the last, a PE. Remembers what it was asked."""

    def __init__(
        self,
        levels: tuple[tuple[Map, ...], ...],
        units: tuple[int, ...],
        strides: tuple[int, int],
        outputs: tuple[int, ...],
        bandwidth: int,
        lanes: int,
    ) -> None:
        self.maps, self.units = (levels[0], units[0]) if levels else ((), 0)
        self.unit = _cluster(levels[1:], units[1:], strides, outputs, bandwidth, lanes) if levels else None
        self.strides, self.outputs, self.bandwidth, self.lanes = strides, outputs, bandwidth, lanes
        self.known: dict[Extents, _Level] = {}

    def cost(self, extents: Extents) -> _Level:
        """Of computing all that these extents hold."""
        if extents not in self.known:
            self.known[extents] = self._steps(extents, self.unit) if self.unit else self._products(extents)
        return self.known[extents]

    def _products(self, extents: Extents) -> _Level:
        inputs, weights, made = volumes(extents, self.strides, self.outputs)
        macs = made * prod(extents[d] for d in range(4) if d not in self.outputs)
        return _Level(-(-macs // self.lanes), macs, (inputs, weights), (inputs, weights), made, (inputs, weights, made))

    def _steps(self, extents: Extents, unit: "_Cluster") -> _Level:
        loops = list(loops_of(self.maps, extents, self.units))
        spatial = frozenset(one.dimension for one in self.maps if one.spatial)
        fresh = [_fresh(tensor, loops) for tensor in (INPUTS, WEIGHTS, self.outputs)]
        start = Sizes(0, extents, extents, extents, extents).after(loop[0] for loop in loops)
        cycles = macs = left = 0
        came, received = [0, 0], [0, 0]
        first: Tensors = (0, 0, 0)
        for cases in product(*loops):
            others = [place for place, case in enumerate(cases) if case is not loops[place][0]]
            moved = others[-1] if others else -1
            count = prod(cases[place].count for place in others)
            active, tile, tail, span, new = start.after(cases[place] for place in others) if others else start
            arrived = [0, 0]
            for index, tensor in enumerate((INPUTS, WEIGHTS)):
                if what := fresh[index][moved]:
                    part = [held.dimension for held in cases[moved].held] if what == "part" else ()
                    arrived[index] = prod(new[d] if d in part else span[d] for d in tensor)
                    each, last = (
                        prod(new[d] if d in part and d not in spatial else has[d] for d in tensor)
                        for has in (tile, tail)
                    )
                    came[index] += count * arrived[index]
                    received[index] += count * (each * (active - 1) + last)
            full = unit.cost(tile)
            final = full if tail == tile else unit.cost(tail)
            made = _made(tile, tail, span, spatial, active, self.strides, self.outputs)
            leaves = made if fresh[2][moved] else 0
            compute = full.cycles if active > 1 else final.cycles
            ingress, egress = -(-sum(arrived) // self.bandwidth), -(-leaves // self.bandwidth)
            cycles += count * (compute + ingress if moved < 0 else max(compute, ingress, egress))
            macs += count * (full.macs * (active - 1) + final.macs)
            left += count * leaves
            if moved < 0:
                first = (arrived[0], arrived[1], made)
        return _Level(cycles, macs, (came[0], came[1]), (received[0], received[1]), left, first)


def _fresh(tensor: tuple[int, ...], loops: list[tuple[Case, ...]]) -> list[str]:
    """What of a tensor changes when a loop is the innermost to move: "all", "part" along it, or ""; last: at the start.

    All when a loop of its own further in begins again.
    """
    changes, inside = ["all"], False
    for loop in reversed(loops):
        own = any(held.dimension in tensor for held in loop[0].held)
        changes.append("all" if inside else "part" if own else "")
        inside = inside or (own and len(loop) > 1)
    return changes[:0:-1] + changes[:1]


def _made(
    tile: Extents,
    tail: Extents,
    span: Extents,
    spatial: frozenset[int],
    active: int,
    strides: tuple[int, int],
    outputs: tuple[int, ...],
) -> int:
    """Outputs, complete or partial, that the active units of a step make together."""
    made = prod(span[d] for d in outputs if d not in KERNEL_OF)
    for side, stride in zip(KERNEL_OF, strides, strict=True):
        kernel = KERNEL_OF[side]
        whole, last = positions(tile[side], tile[kernel], stride), positions(tail[side], tail[kernel], stride)
        # rows that move together with the kernel's are the same output's: one sum over all units
        made *= whole * (active - 1) + last if side in spatial and kernel not in spatial else last
    return made


def volumes(extents: Extents, strides: tuple[int, int], outputs: tuple[int, ...]) -> Tensors:
    """Elements of the inputs, the weights and the outputs of a tile."""
    rows, columns = positions(extents[Y], extents[R], strides[0]), positions(extents[X], extents[S], strides[1])
    made = prod(extents[d] for d in outputs if d not in KERNEL_OF) * rows * columns
    return prod(extents[d] for d in INPUTS), prod(extents[d] for d in WEIGHTS), made


def innermost(bound: Bound, extents: Extents) -> Extents:
    """What one unit of the innermost level holds."""
    held = list(extents)
    for level in bound.levels:
        for one in level:
            held[one.dimension] = min(held[one.dimension], one.size)
    return tuple(held)
