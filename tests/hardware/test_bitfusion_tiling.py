"""The search over tiles and loop orders against a slow one that follows every loop by hand."""

from dataclasses import dataclass
from itertools import permutations, product
from math import ceil, prod

import pytest

from edgetrain.hardware.bitfusion_tiling import Array, Energies, Run, Shape, search

PJ = Energies(10.0, 0.02, 0.03, 0.06, 0.11, 0.033, 0.073, 15.0)
LOOPS = ("batch", "width", "height", "inputs", "outputs")
INDEXED = {
    "wbuf": ("inputs", "outputs"),
    "ibuf": ("batch", "width", "height", "inputs"),
    "obuf": ("batch", "width", "height", "outputs"),
}


def array(**changes) -> Array:
    small = {"rows": 2, "columns": 4, "lanes": 2, "passes": 1, "wbuf": 96, "ibuf": 64, "obuf": 128, "sum_bits": 32}
    return Array(**small | {"bits_per_cycle": 12, "pj": PJ, "ragged": False} | changes)


@dataclass
class Slow:
    """One tiling, followed loop by loop."""

    shape: Shape
    array: Array
    tile: dict[str, int]

    def pieces(self, loop: str) -> list[int]:
        """Sizes of the tiles along a loop."""
        whole, tile = getattr(self.shape, loop), self.tile[loop]
        count = ceil(whole / tile)
        return [tile] * (count - 1) + [whole - (count - 1) * tile if self.array.ragged else tile]

    def share(self, buffer: str, loop: str, size: int) -> int:
        """What a piece of this size along a loop takes of a buffer."""
        shape, machine = self.shape, self.array
        window, lanes = prod(shape.kernel), machine.rows * machine.lanes
        match buffer, loop:
            case "wbuf", "inputs":
                return ceil(window * size / lanes) * lanes * shape.weight_bits
            case "ibuf", "inputs":
                return size * shape.input_bits * (window if shape.unrolled else 1)
            case "ibuf", "height" | "width" if not shape.unrolled:
                axis = ("height", "width").index(loop)
                return shape.kernel[axis] + (size - 1) * shape.stride[axis]
            case "obuf", "outputs":
                return ceil(size / machine.columns) * machine.columns * machine.sum_bits
        return size

    def in_one_tile(self, buffer: str) -> int:
        return prod(self.share(buffer, loop, self.tile[loop]) for loop in INDEXED[buffer])

    def fits(self) -> bool:
        return all(self.in_one_tile(buffer) <= getattr(self.array, buffer) * 8 / 2 for buffer in INDEXED)

    def fetches(self, buffer: str, order: tuple[str, ...]) -> tuple[int, int]:
        """Bits moved and bits held, from the innermost loop outwards."""
        moved = held = self.in_one_tile(buffer)
        kept = True
        for loop in order:
            if loop in INDEXED[buffer]:
                moved = moved // self.share(buffer, loop, self.tile[loop])
                moved *= sum(self.share(buffer, loop, piece) for piece in self.pieces(loop))
                if kept and moved > getattr(self.array, buffer) * 8 / 2:
                    kept = False
                elif kept:
                    held = moved
            elif not kept:
                moved *= len(self.pieces(loop))
        return moved, held

    def over_tiles(self, count) -> int:
        """A sum over every tile, one after another; only for few tiles."""
        return sum(
            count(**dict(zip(LOOPS, sizes, strict=True))) for sizes in product(*(self.pieces(loop) for loop in LOOPS))
        )

    def compute(self, batch: int, width: int, height: int, inputs: int, outputs: int) -> int:
        shape, machine = self.shape, self.array
        window, lanes = prod(shape.kernel), machine.rows * machine.lanes
        steps = ceil(window * inputs / lanes) if shape.unrolled else window * ceil(inputs / lanes)
        return machine.passes * batch * width * height * ceil(outputs / machine.columns) * steps

    def runs(self):
        """Every loop order. The array holds a sum until it is complete (output stationary)."""
        shape, machine = self.shape, self.array
        compute = self.over_tiles(self.compute)
        window = prod(shape.kernel)
        products = self.over_tiles(lambda batch, width, height, inputs, outputs: (
            batch * width * height * inputs * outputs * window
        ))  # fmt: skip
        sums = machine.sum_bits * self.over_tiles(lambda batch, width, height, inputs, outputs: (
            batch * width * height * outputs
        ))  # fmt: skip
        for order in permutations(LOOPS):
            (wbuf, first_w), (ibuf, first_i), (stored, last) = (self.fetches(buffer, order) for buffer in INDEXED)
            fetched, first = stored, first_w + first_i + last
            if machine.ragged:
                fetched -= prod(
                    sum(self.share("obuf", loop, piece) for piece in self.pieces(loop)) for loop in INDEXED["obuf"]
                )
                first -= last
            read = wbuf + ibuf + fetched
            fill = ceil(first / machine.bits_per_cycle) + ceil(last / machine.bits_per_cycle)
            stalls = max(0, ceil((read + stored - first - last) / machine.bits_per_cycle) - compute) + fill
            yield Run(
                cycles=compute + stalls,
                stalls=stalls,
                wbuf_read=products * shape.weight_bits,
                wbuf_write=wbuf,
                ibuf_read=products * shape.input_bits,
                ibuf_write=ibuf,
                obuf_read=sums + stored,
                obuf_write=sums + fetched,
                dram_read=read,
                dram_write=stored,
            )


