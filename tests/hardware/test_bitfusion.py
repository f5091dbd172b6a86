"""Bit Fusion against calculations by hand and identities, and what it says to a layer that it cannot cost."""

from dataclasses import replace
from math import ceil

import pytest
from bitfusion_results import device, layer, run, table

from edgetrain.errors import UserError
from edgetrain.hardware.bitfusion import first_convolutions
from edgetrain.hardware.bitfusion_networks import NETWORKS, network
from edgetrain.hardware.bitfusion_tiling import Run
from edgetrain.hardware.formats import FP32, Format
from edgetrain.hardware.workload import Activation, Layer, Loops, Workload

# By hand


def test_rnn_costs_what_the_hand_calculation_says():
    """4096 x 4096 at 4 bits, 16 at a time: 16 x ceil(4096 / 32) x ceil(4096 / (16 x 4)) cycles of computing."""
    (found,) = device().runs(network("RNN", batch=16))
    assert found.cycles - found.stalls == 16 * 128 * 64 == 131_072
    weights, inputs, sums = 4096 * 4096 * 4, 16 * 4096 * 4, 16 * 4096 * 32
    assert found.dram_read == 71_565_312 == weights + inputs + 2 * sums
    assert found.dram_write == 4_194_304 == 2 * sums
    assert found.cycles == 394_583 == ceil(75_759_616 / 192) + 1  # the fill is rounded up on its own


def test_exact_bills_the_last_tiles_of_the_lstm_at_their_own_size():
    """3600 outputs are 112.5 times 32 columns, 3600 inputs 56.25 times 64 lanes: 113 and 57 steps, however cut."""
    (found,) = device(billing="exact").runs(network("LSTM", batch=16))
    assert found.cycles - found.stalls == 16 * 113 * 57
    assert found.wbuf_read == found.ibuf_read == 16 * 3600 * 3600 * 4


@pytest.mark.parametrize(
    ("bits", "lanes"), [((8, 8), 1), ((4, 4), 4), ((2, 2), 16), ((8, 2), 4), ((1, 1), 16), ((3, 3), 4), ((6, 5), 1)]
)
@pytest.mark.parametrize("billing", ["official", "exact"])
def test_units_fuse_into_as_many_products_as_the_paper_says(bits: tuple[int, int], lanes: int, billing: str):
    assert device(billing=billing).fused(layer(bits=bits)) == (lanes, 1)


def test_on_wider_units_official_and_exact_part_at_three_bits():
    """16 / 3 is 5, but there is no fusing into five."""
    one = layer(bits=(3, 16))
    assert device(max_bits=16).fused(one) == (5, 1)
    assert device(max_bits=16, billing="exact").fused(one) == (4, 1)


LINEAR = {"kind": "linear", "batch": 16, "out_channels": 512, "in_channels": 1024}


def compute(found: Run) -> int:
    return found.cycles - found.stalls


def test_sixteen_bits_take_two_passes_an_operand():
    exact = device(billing="exact")
    eight, both, one = (compute(run(layer(bits=bits, **LINEAR), exact)) for bits in ((8, 8), (16, 16), (8, 16)))
    assert (both, one) == (4 * eight, 2 * eight)
    assert compute(run(layer(bits=(12, 2), **LINEAR), exact)) == eight // 4 * 2


@pytest.mark.parametrize("billing", ["official", "exact"])
def test_three_bits_compute_as_four_and_are_stored_as_three(billing: str):
    three, four = (run(layer(bits=(4, bits), **LINEAR), device(billing=billing)) for bits in (3, 4))
    assert compute(three) == compute(four)
    assert 4 * three.wbuf_write == 3 * four.wbuf_write
    assert 4 * three.wbuf_read == 3 * four.wbuf_read


@pytest.mark.parametrize("billing", ["official", "exact"])
def test_one_bit_computes_as_two_and_is_stored_as_one(billing: str):
    one, two = (run(layer(bits=(8, bits), **LINEAR), device(billing=billing)) for bits in (1, 2))
    assert compute(one) == compute(two)
    assert 2 * one.wbuf_write == two.wbuf_write


# Layers of other kinds


CONV = {"batch": 2, "out_height": 10, "out_width": 7, "kernel_height": 3, "kernel_width": 3}


