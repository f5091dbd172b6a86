"""Memory of activations: what lives at once while a workload runs, and a place for each tensor in one arena.

A tensor lives from the layer that writes it to the last one that reads it; so both ends of a residual connection are
kept alive by their readers, and a chain needs input and output of its widest layer (ping-pong). The most that lives at
once is a lower bound of any plan; to meet it always is NP-hard (dynamic storage allocation). Two plans are made and the
smaller one taken: largest tensor first (Pisarchyk and Lee 2020, arXiv 2001.03288), and first written first at alternate
ends of the arena, which meets the bound on every chain.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from edgetrain.errors import UserError
from edgetrain.hardware.workload import Layer, Workload

IN_PLACE_KINDS = frozenset({"pool", "elementwise", "norm", "softmax"})
Scratch = Callable[[Layer], int]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A stretch of memory that lives from layer `first` to layer `last`, both included.

    over: the tensor whose place it takes over at `first`, written in place; empty for none.
    """

    name: str
    bytes: int
    first: int
    last: int
    over: str = ""


Group = list[Tensor]  # each written over the one before, so that all share an offset


@dataclass(frozen=True, slots=True)
class Placement:
    """A tensor's bytes [offset, offset + bytes) of the arena."""

    tensor: Tensor
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.tensor.bytes


@dataclass(frozen=True)
class ActivationMemory:
    """live: bytes that live at each layer, its scratch included; state_bytes: what lives on between invocations, which
    stands apart; placements: the plan, aligned."""

    live: tuple[int, ...]
    state_bytes: int
    placements: tuple[Placement, ...]

    @property
    def peak(self) -> int:
        """The most that lives at once, without state: no plan needs less."""
        return max(self.live, default=0)

    @property
    def peak_layer(self) -> int:
        """Index of the first layer at the peak."""
        return self.live.index(self.peak) if self.live else 0

    @property
    def arena_bytes(self) -> int:
        """What the plan needs, without state."""
        return max((placement.end for placement in self.placements), default=0)


def lifetimes(workload: Workload, in_place: bool = True) -> tuple[Tensor, ...]:
    """Every tensor but state, in the order in which they are written.

    The workload's inputs live from the start, its outputs to the end; a tensor that nobody reads lives while it is
    written. in_place: a pool, elementwise, norm or softmax layer writes over an input that it is the last to read, if
    that is large enough; the largest such one.
    """
    first: dict[str, int] = dict.fromkeys(workload.inputs, 0)
    last: dict[str, int] = dict(first)
    size: dict[str, int] = {}
    state: set[str] = set()
    for index, layer in enumerate(workload):
        for tensor in (*layer.inputs, *layer.outputs):
            first.setdefault(tensor.name, index)
            last[tensor.name] = index
            size[tensor.name] = max(size.get(tensor.name, 0), tensor.bytes)
            if tensor.state:
                state.add(tensor.name)
    written = {tensor.name for layer in workload for tensor in layer.outputs}
    for name in size:
        if name not in written:  # from outside, whether or not the workload lists it
            first[name] = 0
    last.update(dict.fromkeys(workload.outputs, len(workload) - 1))
    over = _taken_over(workload, first, last, size, state) if in_place else {}
    names = sorted((name for name in size if name not in state), key=first.__getitem__)
    return tuple(Tensor(name, size[name], first[name], last[name], over.get(name, "")) for name in names)


def _taken_over(
    workload: Workload, first: dict[str, int], last: dict[str, int], size: dict[str, int], state: set[str]
) -> dict[str, str]:
    """The input that an output is written over, by the output's name."""
    over: dict[str, str] = {}
    kept = state.union(workload.outputs)
    for index, layer in enumerate(workload):
        if not _runs_in_place(layer) or len(layer.outputs) != 1:
            continue
        output = layer.outputs[0].name
        dying = {
            tensor.name
            for tensor in layer.inputs
            if last[tensor.name] == index and size[tensor.name] >= size[output] and tensor.name not in kept
        }
        if dying and first[output] == index and output not in dying and output not in state:
            over[output] = max(sorted(dying), key=size.__getitem__)
    return over


def _runs_in_place(layer: Layer) -> bool:
    """Whether an output may overwrite what later outputs do not read any more.

    Output i of a pool reads from i * stride - padding on, which must not be before i; padding is half the kernel at
    most.
    """
    if layer.kind != "pool":
        return layer.kind in IN_PLACE_KINDS
    loops = layer.loops
    height = loops.out_height == 1 or loops.stride_height - 1 >= loops.kernel_height // 2
    width = loops.out_width == 1 or loops.stride_width - 1 >= loops.kernel_width // 2
    return height and width


