"""Tiles and loop orders of one layer on Bit Fusion: all of them at once, and the fastest.

A layer is cut into tiles along five loops; a tile has to fit half of each buffer, as the other half is being filled
meanwhile. The order of the loops decides what a buffer keeps: from the innermost loop outwards a tensor grows with each
loop that indexes it, until it no longer fits its half; every loop further out then fetches it again. Fewest cycles win,
then least energy. The model is that of the simulator that came with the paper (Sharma et al. 2018, arXiv 1712.01507).

Arrays have a column for every tiling and, once orders matter, a row for every order. A set of loops is a number with a
bit for each loop. Sizes are float64, which is exact up to 2^53 bits.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import permutations
from math import prod
from typing import NamedTuple

import numpy as np

LOOPS = BATCH, WIDTH, HEIGHT, INPUTS, OUTPUTS = range(5)
Part = tuple[np.ndarray, np.ndarray]  # a loop's factor in a product: of one tile, and summed over all tiles


class Shape(NamedTuple):
    """A layer as the array sees it. unrolled: the host lays out the windows of the input (im2col), so that kernel and
    input channels are one loop."""

    batch: int
    height: int
    width: int
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    input_bits: int = 8
    weight_bits: int = 8
    unrolled: bool = False


class Energies(NamedTuple):
    """pJ of a cycle of the whole array, and of a bit by memory and direction."""

    cycle: float
    wbuf_read: float
    wbuf_write: float
    ibuf_read: float
    ibuf_write: float
    obuf_read: float
    obuf_write: float
    dram: float


class Array(NamedTuple):
    """The machine, set to a layer's widths.

    rows, columns: fusion units, inputs x outputs; lanes: products of a unit at a time; passes: cycles of one product;
    wbuf, ibuf, obuf: bytes; ragged: the last tile of a loop is billed at its own size, not as a full one, and a sum is
    fetched only once there is one.
    """

    rows: int
    columns: int
    lanes: int
    passes: int
    wbuf: int
    ibuf: int
    obuf: int
    sum_bits: int
    bits_per_cycle: int
    pj: Energies
    ragged: bool = False


class Run(NamedTuple):
    """What a layer takes: cycles, of which `stalls` wait for DRAM, and bits by memory and direction."""

    cycles: int
    stalls: int
    wbuf_read: int
    wbuf_write: int
    ibuf_read: int
    ibuf_write: int
    obuf_read: int
    obuf_write: int
    dram_read: int
    dram_write: int

    def times(self, count: int) -> "Run":
        return Run(*(count * value for value in self))

    def joules(self, pj: Energies) -> dict[str, float]:
        """Of the array, which idles for nothing while it waits, of the three buffers, and of DRAM."""
        core = (self.cycles - self.stalls) * pj.cycle
        sram = sum(bits * each for bits, each in zip(self[2:8], pj[1:7], strict=True))  # both in the buffers' order
        dram = (self.dram_read + self.dram_write) * pj.dram
        return {"core": core * 1e-12, "SRAM": sram * 1e-12, "DRAM": dram * 1e-12}


class Tilings(NamedTuple):
    """By loop: size of a tile, number of tiles, size of the last one."""

    tile: np.ndarray
    count: np.ndarray
    rest: np.ndarray

    def part(self, loop: int, size: Callable[[np.ndarray], np.ndarray] = np.positive) -> Part:
        one = size(self.tile[loop])
        return one, (self.count[loop] - 1) * one + size(self.rest[loop])


@lru_cache(maxsize=2**16)
def search(shape: Shape, array: Array) -> Run | None:
    """The fastest run over all tilings and loop orders, or None when even the smallest tile does not fit."""
    tilings = fitting_tilings(shape, array)
    if not tilings.tile.size:
        return None
    inside = loops_inside(tuple(loop for loop in LOOPS if (tilings.count[loop] > 1).any()))
    weights, inputs, outputs = buffered(shape, array, tilings)
    wbuf, first_wbuf = fetches(weights, array.wbuf, tilings.count, inside)
    ibuf, first_ibuf = fetches(inputs, array.ibuf, tilings.count, inside)
    stored, last_stored = fetches(outputs, array.obuf, tilings.count, inside)
    sums, first_sums = stored, last_stored  # official: every visit of an output fetches it, the first one too
    if array.ragged:
        sums, first_sums = stored - prod(total for _, total in outputs.values()), 0.0

    compute = compute_cycles(shape, array, tilings)
    read, first = wbuf + ibuf + sums, first_wbuf + first_ibuf + first_sums
    fill = np.ceil(first / array.bits_per_cycle) + np.ceil(last_stored / array.bits_per_cycle)
    between = np.ceil((read + stored - first - last_stored) / array.bits_per_cycle)
    stalls = np.maximum(0, between - compute) + fill
    cycles = compute + stalls

    fastest = np.nonzero(cycles == cycles.min())
    of_weights, of_inputs, of_outputs = (bits[fastest[1]] for bits in accesses(shape, array, tilings))
    wbuf, ibuf, sums, stored = (bits[fastest] for bits in (wbuf, ibuf, sums, stored))
    runs = Run(
        cycles=cycles[fastest],
        stalls=stalls[fastest],
        wbuf_read=of_weights,
        wbuf_write=wbuf,
        ibuf_read=of_inputs,
        ibuf_write=ibuf,
        obuf_read=of_outputs + stored,
        obuf_write=of_outputs + sums,
        dram_read=wbuf + ibuf + sums,
        dram_write=stored,
    )
    best = np.argmin(sum(runs.joules(array.pj).values()))
    return Run(*(int(values[best]) for values in runs))


def fitting_tilings(shape: Shape, array: Array) -> Tilings:
    """Powers of two and the whole; width and height go together; output channels in multiples of the columns."""
    whole = (shape.batch, shape.width, shape.height, shape.inputs, shape.outputs)
    unit = 1 if shape.unrolled else array.columns
    axes = (shape.batch, 1), (max(shape.width, shape.height), 1), (shape.inputs, 1), (shape.outputs, unit)
    batch, side, inputs, outputs = (grid.ravel() for grid in np.meshgrid(*map(powers, axes), indexing="ij"))
    tile = np.stack([batch, np.minimum(side, shape.width), np.minimum(side, shape.height), inputs, outputs])
    count = np.ceil(np.array(whole, float)[:, None] / tile)
    rest = np.array(whole, float)[:, None] - (count - 1) * tile if array.ragged else tile
    every = Tilings(tile, count, rest)
    halves = (8 * size / 2 for size in (array.wbuf, array.ibuf, array.obuf))
    held = (prod(one for one, _ in parts.values()) for parts in buffered(shape, array, every))
    fits = np.logical_and.reduce([bits <= half for bits, half in zip(held, halves, strict=True)])
    return Tilings(*(sizes[:, fits] for sizes in every))


def powers(axis: tuple[int, int]) -> np.ndarray:
    """unit, 2 unit, 4 unit and so on below `whole`, then `whole`."""
    whole, unit = axis
    return np.array([*(unit << bit for bit in range(whole.bit_length()) if unit << bit < whole), whole], float)


def buffered(shape: Shape, array: Array, tilings: Tilings) -> tuple[dict[int, Part], ...]:
    """Bits in the buffers of weights, inputs and outputs, each a product over the loops that index it."""
    window, lanes = prod(shape.kernel), array.rows * array.lanes

    def span(axis: int) -> Callable[[np.ndarray], np.ndarray]:
        """Rows or columns of the input that an output's tile reads; of an unrolled layer the windows lie apart."""
        if shape.unrolled:
            return np.positive
        return lambda size: shape.kernel[axis] + (size - 1) * shape.stride[axis]

    weights = {
        INPUTS: tilings.part(INPUTS, lambda size: padded(window * size, lanes) * shape.weight_bits),
        OUTPUTS: tilings.part(OUTPUTS),
    }
    inputs = {
        BATCH: tilings.part(BATCH),
        HEIGHT: tilings.part(HEIGHT, span(0)),
        WIDTH: tilings.part(WIDTH, span(1)),
        INPUTS: tilings.part(INPUTS, lambda size: size * (window if shape.unrolled else 1) * shape.input_bits),
    }
    outputs = {
        BATCH: tilings.part(BATCH),
        HEIGHT: tilings.part(HEIGHT),
        WIDTH: tilings.part(WIDTH),
        OUTPUTS: tilings.part(OUTPUTS, lambda size: padded(size, array.columns) * array.sum_bits),
    }
    return weights, inputs, outputs


