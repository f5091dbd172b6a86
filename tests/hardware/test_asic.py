"""The ASIC device: energy and bytes by hand, every kind of product, area as published, clear refusals."""

from dataclasses import replace

import pytest
import yaml
from conftest import ROOT
from small_workloads import cifar10, layer, tensor

from edgetrain.build import build
from edgetrain.errors import UserError
from edgetrain.hardware.asic import Asic
from edgetrain.hardware.dataflow import Shape, parse_dataflow
from edgetrain.hardware.formats import FP32, Format
from edgetrain.hardware.maestro import Counts, analyse
from edgetrain.hardware.workload import Activation, Kind, Layer, Loops, Workload

TEMPLATES = ("nvdla", "shidiannao", "row_stationary")
DEVICES = (*TEMPLATES, "xrbench_ws", "xrbench_os", "xrbench_rs")


def device(name: str = "nvdla", **changes) -> Asic:
    return build(yaml.safe_load((ROOT / "conf" / "hardware" / f"{name}.yaml").read_text()) | changes)


def hand(**changes) -> Asic:
    """Two PEs that divide the output channels, at 1 Hz, two numbers a cycle; see test_maestro."""
    return device(dataflow=["SpatialMap(1,1) K", "TemporalMap(1,1) X"], pes=2, noc_bandwidth=2, clock_hz=1, **changes)


def one(kind: Kind, loops: Loops, bits: tuple[int, int, int] = (8, 8, 8), **facts) -> Layer:
    x, y = (tensor(name, 1, format=Format(width)) for name, width in (("x", bits[0]), ("y", bits[2])))
    return layer("layer", kind, loops, [x], y, **{"weight_format": Format(bits[1])} | facts)


def counts(of: Asic, shape: Shape) -> Counts:
    return analyse(parse_dataflow(tuple(of.dataflow), "hand"), shape, of.pes, of.noc_bandwidth, of.vector_width)


# By hand

PIXELS = Loops(1, 1, 4, 3, 1, 5)  # 4 channels out of 3, 5 pixels: 60 MACs


def test_time_energy_and_bytes_are_those_of_the_hand_calculation():
    row = hand().cost(Workload("hand", (one("conv", PIXELS, bits=(8, 4, 16)),))).rows[0]
    assert row.macs == 60
    assert row.seconds == 37
    # accesses of inputs, weights and outputs, counted in test_maestro
    shared, local = (45, 24, 20), (120, 72, 120)
    mac = 0.23e-12
    assert row.energy == pytest.approx({"MAC": 60 * mac, "L1": 1.68 * 312 * mac, "L2": 18.61 * 89 * mac})
    assert row.joules == pytest.approx(sum(row.energy.values()))
    assert row.moved == {
        level: pytest.approx(sum(n * bits / 8 for n, bits in zip(accesses, (8, 4, 16), strict=True)))
        for level, accesses in (("L2", shared), ("L1", local))
    }