def plan(
    workload: Workload, in_place: bool = True, scratch: Scratch | None = None, alignment: int = 16
) -> ActivationMemory:
    """Live bytes at each layer, and offsets in one arena. scratch: bytes that a kernel needs beside its tensors.

    Raises UserError for an alignment below one byte.
    """
    if alignment < 1:
        raise UserError(f"alignment={alignment}: tensors stand at multiples of at least 1 byte")
    tensors = list(lifetimes(workload, in_place))
    if scratch is not None:
        needed = ((index, layer, scratch(layer)) for index, layer in enumerate(workload))
        tensors += [Tensor(f"{layer.name} scratch", size, index, index) for index, layer, size in needed if size]
    state = {name: tensor.bytes for name, tensor in workload.activations.items() if tensor.state}
    live = _live(tensors, len(workload))
    groups = _sharing_a_place(tensors)
    plans = [
        ActivationMemory(tuple(live), sum(state.values()), tuple(placed))
        for placed in (_largest_first(groups, alignment), _at_both_ends(groups, alignment, max(live, default=0)))
    ]
    return min(plans, key=lambda memory: memory.arena_bytes)


def _live(tensors: Iterable[Tensor], layers: int) -> list[int]:
    """Bytes at each layer; a tensor written over another counts from the next layer on, the other being larger."""
    change = [0] * (layers + 1)
    for tensor in tensors:
        change[tensor.first + bool(tensor.over)] += tensor.bytes
        change[tensor.last + 1] -= tensor.bytes
    live, total = [], 0
    for step in change[:layers]:
        total += step
        live.append(total)
    return live


def _sharing_a_place(tensors: Iterable[Tensor]) -> list[Group]:
    groups: dict[str, Group] = defaultdict(list)
    root: dict[str, str] = {}
    for tensor in tensors:  # a tensor comes after the one that it is written over
        root[tensor.name] = root[tensor.over] if tensor.over else tensor.name
        groups[root[tensor.name]].append(tensor)
    return list(groups.values())


def _largest_first(groups: list[Group], alignment: int) -> list[Placement]:
    arena = _Arena(alignment, sum(map(len, groups)))
    for group in sorted(groups, key=_size, reverse=True):
        arena.place(group, arena.lowest(group))
    return arena.placements


def _at_both_ends(groups: list[Group], alignment: int, end: int) -> list[Placement]:
    """In the order of writing, in turn at the start and before `end`; what lives at one layer alone fills the gaps."""
    arena = _Arena(alignment, sum(map(len, groups)))
    lasting = [group for group in groups if group[0].first < group[-1].last]
    for number, group in enumerate(lasting):
        top = (end - _size(group)) // alignment * alignment
        arena.place(group, top if number % 2 and arena.fits(group, top) else arena.lowest(group))
    for group in groups:
        if group[0].first == group[-1].last:
            arena.place(group, arena.lowest(group))
    return arena.placements


def _size(group: Group) -> int:
    return max(tensor.bytes for tensor in group)


class _Arena:
    """Placements so far, and where there is room beside them."""

    def __init__(self, alignment: int, tensors: int) -> None:
        self.alignment = alignment
        self.placements: list[Placement] = []
        self._spans = np.empty((4, tensors), np.int64)  # first and last layer, offset and end of each

    def place(self, group: Group, offset: int) -> None:
        for tensor in group:
            self._spans[:, len(self.placements)] = tensor.first, tensor.last, offset, offset + tensor.bytes
            self.placements.append(Placement(tensor, offset))

    def lowest(self, group: Group) -> int:
        """The lowest aligned offset that is free over the group's whole life."""
        offset = 0
        for low, high in self._taken(group):
            if low < offset < high:
                offset = -(-high // self.alignment) * self.alignment
        return offset

    def fits(self, group: Group, offset: int) -> bool:
        return offset >= 0 and not any(low < offset < high for low, high in self._taken(group))

    def _taken(self, group: Group) -> list[tuple[int, int]]:
        """Open intervals of offsets at which the group would overlap what is there."""
        first, last, offset, end = self._spans[:, : len(self.placements)]
        intervals: set[tuple[int, int]] = set()
        for tensor in group:
            together = (first <= tensor.last) & (last >= tensor.first)
            lows, highs = offset[together] - tensor.bytes, end[together]
            intervals.update(zip(lows.tolist(), highs.tolist(), strict=True))
        return sorted(intervals)
