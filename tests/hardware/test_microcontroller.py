"""Microcontrollers: CMSIS-NN's published layer times, memory that fits or does not, clear refusals."""

from dataclasses import replace

import pytest
import torch
import yaml
from conftest import ROOT
from small_workloads import cifar10, layer, tensor
from torch import nn

from edgetrain.build import build
from edgetrain.errors import UserError
from edgetrain.hardware.formats import FP32, INT8, Format
from edgetrain.hardware.microcontroller import Microcontroller, operation_types, operations
from edgetrain.hardware.tracing import trace
from edgetrain.hardware.workload import Activation, Layer, Loops, Workload

# CMSIS-NN, table 1, Cortex-M7 at 216 MHz: million operations, milliseconds (a ReLU's are its layer's).
TABLE_1 = {
    "conv1": (4.9, 31.4),
    "pool1": (0.0737, 1.6),
    "conv2": (13.1, 42.8),
    "pool2": (0.0184, 0.4),
    "conv3": (6.6, 22.6),
    "pool3": (0.0092, 0.3),
    "fc": (0.020, 0.1),
}
M4_INSTRUCTIONS = {"conv1": 6.97e6, "conv2": 11.87e6, "conv3": 5.73e6}  # CMSIS-NN 7 in QEMU


def board(name: str = "cortex_m7", **changes) -> Microcontroller:
    return build(yaml.safe_load((ROOT / "conf" / "hardware" / f"{name}.yaml").read_text()) | changes)


def small(**changes) -> Microcontroller:
    """One cycle an operation at 1 kHz, half a watt."""
    constants = {
        "clock_hz": 1000,
        "cycles": {"conv": 1, "linear": 2},
        "watts": {"default": 0.5, "linear": 2.0},
        "bits": 8,
        "flash_bytes": 100,
        "ram_bytes": 100,
        "bias_bytes": 4,
        "runtime_flash_bytes": 0,
        "runtime_ram_bytes": 0,
    } | changes
    kept = {"kernels", "in_place", "assume", "name", "sources", "unverified"}
    named = {name: "hand" for name in [*constants, *constants["cycles"]] if name not in kept | {"cycles"}}
    return Microcontroller(**{"sources": named, "kernels": None} | constants)


def linear(inputs: int, outputs: int, name: str = "fc") -> Layer:
    loops = Loops(1, 1, outputs, inputs)
    return layer(name, "linear", loops, [tensor(f"{name}.x", 1, inputs)], tensor(f"{name}.y", 1, outputs))


def alone(one: Layer) -> Workload:
    return Workload("alone", (one,), tuple(t.name for t in one.inputs), tuple(t.name for t in one.outputs))


def milliseconds(cost) -> dict[str, float]:
    """By layer of table 1: a convolution with its ReLU."""
    times = {row.name: 1e3 * row.seconds for row in cost.rows}
    for number in "123":
        times[f"conv{number}"] += times.pop(f"relu{number}")
    return times


def test_operations_of_the_cifar10_network_are_those_published():
    macs = {row.name: row.macs for row in cifar10()}
    assert [macs[name] for name in ("conv1", "conv2", "conv3", "fc")] == [2_457_600, 6_553_600, 3_276_800, 10_240]
    device = small(cycles=dict.fromkeys(("conv", "linear", "pool"), 1))
    counted = {row.name: 1e3 * row.seconds / 1e6 for row in device.cost(cifar10()).rows}
    for name, (millions, _) in TABLE_1.items():
        assert counted[name] == pytest.approx(millions, rel=0.03)


def test_cortex_m7_takes_the_published_time_of_every_layer():
    times = milliseconds(board().cost(cifar10(relu=True)))
    for name, (_, published) in TABLE_1.items():
        assert times[name] == pytest.approx(published, rel=0.04, abs=0.11)  # printed to 0.1 ms
    assert sum(times.values()) == pytest.approx(99.1, abs=0.1)


