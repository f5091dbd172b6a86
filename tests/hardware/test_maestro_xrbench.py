"""XRBench's own MAESTRO: every published layer cost, cycles and energy, and the law that the cycles follow."""

from math import ceil

import pytest
from xrbench_costs import COSTS, NAMES, XRBENCH, dataflow, device, published, tables

from edgetrain.hardware.dataflow import Shape
from edgetrain.hardware.layer_tables import read_maestro
from edgetrain.hardware.maestro import Counts
from edgetrain.hardware.maestro_xrbench import analyse

needs_data = pytest.mark.skipif(not COSTS.exists(), reason="XRBench's layer tables and costs are not there")


def shape(k: int, c: int, y: int, x: int, r: int, s: int) -> Shape:
    """As XRBench's tables order the sizes."""
    return Shape((k, c, r, s, y, x))


def nanojoules(counts: Counts) -> float:
    """XRBench's formula: 0.00288 nJ a MAC, 6 an access to L2, 0.55 to L1."""
    return 0.00288 * (counts.macs + 6.0 * sum(counts.shared) + 0.55 * sum(counts.local))


# Published


@needs_data
def test_all_published_layer_costs_are_met_cycles_and_energy():
    """1,301 layers x 3 dataflows x 4 sizes of the array, degenerate layers among them: 15,612 rows."""
    networks, flows = tables(), {name: dataflow(name) for name in NAMES}
    rows = 0
    for row in published():
        of = networks[row["model"]][int(row["layer"])]
        counts = analyse(flows[row["dataflow"]], of, int(row["pes"]), int(row["noc_bw"]))
        assert counts.cycles == int(row["cycles"]), row
        assert nanojoules(counts) == pytest.approx(float(row["energy_nj"]), rel=1e-9), row
        rows += 1
    assert rows == 15_612


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_the_device_costs_imported_tables_as_published(name: str):
    """From a scenario's file to seconds and joules, all layers that compute something."""
    costs = {
        (row["model"], int(row["layer"])): (int(row["cycles"]), float(row["energy_nj"]))
        for row in published()
        if (row["dataflow"], row["pes"], row["noc_bw"]) == (name, "4096", "256")
    }
    accelerator = device(NAMES[name])
    covered = 0
    for network, workload in read_maestro(XRBENCH / "usage_scenarios" / "AR_Assistant.m").items():
        for number, (layer, row) in enumerate(zip(workload, accelerator.cost(workload).rows, strict=True)):
            assert bool(row.uncovered) == layer.degenerate
            if not layer.degenerate:
                cycles, energy = costs[network, number]
                assert row.seconds == pytest.approx(cycles * 1e-9, rel=1e-12)
                assert row.joules == pytest.approx(energy * 1e-9, rel=1e-9)
                covered += 1
    assert covered > 800


# Rows of the same release, printed by it: K, C, Y, X, R, S; cycles and, where it is at hand, nJ of each dataflow.
PRINTED = {
    "ES_RITNet conv1": (
        (32, 32, 160, 100, 3, 3),
        {"WS": (159_264, 3_694_612.0), "OS": (172_800, 2_758_558.3), "RS": (424_704, 2_248_897.7)},
    ),
    "KD_res8_narrow conv1": ((19, 1, 98, 40, 3, 3), {"WS": (20_736, None), "OS": (13_680, None), "RS": (3_456, None)}),
    "DR_RGBd_200 conv1": ((64, 4, 228, 912, 7, 7), {"WS": (2_480_184, None)}),
    "HT_hand_graph_cnn conv1": ((64, 3, 128, 128, 7, 7), {"WS": (191_296, None)}),
    "AS_ED_TCN conv1": ((64, 128, 668, 1, 25, 1), {"WS": (515_208, 4_896_299.575296)}),
    "AS_ED_TCN conv2": ((96, 64, 346, 1, 25, 1), {"WS": (193_204, 1_838_863.611648)}),
    "AS_ED_TCN conv3": ((96, 96, 346, 1, 25, 1), {"WS": (289_806, 2_758_116.811392)}),
    "AS_ED_TCN conv4": ((64, 96, 668, 1, 25, 1), {"WS": (386_406, 3_672_358.497792)}),
}


@pytest.mark.parametrize("layer", PRINTED)
def test_printed_rows_are_met(layer: str):
    sizes, costs = PRINTED[layer]
    for name, (cycles, energy) in costs.items():
        counts = analyse(dataflow(name), shape(*sizes), 4096, 256)
        assert counts.cycles == cycles
        if energy is not None:
            assert nanojoules(counts) == pytest.approx(energy, abs=0.06)


@pytest.mark.parametrize("side", [5, 9, 30])
@pytest.mark.parametrize(("k", "c"), [(16, 16), (40, 70), (256, 64)])
@pytest.mark.parametrize(("kernel", "outputs"), [(1, 16), (3, 4), (7, 1)])
def test_weight_stationary_cycles_follow_the_law_of_its_tiles(side: int, k: int, c: int, kernel: int, outputs: int):
    """OY ceil(OX/16) ceil(K/16) ceil(C/16) RS, times the outputs that a tile of 4x4 inputs holds."""
    of = shape(k, c, side + kernel - 1, side + kernel - 1, kernel, kernel)
    steps = side * ceil(side / 16) * ceil(k / 16) * ceil(c / 16) * kernel**2
    assert analyse(dataflow("WS"), of, 4096, 1 << 20).cycles == steps * outputs


def test_a_layer_larger_than_its_input_has_a_published_cost():
    """HT's K128 C128 2x2 with a kernel of 3x3: 583 cycles; GE's K1104 C1104 5x4 with one of 5x5: 123,786."""
    assert analyse(dataflow("WS"), shape(128, 128, 2, 2, 3, 3), 4096, 256).cycles == 583
    assert analyse(dataflow("WS"), shape(1104, 1104, 5, 4, 5, 5), 4096, 256).cycles == 123_786