def padded(size: np.ndarray, unit: int) -> np.ndarray:
    return np.ceil(size / unit) * unit


def compute_cycles(shape: Shape, array: Array, tilings: Tilings) -> np.ndarray:
    """passes x batch x height x width x ceil(outputs / columns) x kernel x ceil(inputs / (rows x lanes))."""
    window, lanes = prod(shape.kernel), array.rows * array.lanes

    def steps(size: np.ndarray) -> np.ndarray:
        return np.ceil(window * size / lanes) if shape.unrolled else window * np.ceil(size / lanes)

    parts = [tilings.part(loop) for loop in (BATCH, HEIGHT, WIDTH)]
    parts += [tilings.part(OUTPUTS, lambda size: np.ceil(size / array.columns)), tilings.part(INPUTS, steps)]
    return array.passes * prod(total for _, total in parts)


def accesses(shape: Shape, array: Array, tilings: Tilings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits that the array reads from the buffers of weights and inputs, and reads and writes in that of outputs.

    One of the three stays in the array while the loops inside run: the one whose stay costs the fewest bits.
    """
    window, lanes = prod(shape.kernel), array.rows * array.lanes
    tile, bits = tilings.tile, np.array([shape.weight_bits, shape.input_bits, array.sum_bits], float)[:, None]
    points = tile[BATCH] * tile[HEIGHT] * tile[WIDTH]
    deep = padded(window * tile[INPUTS], lanes) if shape.unrolled else window * padded(tile[INPUTS], lanes)
    reuse = np.stack([points, padded(tile[OUTPUTS], array.columns), deep])  # of weights, inputs, outputs
    costs = [bits.sum(0) - bits[kept] + bits[kept] / reuse[kept] for kept in range(3)]  # bits a product
    stays = np.array([1, 2, 0])[np.argmin(np.stack([costs[1], costs[2], costs[0]]), axis=0)]
    products = window * prod(tilings.part(loop)[1] for loop in LOOPS)
    kept_once = (
        window * prod(tilings.part(loop)[1] for loop in (INPUTS, OUTPUTS)) * prod(tilings.count[:3]),
        window * prod(tilings.part(loop)[1] for loop in (BATCH, HEIGHT, WIDTH, INPUTS)) * tilings.count[OUTPUTS],
        prod(tilings.part(loop)[1] for loop in (BATCH, HEIGHT, WIDTH, OUTPUTS)) * tilings.count[INPUTS],
    )
    weights, inputs, outputs = (np.where(stays == kept, kept_once[kept], products) * bits[kept] for kept in range(3))
    return weights, inputs, outputs


@lru_cache
def loops_inside(active: tuple[int, ...]) -> np.ndarray:
    """[loop, order]: the set of loops inside a loop, for every order of those that run more than once."""
    orders = list(permutations(active))  # from the innermost outwards
    idle = sum(1 << loop for loop in LOOPS if loop not in active)
    inside = np.full((len(LOOPS), len(orders)), idle)
    for number, order in enumerate(orders):
        for place, loop in enumerate(order):
            inside[loop, number] = idle + sum(1 << other for other in order[:place])
    return inside


def fetches(
    parts: dict[int, Part], buffer: int, count: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[order, tiling]: bits that move between DRAM and a buffer, and those of them that it holds at one time."""
    size = prod(one for one, _ in parts.values())[None]
    for loop in LOOPS:  # to [set of loops, tiling]: what a tensor has grown to when these loops are inside
        grown = size / parts[loop][0] * parts[loop][1] if loop in parts else size
        size = np.concatenate([size, grown])
    spilled = size > 8 * buffer / 2
    kept = np.where(spilled, 0, size)
    moved, held = size[-1], size[0]
    for loop in LOOPS:
        if loop in parts:
            held = np.maximum(held, kept[inside[loop] | 1 << loop])
        else:
            moved = moved * np.where(spilled, count[loop], 1)[inside[loop]]
    return moved, held