def test_the_traced_network_costs_what_the_table_made_by_hand_does():
    layers: list[nn.Module] = []
    for channels, outputs in ((3, 32), (32, 32), (32, 64)):
        layers += [nn.Conv2d(channels, outputs, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    traced = trace(nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10)), (torch.zeros(1, 3, 32, 32),))
    by_hand, cost = board().cost(cifar10(relu=True)), board().cost(traced)
    assert [row.seconds for row in cost.rows] == pytest.approx([row.seconds for row in by_hand.rows])
    assert (cost.weight_bytes, cost.activation_bytes) == (by_hand.weight_bytes, by_hand.activation_bytes)
    assert not cost.uncovered


def test_operations_differ_6_6_times_in_throughput_on_the_m7():
    rates = board().cycles
    assert rates["pool"] / rates["conv"] == pytest.approx(6.6, abs=0.1)


def test_cortex_m4_takes_the_instructions_that_were_counted():
    m4 = board("cortex_m4")
    counted = {row.name: row.seconds * m4.clock_hz for row in m4.cost(cifar10()).rows}
    for name, instructions in M4_INSTRUCTIONS.items():
        assert counted[name] == pytest.approx(instructions, rel=0.08)
    assert sum(counted.values()) == pytest.approx(25.4e6, rel=0.06)  # rates are means over several shapes


def test_time_is_operations_by_cycles_by_clock_and_energy_power_by_time():
    (row,) = small().cost(alone(linear(5, 3))).rows
    assert row.seconds == pytest.approx(2 * 15 * 2 / 1000)
    assert row.joules == pytest.approx(2.0 * 0.060)
    assert dict(row.energy) == {"core": row.joules}
    (row,) = small(clock_hz=500).cost(alone(linear(5, 3))).rows
    assert row.seconds == pytest.approx(0.120)


def test_moved_bytes_are_weights_with_biases_and_both_tensors():
    (row,) = small().cost(alone(linear(5, 3))).rows
    assert dict(row.moved) == {"flash": 15 + 3 * 4, "RAM": 8}
    ids, rows = tensor("ids", 6, format=Format(64)), tensor("rows", 6, 10)
    table = Layer("table", "embedding", Loops(), (ids,), (rows,), weights=1000, weight_format=Format(4))
    (row,) = small(cycles={"embedding": 1}).cost(alone(table)).rows
    assert row.moved["flash"] == 6 * 10 / 2  # six rows of ten at four bits, not the table
    assert row.seconds == pytest.approx(60 / 1000)


def test_power_may_differ_by_type_and_may_be_unknown():
    conv = layer("conv", "conv", Loops(1, 1, 2, 4, 3, 3, 3, 3), [tensor("x", 4, 5, 5)], tensor("y", 2, 3, 3))
    (row,) = small().cost(alone(conv)).rows
    assert row.joules == pytest.approx(0.5 * row.seconds)
    silent = small(watts=None).cost(alone(conv))
    assert silent.joules is None
    assert not silent.rows[0].energy
    assert silent.seconds > 0


@pytest.mark.parametrize(
    ("loops", "expected"),
    [
        (Loops(1, 1, 8, 3, 4, 4, 3, 3), ("conv_few_channels", "conv")),
        (Loops(1, 1, 8, 4, 4, 4, 3, 3), ("conv",)),
        (Loops(1, 1, 8, 3, 4, 4), ("conv_1x1", "conv")),
        (Loops(1, 1, 8, 3, 4, 4, 1, 3), ("conv_few_channels", "conv")),
    ],
)
def test_shape_classes_go_before_their_kind(loops, expected):
    assert operation_types(Layer("c", "conv", loops)) == expected
    x, y = tensor("x", 4), tensor("y", 4)
    assert operation_types(Layer("a", "elementwise", Loops(), (x,))) == ("elementwise",)
    halves = Layer("a", "elementwise", Loops(), (x, x))  # two parts of one tensor
    gain = Layer("a", "elementwise", Loops(), (x,), weights=4)  # a stored vector is the second
    assert operation_types(halves) == operation_types(gain) == ("elementwise_two_inputs", "elementwise")
    assert operation_types(Layer("a", "elementwise", Loops(), (x, y)))[0] == "elementwise_two_inputs"