def slow_search(shape: Shape, machine: Array) -> Run | None:
    def sizes(whole: int, unit: int = 1) -> list[int]:
        return [*(unit * 2**n for n in range(12) if unit * 2**n < whole), whole]

    best = None
    axes = (sizes(shape.batch), sizes(max(shape.width, shape.height)), sizes(shape.inputs))
    for batch, side, inputs in product(*axes):
        for outputs in sizes(shape.outputs, 1 if shape.unrolled else machine.columns):
            tile = (batch, min(side, shape.width), min(side, shape.height), inputs, outputs)
            slow = Slow(shape, machine, dict(zip(LOOPS, tile, strict=True)))
            for run in slow.runs() if slow.fits() else ():
                key = (run.cycles, sum(run.joules(PJ).values()))
                if best is None or key < best[0]:
                    best = (key, run)
    return best and best[1]


SHAPES = {
    "conv": Shape(2, 6, 6, 5, 9, (3, 3), (1, 1), 4, 4),
    "strided": Shape(1, 5, 3, 6, 10, (3, 2), (2, 1), 8, 2),
    "first": Shape(2, 5, 5, 3, 6, (3, 3), (2, 2), 8, 8, unrolled=True),
    "linear": Shape(3, 1, 1, 37, 21, input_bits=4, weight_bits=4),
    "tokens": Shape(1, 11, 1, 12, 9, input_bits=3, weight_bits=1),
}


@pytest.mark.parametrize("ragged", [False, True], ids=["official", "exact"])
@pytest.mark.parametrize("buffers", [{}, {"wbuf": 400, "ibuf": 200, "obuf": 600}], ids=["tight", "roomy"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_search_finds_what_following_every_loop_finds(name: str, buffers: dict[str, int], ragged: bool):
    machine = array(ragged=ragged, **buffers)
    expected = slow_search(SHAPES[name], machine)
    assert expected is not None
    assert search(SHAPES[name], machine) == expected


@pytest.mark.parametrize("ragged", [False, True], ids=["official", "exact"])
def test_with_buffers_for_everything_each_number_moves_once(ragged: bool):
    """Nothing is padded, so that the billings differ only in sums that are fetched before there are any."""
    shape = Shape(2, 4, 4, 8, 8, (3, 3), (1, 1), 8, 8)
    run = search(shape, array(wbuf=2**20, ibuf=2**20, obuf=2**20, ragged=ragged))
    weights, inputs, outputs = 3 * 3 * 8 * 8 * 8, 2 * 6 * 6 * 8 * 8, 2 * 4 * 4 * 8 * 32
    assert run.dram_read == weights + inputs + (0 if ragged else outputs)
    assert run.dram_write == outputs


def test_only_an_unrolled_layer_may_take_fewer_outputs_than_there_are_columns():
    """A buffer for the weights of two outputs: 2 x 12 weights of 8 bits in half of 60 bytes."""
    narrow = array(wbuf=60)
    found = search(SHAPES["first"], narrow)
    assert found is not None
    assert found == slow_search(SHAPES["first"], narrow)
    assert search(SHAPES["first"]._replace(unrolled=False), narrow) is None


def test_height_and_width_may_change_places():
    shape = Shape(2, 7, 4, 6, 10, (3, 1), (2, 1), 4, 8)
    turned = Shape(2, 4, 7, 6, 10, (1, 3), (1, 2), 4, 8)
    assert search(shape, array()) == search(turned, array())


def test_two_passes_double_the_compute_cycles():
    once, twice = (search(SHAPES["conv"], array(passes=passes, bits_per_cycle=10**6)) for passes in (1, 2))
    assert twice.cycles - twice.stalls == 2 * (once.cycles - once.stalls)


def test_an_array_of_one_row_keeps_inputs_instead_of_sums():
    """One lane: a sum of 32 bits would be fetched and stored for every product, so an input of 8 stays instead."""
    shape = Shape(1, 1, 1, 1, 8, input_bits=8, weight_bits=8)
    run = search(shape, array(rows=1, lanes=1, wbuf=2**10, ibuf=2**10, obuf=2**10))
    assert (run.ibuf_read, run.wbuf_read) == (8, 8 * 8)
    assert run.obuf_read == 8 * 32 + 8 * 32


def test_nothing_fits_in_no_buffer():
    assert search(SHAPES["conv"], array(obuf=8)) is None
