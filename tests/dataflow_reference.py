"""A slow, obvious reference for `maestro`: every step of every unit, with sets of the elements that each one holds."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import product

from edgetrain.hardware.dataflow import DIMENSIONS, Bound, Shape

Region = dict[str, range]
TENSORS = {"inputs": "CYX", "weights": "KCRS"}


@dataclass
class Walk:
    """What came of a walk through all steps; macs: every product, with how often it was computed."""

    cycles: int = 0
    macs: Counter = field(default_factory=Counter)
    came: Counter = field(default_factory=Counter)
    received: Counter = field(default_factory=Counter)
    left: int = 0


def walk(bound: Bound, shape: Shape, pes: int, bandwidth: int) -> Walk:
    whole = {letter: range(extent) for letter, extent in zip(DIMENSIONS, shape.extents, strict=True)}
    levels = [[(DIMENSIONS[one.dimension], *one[1:]) for one in level] for level in bound.levels]
    return _walk(levels, list(bound.units(pes)), whole, shape, bandwidth)


def _walk(levels: list, units: list[int], region: Region, shape: Shape, bandwidth: int) -> Walk:
    if not levels:
        macs = Counter(_products(region, shape))
        return Walk(cycles=macs.total(), macs=macs)
    total = Walk()
    before: list[Region | None] = [None] * units[0]
    made_before: set | None = None
    for now in _steps(levels[0], units[0], region):
        inside = [_walk(levels[1:], units[1:], held, shape, bandwidth) for held in now]
        arrived = 0
        for tensor, letters in TENSORS.items():
            new = [
                _elements(held, letters) - (_elements(old, letters) if old else set())
                for held, old in zip(now, before, strict=False)
            ]
            total.came[tensor] += len(set().union(*new))
            total.received[tensor] += sum(map(len, new))
            arrived += len(set().union(*new))
        made = {(k, c if shape.depthwise else 0, y, x) for one in inside for k, c, _, _, y, x in one.macs}
        leaves = len(made) if made != made_before else 0
        compute = max(one.cycles for one in inside)
        ingress, egress = -(-arrived // bandwidth), -(-leaves // bandwidth)
        total.cycles += compute + ingress if made_before is None else max(compute, ingress, egress)
        total.left += leaves
        for one in inside:
            total.macs += one.macs
        before, made_before = [*now, *[None] * (units[0] - len(now))], made
    return total


def _steps(level: list, units: int, region: Region):
    """The regions of all active units, step after step."""
    spatial = [one for one in level if one[1]]
    loops = []
    for one in level:
        letter, in_space, size, offset = one
        starts = list(range(region[letter].start, region[letter].stop, offset))
        reach = region[letter].stop - size
        starts = [start for start in starts if start - offset < reach or start == region[letter].start]
        tiles = [range(start, min(start + size, region[letter].stop)) for start in starts]
        if not in_space:
            loops.append([[{letter: tile}] for tile in tiles])
        elif one is spatial[0]:
            loops.append([])
            together = tiles and [{letter: tile} for tile in tiles]
        else:
            together = [{**old, letter: tile} for old, tile in zip(together, tiles, strict=False)]
        if one is spatial[-1]:
            place = next(i for i, loop in enumerate(loops) if not loop)
            loops[place] = [together[i : i + units] for i in range(0, len(together), units)]
    for chosen in product(*loops):
        active = max(len(part) for part in chosen)
        yield [
            {**region, **{k: v for part in chosen for k, v in part[min(unit, len(part) - 1)].items()}}
            for unit in range(active)
        ]


def _elements(region: Region, letters: str) -> set:
    return set(product(*(region[letter] for letter in letters)))


def _outputs(side: range, kernel: range, stride: int) -> list[int]:
    """Outputs whose whole window, as far as these rows of the kernel reach, is held."""
    return [
        start // stride
        for start in range(side.start - kernel.start, side.stop - kernel.stop + 1)
        if start % stride == 0 and start >= 0
    ]


def _products(region: Region, shape: Shape):
    rows = _outputs(region["Y"], region["R"], shape.stride_height)
    columns = _outputs(region["X"], region["S"], shape.stride_width)
    return product(*(region[letter] for letter in "KCRS"), rows, columns)