def test_a_mean_reads_all_that_it_takes_in():
    mean = Layer("m", "elementwise", Loops(), (tensor("x", 64, 512),), (tensor("y", 64),))
    assert operations(mean) == 64 * 512
    spread = Layer("s", "elementwise", Loops(), (tensor("y", 64), tensor("x", 64, 512)), (tensor("z", 64, 512),))
    assert operations(spread) == 64 * 512


def test_a_table_of_layers_without_tensors_has_no_plan_of_memory_and_says_so():
    of = board()
    bare = Workload("bare", (Layer("c", "conv", Loops(1, 1, 8, 4, 9, 9, 3, 3), macs=8 * 4 * 81 * 9, weights=288),))
    cost = of.cost(bare)
    assert cost.activation_bytes is None
    assert [limit.name for limit in cost.limits] == ["flash"]
    assert any("no tensors" in note for note in cost.notes)


def test_a_table_without_shape_classes_uses_the_kind():
    conv = layer("conv", "conv", Loops(1, 1, 2, 3, 3, 3, 3, 3), [tensor("x", 3, 5, 5)], tensor("y", 2, 3, 3))
    (row,) = small().cost(alone(conv)).rows
    assert row.seconds == pytest.approx(2 * conv.macs / 1000)
    (row,) = small(cycles={"conv": 1, "conv_few_channels": 3}).cost(alone(conv)).rows
    assert row.seconds == pytest.approx(3 * 2 * conv.macs / 1000)


def test_what_the_table_lacks_is_listed_and_not_zero():
    x, y = tensor("x", 4), tensor("y", 4)
    norm = Layer("norm", "norm", Loops(), (x,), (y,))
    never = Layer("never", "conv", Loops(1, 1, 1, 1, 1, 1, 9, 9), (y,), (x,), degenerate=True)
    network = Workload("w", (norm, never), ("x",), ("x",))
    cost = small().cost(network)
    assert [row.uncovered for row in cost.uncovered] == [
        "the table has no rate for norm",
        "its kernel is larger than its input",
    ]
    assert cost.seconds == 0
    assert cost.joules is None
    bare = small(cycles={"elementwise": 1}).cost(alone(Layer("bare", "elementwise", Loops())))
    assert "no outputs to count" in bare.uncovered[0].uncovered


def test_the_cifar10_network_fits_its_board_and_not_a_small_one():
    cost = board().cost(cifar10())
    flash, ram = cost.limits
    assert (flash.name, ram.name) == ("flash", "RAM")
    weights = 25 * 3 * 32 + 25 * 32 * 32 + 25 * 32 * 64 + 10_240  # 87 KB in the paper
    assert flash.needed == cost.weight_bytes == weights + 4 * (32 + 32 + 64 + 10)
    assert ram.needed == 35_840 + 304
    assert cost.activation_bytes == 35_840 + 304
    assert cost.fits
    tight = board(flash_bytes=flash.needed, ram_bytes=ram.needed - 1).cost(cifar10())
    assert [limit.fits for limit in tight.limits] == [True, False]
    assert not tight.fits
    assert tight.seconds == cost.seconds  # a result all the same


def test_a_runtimes_own_memory_counts():
    cost = board(runtime_flash_bytes=50_000, runtime_ram_bytes=3_312, in_place=False, kernels=None).cost(cifar10())
    assert cost.limits[0].needed == cost.weight_bytes + 50_000
    assert cost.limits[1].needed == 40_960 + 3_312  # what TFLM's arena takes for this chain: head and tail
    assert cost.activation_bytes == 40_960