def test_groups_are_a_sum_over_groups():
    whole = run(layer("grouped", groups=4, out_channels=64, in_channels=128, **CONV))
    assert whole == run(layer(out_channels=16, in_channels=32, **CONV)).times(4)


def test_a_depthwise_layer_fills_one_column():
    found = run(layer("depthwise", groups=24, out_channels=24, in_channels=24, **CONV))
    assert compute(found) == 24 * 2 * 10 * 7 * 3 * 3


def product(batch: int, heads: int, bits: tuple[int, int] = (8, 8)) -> Layer:
    one = layer("matmul", batch=batch, groups=heads, out_channels=heads * 40, in_channels=heads * 64, out_height=12)
    keys = Activation("keys", (1,), Format(bits[1]))
    return replace(one, inputs=(*one.inputs, keys), weight_format=FP32)


def test_a_product_of_activations_shares_nothing_between_heads_and_inferences():
    single = run(product(1, 1))
    assert run(product(3, 5)) == single.times(15)
    assert run(product(3, 1), device(batch=5)) == single.times(15)


def test_a_product_of_activations_has_the_width_of_its_second_input():
    assert compute(run(product(1, 1, (8, 2)))) == compute(run(product(1, 1))) / 4


def test_the_steps_of_a_recurrent_layer_wait_for_each_other():
    steps = layer("recurrent", batch=2, out_channels=256, in_channels=128, out_height=9)
    assert run(steps) == run(replace(steps, loops=steps.loops._replace(out_height=1))).times(9)


def test_only_products_are_covered():
    cost = device().cost(
        table(layer(out_channels=4, in_channels=3), layer("pool", name="pool", groups=4, out_channels=4, in_channels=4))
    )
    assert [row.name for row in cost.uncovered] == ["pool"]
    assert cost.rows[1].uncovered == "only products are billed; everything else is free in the paper's simulator"
    assert (cost.rows[1].seconds, cost.rows[1].joules) == (0, None)


def test_a_layer_without_anything_to_compute_is_not_covered():
    (row,) = device().cost(table(replace(layer(), degenerate=True))).rows
    assert "kernel is larger than its input" in row.uncovered


def test_windows_are_laid_out_before_the_first_product_only():
    vgg, lenet = network("VGG-7", 1), network("LeNet-5", 1)
    assert {vgg.layers[number].name for number in first_convolutions(vgg)} == {"conv1_a", "conv1_b"}
    assert first_convolutions(lenet) == {0}
    assert first_convolutions(network("RNN", 1)) == set()
    bare = Workload("bare", tuple(replace(one, inputs=(), outputs=()) for one in vgg))
    assert first_convolutions(bare) == {0}


def test_a_normalisation_before_it_leaves_a_convolution_the_first():
    """What was only added and scaled is still the network's input; what comes out of a product is not, even pooled."""
    image, scaled, map_, pooled = (Activation(name, (1, 3, 8, 8), Format(8)) for name in ("x", "scaled", "map", "pool"))
    workload = table(
        Layer("scale", "elementwise", Loops(), (image,), (scaled,)),
        Layer("conv1", "conv", Loops(), (scaled,), (map_,)),
        Layer("pool", "pool", Loops(), (map_,), (pooled,)),
        Layer("conv2", "conv", Loops(), (pooled,), (image,)),
    )
    assert first_convolutions(workload) == {1}


# The cost of a workload


def test_units_are_seconds_bytes_and_joules():
    workload = network("LSTM", batch=16)
    (found,), machine = device().runs(workload), device()
    (row,) = machine.cost(workload).rows
    assert row.seconds == pytest.approx(found.cycles / 500e6)
    assert row.moved == {
        "DRAM": (found.dram_read + found.dram_write) / 8,
        "WBUF": (found.wbuf_read + found.wbuf_write) / 8,
        "IBUF": (found.ibuf_read + found.ibuf_write) / 8,
        "OBUF": (found.obuf_read + found.obuf_write) / 8,
    }
    assert row.joules == pytest.approx(sum(row.energy.values()))
    assert row.energy["DRAM"] == pytest.approx(15e-12 * 8 * row.moved["DRAM"])


