"""Bit flips: codes worked by hand, brute force over orders, an array simulated wire by wire, invariants."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgetrain.errors import UserError
from edgetrain.hardware.datapath import (
    Array,
    distances,
    encode,
    hamming_distance,
    joules,
    layer_flips,
    normalised,
    product_flips,
    products,
    workload_flips,
)
from edgetrain.hardware.formats import Format
from edgetrain.hardware.workload import Activation, Layer, Loops, Operands, Workload

ROWS = np.array([[1, -1], [-2, 3], [1, -2], [-1, 3]])
TWOS = np.array([[0b0001, 0b1111], [0b1110, 0b0011], [0b0001, 0b1110], [0b1111, 0b0011]])
SIGNS = np.array([[0b0001, 0b1001], [0b1010, 0b0011], [0b0001, 0b1010], [0b1001, 0b0011]])
BY_HAND = {  # codes, distances, flips as written, fewest flips, flips of each column: as written and fewest
    "twos_complement": (
        TWOS,
        [[0, 6, 1, 5], [6, 0, 7, 1], [1, 7, 0, 6], [5, 1, 6, 0]],
        (19, 7),
        (1, 3, 0, 2),
        [(11, 4), (8, 3)],
    ),
    "sign_magnitude": (
        SIGNS,
        [[0, 5, 2, 3], [5, 0, 5, 2], [2, 5, 0, 3], [3, 2, 3, 0]],
        (13, 7),
        (0, 2, 3, 1),
        [(7, 3), (6, 4)],
    ),
}
DATAFLOWS = ["output_stationary", "input_stationary", "weight_stationary"]
seeded = np.random.default_rng(0)


def fewest(codes) -> int:
    return min(hamming_distance(codes[list(order)]) for order in permutations(range(len(codes))))


@pytest.mark.parametrize("encoding", BY_HAND)
def test_four_rows_of_four_bits_are_as_worked_by_hand(encoding):
    wanted, between, (written, best), order, columns = BY_HAND[encoding]
    codes = encode(ROWS, 4, encoding)
    assert codes.tolist() == wanted.tolist()
    assert distances(codes).tolist() == between
    assert hamming_distance(codes) == written
    assert fewest(codes) == hamming_distance(codes[list(order)]) == best
    for column, (as_written, alone) in enumerate(columns):
        assert hamming_distance(codes[:, [column]]) == as_written
        assert fewest(codes[:, [column]]) == alone


def test_minus_one_and_one_differ_in_three_bits_of_four_or_in_the_sign():
    ends = np.array([[-1], [1]])
    assert hamming_distance(encode(ends, 4)) == 3
    assert hamming_distance(encode(ends, 4, "sign_magnitude")) == 1


def test_codes_cover_their_range_and_unsigned_values_have_all_bits():
    for bits in (2, 3, 8):
        half = 2 ** (bits - 1)
        assert sorted(encode(np.arange(-half, half), bits).tolist()) == list(range(2 * half))
        assert encode(np.arange(2 * half), bits).tolist() == list(range(2 * half))
        magnitudes = encode(np.arange(-half + 1, half), bits, "sign_magnitude").tolist()
        assert sorted(magnitudes) == [code for code in range(2 * half) if code != half]  # there is no -0
    assert encode(torch.tensor([-3]), 4).tolist() == [13]


@pytest.mark.parametrize(
    ("values", "bits", "encoding", "message"),
    [
        ([8], 3, "twos_complement", "values from 8 to 8 do not fit 3 bits in twos complement"),
        ([-1, 4], 3, "twos_complement", "values from -1 to 4 do not fit 3 bits"),
        ([-4], 3, "sign_magnitude", "values from -4 to -4 do not fit 3 bits in sign magnitude"),
        ([1], 33, "twos_complement", "bits=33: codes of 1 to 32 bits"),
        ([0.5], 8, "twos_complement", "codes are made of integers, not float64"),
    ],
)
def test_values_that_have_no_code_are_a_sentence(values, bits, encoding, message):
    with pytest.raises(UserError, match=message):
        encode(np.array(values), bits, encoding)


def test_uniform_codes_flip_half_of_their_bits():
    for bits in (4, 8, 16):
        codes = encode(seeded.integers(0, 2**bits, (4000, 8)), bits)
        assert normalised(codes, bits) == pytest.approx(0.5, abs=0.01)
    assert normalised(codes[:1], 16) == 0.0


def simulate(weights, inputs, array: Array) -> tuple[int, int]:
    """Drive the wires of an array step by step. A wire that has carried nothing yet does not flip."""
    counted = [0, 0]
    wires: dict[tuple[int, int], int] = {}

    def drive(side: int, row: list[int], new_tile: bool, times: int) -> None:
        for lane, code in enumerate(row):
            before = wires.get((side, lane))
            if before is not None and (array.boundaries or not new_tile):
                counted[side] += times * bin(before ^ code).count("1")
            wires[side, lane] = code

    w, a, rows, columns = weights.tolist(), inputs.tolist(), array.rows, array.columns
    terms, outputs, positions = len(w), len(w[0]), len(a[0])
    if array.dataflow == "output_stationary":
        for p in range(0, positions, rows):
            for k in range(0, outputs, columns):
                for c in range(terms):
                    drive(0, w[c][k : k + columns], c == 0, rows if array.hops else 1)
                    drive(1, a[c][p : p + rows], c == 0, columns if array.hops else 1)
        return counted[0], counted[1]
    standing, streaming, side = (positions, w, 0) if array.dataflow == "input_stationary" else (outputs, a, 1)
    for _ in range(0, standing, columns):
        for c in range(0, terms, rows):
            for step in range(len(streaming[0])):
                lanes = [streaming[term][step] for term in range(c, min(c + rows, terms))]
                drive(side, lanes, step == 0, columns if array.hops else 1)
    return counted[0], counted[1]


@given(
    st.integers(1, 6).flatmap(
        lambda terms: st.tuples(
            st.integers(1, 5).flatmap(lambda n: arrays(np.uint8, (terms, n))),
            st.integers(1, 5).flatmap(lambda n: arrays(np.uint8, (terms, n))),
        )
    ),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(DATAFLOWS),
    st.booleans(),
    st.booleans(),
)
def test_flips_are_those_of_an_array_driven_step_by_step(operands, rows, columns, dataflow, boundaries, hops):
    array = Array(rows, columns, dataflow, boundaries=boundaries, hops=hops)
    assert product_flips(*operands, array) == simulate(*operands, array)


def test_output_stationary_streams_each_operand_once_for_every_tile_of_the_other():
    weights, inputs = encode(seeded.integers(-8, 8, (6, 10)), 4), encode(seeded.integers(0, 16, (6, 7)), 4)
    flips = product_flips(weights, inputs, Array(3, 4))
    assert flips == (3 * hamming_distance(weights), 3 * hamming_distance(inputs))  # ceil(7 / 3) and ceil(10 / 4)


def product() -> tuple:
    return seeded.integers(-8, 8, (9, 5)), seeded.integers(-8, 8, (9, 6))


@pytest.mark.parametrize("encoding", ["twos_complement", "sign_magnitude"])
def test_an_order_of_the_terms_changes_flips_and_not_the_product(encoding):
    weights, inputs = (np.clip(one, -7, 7) for one in product())
    order = seeded.permutation(9)
    assert np.array_equal(weights.T @ inputs, weights[order].T @ inputs[order])
    codes = [encode(one, 4, encoding) for one in (weights, inputs)]
    moved = [one[order] for one in codes]
    array = Array(4, 4, "output_stationary", encoding)
    assert product_flips(*codes, array) != product_flips(*moved, array)
    backwards = [one[::-1] for one in codes]
    assert product_flips(*backwards, array) == product_flips(*codes, array)


@pytest.mark.parametrize("dataflow", ["weight_stationary", "input_stationary"])
def test_an_order_of_the_terms_gains_nothing_where_they_are_lanes(dataflow):
    codes = [encode(one, 4) for one in product()]
    order = seeded.permutation(9)
    array = Array(4, 4, dataflow)
    assert product_flips(*(one[order] for one in codes), array) == product_flips(*codes, array)


def test_input_stationary_flips_follow_the_order_of_output_channels():
    weights, inputs = (encode(one, 4) for one in product())
    array = Array(4, 4, "input_stationary")
    assert product_flips(weights[:, ::-1], inputs, array) == product_flips(weights, inputs, array)
    counts = {product_flips(weights[:, list(order)], inputs, array)[0] for order in permutations(range(5))}
    assert len(counts) > 1


def test_the_best_order_of_one_lane_is_never_worse_than_one_order_of_all():
    codes = encode(seeded.integers(-8, 8, (6, 4)), 4)
    by_lanes = [sum(fewest(codes[:, lane : lane + size]) for lane in range(0, 4, size)) for size in (1, 2, 4)]
    assert by_lanes == sorted(by_lanes)


def conv(loops: Loops, bits: int = 4, **changes) -> Layer:
    """A convolution with random operands of its loops' sizes."""
    shape = (loops.out_channels, loops.in_channels // loops.groups, loops.kernel_height, loops.kernel_width)
    image = (loops.batch, loops.in_channels, loops.in_height, loops.in_width)
    half = 2 ** (bits - 1)
    operands = Operands(seeded.integers(-half + 1, half, shape), seeded.integers(0, half, image))
    x = Activation("x", image, Format(bits))
    facts = {"macs": loops.macs, "weight_format": Format(bits), "operands": operands} | changes
    return Layer("conv", "conv", loops, (x,), (), **facts)


@pytest.mark.parametrize(
    "loops",
    [
        Loops(2, 1, 4, 3, 3, 2, 3, 2, 2, 1),
        Loops(1, 2, 4, 6, 3, 3, 2, 2),
        Loops(1, 3, 3, 3, 4, 4, 3, 3),
        Loops(3, 1, 5, 7),
    ],
)
def test_the_product_view_of_a_layer_is_torchs_convolution(loops):
    layer = conv(loops, 8)
    pairs = list(products(layer, layer.operands, "twos_complement"))
    signed = [(w.view(np.int8).astype(np.int64), a.view(np.int8).astype(np.int64)) for w, a in pairs]
    out = np.concatenate([w.T @ a for w, a in signed])  # [output channel, position]
    weights, inputs = torch.from_numpy(layer.operands.weights), torch.from_numpy(layer.operands.inputs)
    stride = (loops.stride_height, loops.stride_width)
    wanted = torch.nn.functional.conv2d(inputs.double(), weights.double(), stride=stride, groups=loops.groups)
    assert out.reshape(-1, loops.batch, loops.out_height, loops.out_width).tolist() == wanted.transpose(0, 1).tolist()


def test_input_channels_are_innermost_in_time():
    loops = Loops(1, 1, 1, 2, 1, 1, 1, 3)
    layer = conv(loops, operands=Operands(np.array([[[[1, 2, 3]], [[4, 5, 6]]]]), np.zeros((1, 2, 1, 3), np.int64)))
    ((weights, _),) = products(layer, layer.operands, "twos_complement")
    assert weights[:, 0].tolist() == [1, 4, 2, 5, 3, 6]


def test_a_layers_flips_are_those_of_its_groups_and_its_nhd_of_its_streams():
    loops = Loops(1, 2, 4, 6, 3, 3, 2, 2)
    layer, array = conv(loops, weight_format=Format(5)), Array(4, 2)
    flips = layer_flips(layer, array)
    pairs = list(products(layer, layer.operands, "twos_complement"))
    counted = np.sum([product_flips(w, a, array) for w, a in pairs], 0)
    assert [flips.weights, flips.inputs, flips.total] == [*counted, counted.sum()]
    steps = 3 * 2 * 2 - 1
    assert flips.weights_nhd == pytest.approx(sum(hamming_distance(w) for w, _ in pairs) / (steps * 4 * 5))  # 5 bits
    assert flips.inputs_nhd == pytest.approx(sum(hamming_distance(a) for _, a in pairs) / (steps * 2 * 9 * 4))
    standing = layer_flips(layer, Array(4, 2, "weight_stationary"))
    assert (standing.weights, standing.weights_nhd) == (0, 0.0)
    assert standing.inputs_nhd == pytest.approx(np.mean([normalised(a.T, 4) for _, a in pairs]))


def test_a_linear_layer_streams_its_features():
    weights, inputs = seeded.integers(-8, 8, (5, 9)), seeded.integers(-8, 8, (2, 3, 9))
    operands = Operands(weights[:, :, None, None], inputs.transpose(0, 2, 1)[..., None])
    layer = conv(Loops(2, 1, 5, 9, 3), operands=operands)
    w, a = encode(weights.T, 4), encode(inputs.reshape(6, 9).T, 4)
    flips = layer_flips(layer, Array(2, 2))
    assert (flips.weights, flips.inputs) == (3 * hamming_distance(w), 3 * hamming_distance(a))


def test_energy_needs_coefficients_of_ones_own():
    flips = layer_flips(conv(Loops(1, 1, 4, 6, 3, 3)), Array(2, 2))
    expected = 2.0 * flips.macs + 3.0 * flips.weights + 5.0 * flips.inputs
    assert joules(flips, 2.0, 3.0, 5.0) == expected


def test_layers_without_operands_are_uncovered_and_named():
    known, unknown = conv(Loops(1, 1, 2, 2, 2, 2)), conv(Loops(1, 1, 2, 2, 2, 2), operands=None)
    pool = Layer("pool", "pool", Loops())
    first, second = workload_flips(Workload("w", (known, unknown, pool)), Array(2, 2))
    assert first.total > 0
    assert not first.uncovered
    assert second.total == 0
    assert "no integer operands" in second.uncovered


def test_operands_that_are_not_the_layers_are_a_sentence():
    loops = Loops(1, 1, 2, 3, 2, 2)
    swapped = Operands(np.zeros((3, 2, 1, 1), np.int64), np.zeros((1, 3, 2, 2), np.int64))
    with pytest.raises(UserError, match=r"layer 'conv': its operands are \[3, 2, 1, 1\] and \[1, 3, 2, 2\]"):
        layer_flips(conv(loops, operands=swapped), Array(2, 2))
    wide = Operands(np.full((2, 3, 1, 1), 99), np.zeros((1, 3, 2, 2), np.int64))
    with pytest.raises(UserError, match="layer 'conv': values from 99 to 99 do not fit 4 bits"):
        layer_flips(conv(loops, operands=wide), Array(2, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows=0 must be at least 1"),
        ({"dataflow": "output_stationery"}, "dataflow=output_stationery is none of .*did you mean 'output_stationary'"),
        ({"encoding": "grey"}, "encoding=grey is none of twos_complement, sign_magnitude"),
    ],
)
def test_an_array_that_cannot_be_is_a_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        Array(**{"rows": 2, "columns": 2} | changes)


def test_sign_magnitude_saves_a_quarter_of_the_flips_of_small_weights():
    laplace = np.clip(np.round(seeded.laplace(0, 1.0, (192, 64))), -7, 7).astype(np.int64)  # most within two steps
    twos, signs = (normalised(encode(laplace, 4, name), 4) for name in BY_HAND)
    assert signs < 0.8 * twos
