"""The steps of one level of a dataflow: what its units hold in each, and which steps are alike.

A loop has up to three cases of steps: the first, the steady ones, and a last one that is smaller.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from edgetrain.hardware.dataflow import Extents, Map


class Held(NamedTuple):
    """Of one dimension in one step: what a unit holds, what the last active one does, all together, what is new."""

    dimension: int
    tile: int
    tail: int
    span: int
    new: int


class Case(NamedTuple):
    """Steps of one loop that do the same; active: units at work, 0 where the loop is in time."""

    count: int
    active: int
    held: tuple[Held, ...]


class Sizes(NamedTuple):
    """Of one step: active units, and of all six dimensions what `Held` says of one."""

    active: int
    tile: Extents
    tail: Extents
    span: Extents
    new: Extents

    def after(self, cases: Iterable[Case]) -> "Sizes":
        """With these loops in these cases."""
        active, rows = self.active, [list(row) for row in self[1:]]
        for case in cases:
            active = case.active or active
            for dimension, *sizes in case.held:
                for row, size in zip(rows, sizes, strict=True):
                    row[dimension] = size
        return Sizes(active, *map(tuple, rows))


def loops_of(maps: tuple[Map, ...], extents: Extents, units: int) -> Iterator[tuple[Case, ...]]:
    """The cases of each loop, outermost first. Spatial maps of one level move together, at the place of the first."""
    spatial = [one for one in maps if one.spatial]
    for one in maps:
        if not one.spatial:
            size, count, last = _tiles(one, extents)
            new, ragged = min(size, one.offset), last != size
            cases = [Case(1, 0, (Held(one.dimension, size, size, size, size),))]
            if steady := count - 1 - ragged:
                cases.append(Case(steady, 0, (Held(one.dimension, size, size, size, new),)))
            if ragged:
                cases.append(Case(1, 0, (Held(one.dimension, last, last, last, max(last - size + new, 0)),)))
            yield tuple(cases)
        elif one is spatial[0]:
            yield tuple(_spatial_cases(spatial, extents, units))


def _spatial_cases(maps: list[Map], extents: Extents, units: int) -> Iterator[Case]:
    tiles = [_tiles(one, extents) for one in maps]
    total = min(count for _, count, _ in tiles)
    rounds = -(-total // units)
    remaining = total - (rounds - 1) * units

    def case(count: int, active: int, final: bool) -> Case:
        held = []
        for one, (size, tiles_of_it, last) in zip(maps, tiles, strict=True):
            tail = last if final and tiles_of_it == total else size
            span = min(size, one.offset) * (active - 1) + tail
            held.append(Held(one.dimension, size, tail, span, span))
        return Case(count, active, tuple(held))

    if rounds == 1:
        yield case(1, remaining, True)
        return
    ragged = remaining != units or any(last != size for size, _, last in tiles)
    yield case(1, units, False)
    if steady := rounds - 1 - ragged:
        yield case(steady, units, False)
    if ragged:
        yield case(1, remaining, True)


def _tiles(one: Map, extents: Extents) -> tuple[int, int, int]:
    """Size of a map cut to what there is, how many there are, and the size of the last."""
    extent = extents[one.dimension]
    size = min(one.size, extent)
    count = min(1 - (size - extent) // one.offset, -(-extent // one.offset))  # the latter where maps leave gaps
    return size, count, min(size, extent - (count - 1) * one.offset)