def test_a_batch_shares_weights_and_figures_are_of_one_inference():
    together, apart = device(batch=16).cost(network("SVHN", 1)), device().cost(network("SVHN", 16))
    assert together.seconds * 16 == pytest.approx(apart.seconds)
    assert together.joules * 16 == pytest.approx(apart.joules)
    assert together.seconds < device().cost(network("SVHN", 1)).seconds
    assert any("all are done after 16 times" in note for note in together.notes)


@pytest.mark.parametrize("name", ["LeNet-5", "LSTM", "RESNET-18"])
@pytest.mark.parametrize("billing", ["official", "exact"])
def test_no_layer_is_above_its_roofs(name: str, billing: str):
    cost = device(billing=billing).cost(network(name, 16))
    for row in cost.rows:
        assert row.macs / row.seconds <= cost.macs_per_second
        assert row.moved[cost.memory_level] / row.seconds <= cost.bytes_per_second * (1 + 1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_never_costs_more_than_official(name: str):
    workload = network(name, 16)
    for mine, theirs in zip(device(billing="exact").runs(workload), device().runs(workload), strict=True):
        assert mine.cycles <= theirs.cycles


def test_weights_are_counted_once_at_their_own_width_and_biases_as_sums():
    one = replace(layer(bits=(8, 4)), weights=1001, biases=10, weight_name="shared")
    assert device().cost(table(one, replace(one, name="again"))).weight_bytes == 501 + 40


def test_the_billing_stands_in_the_notes():
    workload = network("LeNet-5", 1)
    for billing in ("official", "exact"):
        assert device(billing=billing).cost(workload).notes[0].startswith(f"billing {billing}: ")


def test_floating_point_is_costed_as_assumed_and_says_so():
    floating = network("LeNet-5", 1).with_formats(FP32, FP32)
    assumed, plain = device().cost(floating), device().cost(floating.with_formats(Format(8), Format(8)))
    assert [row.seconds for row in assumed.rows] == [row.seconds for row in plain.rows]
    assert assumed.weight_bytes == plain.weight_bytes
    assert "floating-point layers are costed as int8" in assumed.notes
    assert len(plain.notes) == 1


# What a user can get wrong


@pytest.mark.parametrize(
    ("workload", "changes", "sentence"),
    [
        (
            table(layer(bits=(8, 16))),
            {},
            "weights of layer 'layer' have 16 bits.*official takes at most 8; billing exact",
        ),
        (
            table(layer(bits=(24, 8))),
            {"billing": "exact"},
            "inputs of layer 'layer' have 24 bits.*exact takes at most 16",
        ),
        (
            table(replace(layer(), weight_format=FP32)),
            {"assume": None},
            "weights of layer 'layer' are fp32.*assume=int8",
        ),
        (table(layer(out_channels=0)), {}, "layer 'layer' of table has no size: out_channels=0"),
        (table(layer(kernel_height=400, kernel_width=400)), {}, "smallest tile of layer 'layer'.*larger buffers"),
    ],
    ids=["too wide", "far too wide", "float", "no size", "too large"],
)
def test_a_layer_that_it_cannot_cost_is_named(workload: Workload, changes: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        device(**changes).cost(workload)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rows": 0}, "hardware bitfusion: rows=0 has to be above zero"),
        ({"batch": 0}, "batch=0 has to be above zero"),
        ({"dram_pj": float("nan")}, "dram_pj=nan has to be above zero"),
        ({"max_bits": 12}, "min_bits=2 and max_bits=12 must be powers of two"),
        ({"min_bits": 16}, "min_bits=16 and max_bits=8 must be"),
        ({"assume": "fp16"}, "assume=fp16 is no integer format"),
        ({"billing": "guess"}, "billing=guess is neither official nor exact"),
        ({"sources": {}}, "the constant 'rows' has no source"),
        ({"unverified": ["row"]}, "row in sources or unverified is none of its constants"),
        ({"name": "mine", "columns": -1}, "hardware mine: columns=-1"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(changes: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        device(**changes)


def test_an_unknown_network_gets_the_nearest_name():
    with pytest.raises(UserError, match=r"'LeNet5' is none of the paper's networks \(did you mean 'LeNet-5'\?\)"):
        network("LeNet5", 1)