def test_shared_weights_stand_in_flash_once_and_state_in_ram():
    first, second = linear(4, 4, "a"), replace(linear(4, 4, "b"), name="a:2", weight_name="a", biases=4)
    first = replace(first, weight_name="a")
    state = tensor("cache", 50, state=True)
    second = replace(second, inputs=(*second.inputs, state))
    cost = small().cost(Workload("w", (first, second), ("a.x", "b.x", "cache"), ("b.y",)))
    assert cost.weight_bytes == 16 + 4 * 4
    assert cost.activation_bytes == 12 + 50  # b.x waits while a runs
    assert cost.limits[1].needed >= 12 + 50
    assert cost.seconds == pytest.approx(2 * 2 * 2 * 16 / 1000)


def test_floating_point_is_costed_as_assumed_and_said_so():
    fc = replace(
        linear(5, 3), weight_format=FP32, inputs=(Activation("x", (1, 5)),), outputs=(Activation("y", (1, 3)),)
    )
    cost = small().cost(alone(fc))
    assert cost.rows[0].moved["flash"] == 15 + 12
    assert "floating-point layers are costed as int8" in cost.notes
    assert not any("floating" in note for note in small().cost(alone(linear(5, 3))).notes)
    with pytest.raises(UserError, match="layer 'fc' has fp32 operands and the table is for integers of at most 8 bits"):
        small(assume=None).cost(alone(fc))


def test_operands_that_are_too_wide_are_refused_and_narrow_ones_take_as_long():
    wide = replace(linear(5, 3), weight_format=Format(16))
    with pytest.raises(UserError, match="hardware microcontroller: layer 'fc' has int16 operands"):
        small().cost(alone(wide))
    narrow = small().cost(alone(replace(linear(5, 3), weight_format=Format(4))))
    assert narrow.seconds == small().cost(alone(linear(5, 3))).seconds
    assert narrow.rows[0].moved["flash"] == 8 + 12
    assert "weights of fewer than 8 bits take as long as those of 8" in narrow.notes
    sparse = small().cost(alone(replace(linear(5, 3), density=0.5)))
    assert "zero weights are stored and multiplied" in sparse.notes


def test_a_layer_without_size_is_a_sentence():
    none = replace(linear(5, 3), loops=Loops(out_channels=0))
    with pytest.raises(UserError, match="layer 'fc' of alone has no size: out_channels=0"):
        small().cost(alone(none))
    empty = replace(linear(5, 3), outputs=(tensor("y", 0),))
    with pytest.raises(UserError, match="layer 'fc' of alone has no size: the tensor 'y' has no elements"):
        small().cost(alone(empty))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cycles": {"covn": 1}}, "'covn' is no type of operation.*did you mean 'conv'"),
        ({"cycles": {"conv": -1}}, "cycles.conv=-1 must be a number above zero"),
        ({"cycles": {"conv": "fast"}}, "cycles.conv=fast must be a number above zero"),
        ({"cycles": {}}, "cycles is empty"),
        ({"bits": 0}, "bits=0 must be a number above zero"),
        ({"ram_bytes": -1}, "ram_bytes=-1 must not be below zero"),
        ({"clock_hz": 0}, "clock_hz=0 must be a number above zero"),
        ({"watts": {"default": float("nan")}}, "watts.default=nan must be a number above zero"),
        ({"kernels": "simd"}, "kernels=simd; kernels whose scratch is known: dsp, helium"),
        ({"sources": {}}, "the constant 'clock_hz' has no source"),
        ({"assume": "int0"}, "'int0' is not a number format"),
    ],
)
def test_a_table_that_cannot_be_used_is_a_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        small(**changes)


@pytest.mark.parametrize("name", ["cortex_m4", "cortex_m7"])
def test_every_rate_of_the_shipped_boards_has_a_source(name):
    device = board(name)
    assert device.name == name
    assert set(device.cycles) <= set(device.sources)
    assert board(name, assume=None).cost(cifar10()).sources == device.sources
    assert device.assume == INT8