def test_a_buffer_that_is_too_small_is_a_result():
    workload = Workload("hand", (one("conv", PIXELS, bits=(8, 4, 16)),))
    # the first step and the next: 3 inputs, 6 weights and 2 outputs in L2; 3, 3 and 1 in a PE
    needed = (2 * 3 + 2 * 6 // 2 + 2 * 2 * 2, 2 * 3 + 2 * 3 // 2 + 2 * 2)
    for size, fits in (((20, 13), True), ((19, 13), False), ((20, 12), False)):
        cost = hand(shared_bytes=size[0], local_bytes=size[1]).cost(workload)
        assert tuple(limit.needed for limit in cost.limits) == needed == (20, 13)
        assert cost.fits == fits


@pytest.mark.parametrize(
    ("kind", "loops", "shape", "runs"),
    [
        ("conv", Loops(3, 1, 8, 3, 10, 12, 3, 5, 2, 1), Shape((8, 3, 3, 5, 21, 16), 2, 1), 3),
        ("depthwise", Loops(2, 16, 16, 16, 6, 6, 3, 3), Shape((1, 16, 3, 3, 8, 8), depthwise=True), 2),
        ("grouped", Loops(1, 4, 8, 16, 6, 6, 3, 3), Shape((2, 4, 3, 3, 8, 8)), 4),
        ("linear", Loops(3, 1, 10, 20, 7), Shape((10, 20, 1, 1, 21, 1)), 1),
        ("matmul", Loops(2, 8, 8 * 20, 8 * 64, 10), Shape((20, 64, 1, 1, 10, 1)), 16),
        ("recurrent", Loops(2, 1, 128, 48, 30), Shape((128, 48, 1, 1, 2, 1)), 30),
    ],
)
def test_every_kind_of_product_is_so_many_runs_of_one_shape(kind: Kind, loops: Loops, shape: Shape, runs: int):
    assert shape.macs * runs == loops.macs
    of = device("shidiannao")
    found = of.map(one(kind, loops))
    assert found.runs == runs and found.counts == counts(of, shape)
    row = of.cost(Workload("one", (one(kind, loops),))).rows[0]
    assert row.seconds == pytest.approx(runs * found.counts.cycles / of.clock_hz)
    assert row.energy["MAC"] == pytest.approx(loops.macs * of.mac_pj * 1e-12)


def test_depthwise_layers_have_a_dataflow_of_their_own():
    """NVDLA's divides channels: 64 of them cost on 64 PEs what one costs on one, but for what they wait for."""
    loops = Loops(1, 64, 64, 64, 10, 10, 3, 3)
    own = device(pes=64, noc_bandwidth=1 << 20)
    assert own.map(one("depthwise", loops)).counts.cycles == 100 * 9 + 1
    assert replace(own, depthwise_dataflow=None).map(one("depthwise", loops)).counts.cycles > 100 * 9 + 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_layer_is_faster_than_the_roof_and_every_mac_is_paid(name: str):
    of = device(name)
    network = cifar10()
    wide = one("linear", Loops(out_channels=1280, in_channels=960))  # weights come in as partial sums go out
    cost = of.cost(replace(network, layers=(*network.layers, wide)))
    for row in cost.rows:
        assert bool(row.uncovered) == (row.kind == "pool")
        if not row.uncovered:
            assert row.macs / row.seconds <= cost.macs_per_second
            assert row.moved[cost.memory_level] / row.seconds <= cost.bytes_per_second
            assert row.energy["MAC"] == pytest.approx(row.macs * of.mac_pj * 1e-12)
            assert row.moved["L2"] >= 1


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_says_where_its_constants_are_from(name: str):
    cost = device(name).cost(cifar10())
    assert cost.device == name
    assert cost.seconds > 0 and cost.joules > 0 and cost.area_mm2 > 0
    assert all(cost.sources.values()) and set(cost.unverified) <= set(cost.sources)
    assert cost.weight_bytes == cifar10().weights
    assert cost.memory_level in cost.rows[0].moved


# Published


def test_area_is_maestro_s_published_one():
    """Resnet50_kcp_ws_pe256.csv and _pe1024.csv, CONV2_1_1: 9 lanes, an L1 of one cell of 64 bytes, 1,024 a cycle.

    They were printed with other areas of a MAC and of SRAM, which an older cost database gives.
    """
    for pes, published in ((256, 4.39674e8), (1024, 2.15045e9)):
        of = device(pes=pes, noc_bandwidth=1024, vector_width=9, mac_um2=4470.9014)
        total = 1e6 * (of.areas_mm2["MAC"] + of.areas_mm2["NoC"]) + pes * 4505.1889 + 4161.536
        assert total == pytest.approx(published, rel=2.5e-6)  # six digits
    small = device(pes=1, noc_bandwidth=1)
    # one PE: the fitted arbiter is negative, and at least one unit
    assert small.areas_mm2["NoC"] == pytest.approx((101.7938 * (14.662 + 28.895) + 395.473) * 1e-6)
    assert small.areas_mm2["L1"] == pytest.approx(512 * 0.104e-6)


# A search


def test_a_design_of_a_search_costs_what_a_device_of_its_own_does():
    base = device()
    for pes, bandwidth in ((64, 16), (512, 64), (1024, 128)):
        design = replace(base, pes=pes, noc_bandwidth=bandwidth)
        assert design.cost(cifar10()) == device(pes=pes, noc_bandwidth=bandwidth).cost(cifar10())
        assert design.cost(cifar10()).seconds != base.cost(cifar10()).seconds


@pytest.mark.parametrize("name", DEVICES)
def test_totals_without_rows_are_those_of_the_rows(name: str):
    gru = one("recurrent", Loops(2, 1, 128, 48, 30))
    workload = replace(cifar10(), layers=(*cifar10(), gru))
    cost = device(name).cost(workload)
    assert device(name).totals(workload) == pytest.approx((cost.seconds, cost.joules), rel=1e-12)


# What cannot be costed


def test_what_the_array_cannot_run_is_listed_with_the_reason():
    loops = Loops(1, 1, 4, 4, 6, 6, 3, 3)
    pool = one("pool", Loops(1, 4, 4, 4, 2, 2, 2, 2))
    cases = [
        (device(), pool, "dataflows map products only; everything else is left to the host"),
        (
            device(),
            one("conv", loops, degenerate=True),
            "its kernel is larger than its input, so that there is nothing",
        ),
        (device(pes=32), one("conv", loops), "a cluster of the dataflow takes 64 PEs, and there are 32"),
        (
            device(dataflow=["SpatialMap(1,1) Y", "SpatialMap(1,1) R"]),  # five of eight rows meet none of the kernel's
            one("conv", loops),
            "the dataflow computes 864 of its 5184 MACs",
        ),
    ]
    for of, layer_, why in cases:
        cost = of.cost(Workload("one", (layer_,)))
        assert cost.rows[0].uncovered.startswith(why)
        assert cost.seconds == 0 and cost.joules is None


def test_floating_point_is_assumed_int8_and_said_so_or_refused():
    x, y = (Activation(name, (1,), FP32) for name in "xy")
    workload = Workload("floats", (Layer("fc1", "conv", PIXELS, (x,), (y,), macs=60, weights=12),))
    cost = device().cost(workload)
    integers = device().cost(workload.assuming(Format(8)))
    assert cost.rows == integers.rows and cost.weight_bytes == integers.weight_bytes == 12
    assert "floating-point layers are costed as int8" in cost.notes
    assert "floating-point layers are costed as int8" not in integers.notes
    with pytest.raises(UserError, match=r"inputs of layer 'fc1' are fp32, .* set hardware\.nvdla\.assume=int8"):
        device(assume=None).cost(workload)


@pytest.mark.parametrize(("bits", "what"), [((32, 8, 8), "inputs"), ((8, 17, 8), "weights")])
def test_numbers_wider_than_the_multipliers_are_refused_by_layer(bits, what):
    with pytest.raises(UserError, match=rf"the {what} of layer 'layer' have \d+ bits, and the PEs multiply at most 16"):
        device().cost(Workload("wide", (one("conv", PIXELS, bits=bits),)))


def test_a_layer_without_size_is_refused_by_name():
    with pytest.raises(UserError, match="layer 'fc' of empty has no size: in_channels=0"):
        device().cost(Workload("empty", (Layer("fc", "linear", Loops(in_channels=0)),)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pes": 0}, "hardware nvdla: pes=0 has to be above zero"),
        ({"mac_pj": -1.0}, "hardware nvdla: mac_pj=-1.0 has to be above zero"),
        ({"bus_scaling": [1.0]}, "hardware nvdla: bus_scaling has 1 numbers, and the formula takes 2"),
        ({"dataflow": [{"Cluster": 4}]}, r"hardware nvdla: '\{'Cluster': 4\}' is no directive"),
        ({"analysis": "exact"}, "hardware nvdla: analysis=exact is neither maestro nor xrbench"),
        ({"assume": "fp16"}, "hardware nvdla: assume=fp16 is no integer format; write int8, or null"),
        ({"dataflow": ["SpatialMap(1,1) Q"]}, r"hardware nvdla: 'SpatialMap\(1,1\) Q' is no directive"),
        ({"depthwise_dataflow": ["TemporalMap(1,1) C"]}, "hardware nvdla: level 0 of the dataflow has no SpatialMap"),
        ({"sources": {}}, "hardware nvdla: the constant 'mac_pj' has no source"),
        ({"unverified": ["pes"]}, "hardware nvdla: pes in sources or unverified is none of its constants"),
    ],
)
def test_an_accelerator_that_cannot_be_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        device(**changes)
