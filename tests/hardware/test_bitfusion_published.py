"""Bit Fusion against what the paper's simulator and notebook published, to the cycle, the bit and the digit."""

import pytest
from bitfusion_results import PRINTED, device, layer, needs_data, published, run

from edgetrain.hardware.bitfusion_networks import NETWORKS, network
from edgetrain.hardware.bitfusion_tiling import search


@needs_data
def test_all_published_rows_are_met_to_the_cycle_and_the_bit():
    """24 layers of five networks in five configurations."""
    search.cache_clear()
    rows = 0
    for configuration, networks in published().items():
        machine = device(**dict(configuration))
        for name, layers in networks.items():
            workload = network(name, batch=16)
            assert dict(zip((one.name for one in workload), machine.runs(workload), strict=True)) == layers
            rows += len(layers)
    assert rows == 120


# hardware.md section 4: kernel, side of the output, stride, channels in and out, bits in and of weights, first layer;
# cycles and stalls of 16 images
LAYERS = {
    "LeNet-5 conv0": ((5, 32, 1, 1, 32, 2, 2, True), (179_116, 162_732)),
    "LeNet-5 conv1": ((5, 16, 1, 32, 64, 2, 2, False), (205_635, 835)),
    "LeNet-5 fc2": ((1, 1, 1, 512, 10, 2, 2, False), (342, 310)),
    "SVHN conv1": ((3, 32, 1, 64, 64, 1, 1, False), (358_316, 63_404)),
    "SVHN fc8": ((1, 1, 1, 1024, 10, 1, 1, False), (374, 310)),
    "CIFAR10 conv0": ((3, 32, 1, 3, 128, 8, 8, True), (717_654, 586_582)),
    "CIFAR10 conv1": ((3, 32, 1, 128, 128, 2, 2, False), (799_062, 209_238)),
    "VGG-7 conv3_a": ((3, 8, 1, 256, 512, 2, 2, False), (255_318, 107_862)),
    "AlexNet conv2_a": ((5, 28, 1, 96, 256, 4, 4, False), (5_018_849, 1_249)),
    "AlexNet conv4_b": ((3, 14, 1, 384, 384, 4, 4, False), (2_436_097, 403_969)),
    "AlexNet fc3": ((1, 1, 1, 8192, 1000, 8, 8, False), (398_679, 136_535)),
    "RESNET-18 conv2_1_a": ((1, 56, 1, 128, 128, 4, 4, False), (2_274_988, 1_873_580)),
    "RNN": ((1, 1, 1, 4096, 4096, 4, 4, False), (394_583, 263_511)),
    "LSTM": ((1, 1, 1, 3600, 3600, 4, 4, False), (337_175, 231_383)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_costs_what_the_simulator_says(name: str):
    (kernel, side, stride, inputs, outputs, *bits, first), expected = LAYERS[name]
    one = layer(
        "linear" if side == kernel == 1 else "conv",
        tuple(bits),
        batch=16,
        out_channels=outputs,
        in_channels=inputs,
        out_height=side,
        out_width=side,
        kernel_height=kernel,
        kernel_width=kernel,
        stride_height=stride,
        stride_width=stride,
    )
    assert run(one, first=first)[:2] == expected


# hardware.md section 2: cycles of 16 images at 4,096 bits a cycle, 32, 64, 128 and 256 columns, buffers in proportion
TOTALS = {
    "AlexNet 27/13": (28_489_980, 15_358_775, 7_680_678, 5_302_970),
    "SVHN": (780_548, 391_448, 295_262, 308_908),
    "CIFAR10": (1_771_847, 886_404, 445_254, 350_159),
    "LeNet-5": (225_419, 121_226, 136_741, 169_541),
    "VGG-7": (1_032_402, 516_932, 292_340, 247_976),
    "RESNET-18": (39_539_122, 19_770_278, 9_900_698, 7_196_506),
    "RNN": (131_079, 65_612, 32_872, 17_472),
    "LSTM": (103_063, 52_053, 26_545, 14_697),
}


@pytest.mark.parametrize("name", TOTALS)
def test_a_network_costs_what_the_simulator_says_on_four_sizes_of_array(name: str):
    workload = network(name, batch=16)
    found = [
        sum(
            one.cycles
            for one in device(
                columns=32 * factor,
                wbuf_bytes=65536 * factor,
                ibuf_bytes=32768 * factor,
                obuf_bytes=16384 * factor,
                dram_bits_per_cycle=4096,
            ).runs(workload)
        )
        for factor in (1, 2, 4, 8)
    ]
    assert tuple(found) == TOTALS[name]


# The notebook's printed output: milliseconds of an image, and "mWatt", which is nJ of 16 images / ms of one x 1.6e-5
POWERS = {
    "AlexNet 27/13": (4.708311375, 448.386241718),
    "SVHN": (0.164690375, 410.014092738),
    "CIFAR10": (0.411713, 450.464576981),
    "LeNet-5": (0.051294, 356.024253811),
    "VGG-7": (0.352811375, 419.433333242),
    "RESNET-18": (6.13499775, 442.486265848),
    "RNN": (0.049322875, 407.720807613),
    "LSTM": (0.042146875, 410.009320233),
}


@pytest.mark.parametrize("name", POWERS)
def test_time_and_energy_are_those_that_the_notebook_printed(name: str):
    milliseconds, power = POWERS[name]
    cost = device().cost(network(name, batch=16))
    assert 1e3 * cost.seconds / 16 == pytest.approx(milliseconds, rel=1e-12)
    assert 1e9 * cost.joules == pytest.approx(power / 1.6e-5 * milliseconds, rel=1e-9)


# hardware.md section 2: mJ of the array, the buffers and DRAM, from the prices as printed
ENERGIES = {
    "SVHN": (0.183, 0.240, 3.794),
    "CIFAR10": (0.417, 1.672, 9.486),
    "LeNet-5": (0.053, 0.048, 1.040),
    "RNN": (0.031, 0.089, 1.136),
    "LSTM": (0.025, 0.083, 0.971),
}


@pytest.mark.parametrize("name", ENERGIES)
def test_energy_divides_as_published(name: str):
    rows = device(**PRINTED).cost(network(name, batch=16)).rows
    parts = [1e3 * sum(row.energy[part] for row in rows) for part in ("core", "SRAM", "DRAM")]
    assert parts == pytest.approx(ENERGIES[name], abs=6e-4)


def test_area_is_what_the_notebook_printed():
    areas = device().areas_mm2
    assert list(areas.values()) == pytest.approx([0.88809073856, 0.76747776, 0.242112, 0.24330592], rel=1e-12)
    assert device().cost(network("RNN", 1)).area_mm2 == pytest.approx(2.14098641856, rel=1e-12)


def test_a_cycle_of_the_array_takes_235_pj():
    assert device().energies.cycle == pytest.approx(235.104, abs=1e-9)


# Operations an image that the paper lists, in millions
OPERATIONS = {"AlexNet 27/13": 2678, "CIFAR10": 617, "LSTM": 13, "LeNet-5": 16, "RESNET-18": 4269, "RNN": 17}
OPERATIONS |= {"SVHN": 158, "VGG-7": 317}


def test_networks_have_the_papers_operations():
    found = {name: network(name, 1).macs / 1e6 for name in OPERATIONS}
    assert found == pytest.approx(OPERATIONS, abs=0.61)
    assert set(NETWORKS) - set(OPERATIONS) == {"AlexNet 28/14"}


def test_resnet_halves_its_maps_where_the_simulators_does():
    """Seen in no cost: a 1x1 convolution reads only the pixels that it needs, one at a time."""
    strided = {layer.name for layer in network("RESNET-18", 1) if layer.loops.stride_height == 2}
    assert strided == {"conv1_a", "conv3_1_a", "conv4_1_a", "conv5_1_a"}
