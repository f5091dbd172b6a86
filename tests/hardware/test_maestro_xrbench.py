"""XRBench's own MAESTRO: every published layer cost, cycles and energy, and the law that the cycles follow."""

import re
from math import ceil

import pytest
from xrbench_costs import COSTS, NAMES, XRBENCH, dataflow, device, published, tables

from edgetrain.hardware.dataflow import Shape, parse_dataflow
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


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_dataflows_are_the_release_s_as_its_reader_takes_them(name: str):
    """Y' of n outputs becomes Y of n - 1 + the level's number of directives, where the kernel's size should stand."""
    text = (XRBENCH / "dataflows" / "single" / f"{name}.m").read_text()
    levels: list[list[str]] = [[]]
    for kind, size, offset, dimension in re.findall(r"(\w+)\s*\((\d+)\s*,\s*(\w+)\)\s*([A-Z]'?)?;", text):
        if kind == "Cluster":
            levels.append([f"Cluster({size})"])
        else:
            levels[-1].append(f"{kind}({size},{offset}) {dimension}")
    taken = []
    for level in levels:
        maps = [line for line in level if not line.startswith("Cluster")]
        taken += [line for line in level if line.startswith("Cluster")]
        for line in maps:
            found = re.fullmatch(r"(\w+)\((\d+),(\d+)\) ([YX])'", line)
            taken.append(f"{found[1]}({int(found[2]) - 1 + len(maps)},{found[3]}) {found[4]}" if found else line)
    assert parse_dataflow(tuple(taken), name) == dataflow(name)


# Sums over a network, printed by the release for larger arrays: cycles and mJ.
SUMS = [
    ("HT_hand_graph_cnn_half", "WS", 8192, 256, 5_356_016, 202.5967),
    ("ES_RITNet", "OS", 8192, 256, 1_523_072, 26.0836),
    ("SS_HRViT_b1", "RS", 8192, 256, 60_453_136, 419.6282),
    ("ASR_EM_24L", "OS", 2048, 256, 75_497_472, 503.3846),
    ("DR_RGBd_200", "WS", 2048, 256, 28_610_536, 325.6610),
    ("GE_FBNet_C", "RS", 6144, 256, 4_080_968, 33.0696),
    ("PD_Plane_RCNN_Quarter", "OS", 6144, 256, 50_486_848, 347.6343),
]


@needs_data
@pytest.mark.parametrize(("network", "name", "pes", "bandwidth", "cycles", "energy"), SUMS)
def test_printed_sums_over_networks_are_met(network, name, pes, bandwidth, cycles, energy):
    counts = [analyse(dataflow(name), of, pes, bandwidth) for of in tables()[network]]
    assert sum(one.cycles for one in counts) == cycles
    assert sum(map(nanojoules, counts)) * 1e-6 == pytest.approx(energy, abs=5.1e-5)


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


# The same release on odd dataflows and shapes: K, C, R, S, Y, X, depthwise; PEs, bandwidth; cycles and nJ.
ODD = [
    ("SpatialMap(4,1) Y; TemporalMap(1,1) R; TemporalMap(2,1) C; TemporalMap(1,1) X; TemporalMap(7,5) S; "
     "TemporalMap(3,3) K", (1, 8, 5, 1, 5, 15, True), (2, 1), 67_200, 1038.250512),
    ("SpatialMap(4,4) K; Cluster(4); TemporalMap(4,1) S; SpatialMap(2,2) C",
     (1, 33, 1, 3, 10, 7, True), (4, 1), 2_706, 166.80312),
    ("SpatialMap(3,1) C; Cluster(3); TemporalMap(2,1) Y; SpatialMap(7,5) X",
     (17, 8, 2, 2, 6, 2, False), (6, 16), 20_400, 99.958464),
    ("SpatialMap(2,1) C; TemporalMap(1,1) X; TemporalMap(3,3) S; TemporalMap(4,4) K; TemporalMap(3,3) R",
     (17, 3, 1, 1, 2, 5, False), (64, 64), 1_530, 45.55368),
    ("TemporalMap(3,1) S; SpatialMap(3,1) K", (32, 33, 1, 5, 5, 9, False), (3, 4), 571_725, 12_544.204896),
    ("SpatialMap(1,1) X; Cluster(8); TemporalMap(4,1) S; SpatialMap(4,1) R; TemporalMap(2,1) Y; TemporalMap(7,3) C; "
     "TemporalMap(16,10) K", (17, 8, 3, 2, 4, 11, False), (512, 16), 11_776, 162.992592),
    ("TemporalMap(1,1) X; TemporalMap(16,9) C; SpatialMap(3,2) S",
     (1, 16, 3, 5, 3, 9, False), (2, 64), 1_440, 46.906272),
]  # fmt: skip


@pytest.mark.parametrize(("directives", "sizes", "design", "cycles", "energy"), ODD)
def test_odd_dataflows_cost_what_the_release_prints(directives, sizes, design, cycles, energy):
    counts = analyse(
        parse_dataflow(tuple(directives.split("; ")), "odd"), Shape(sizes[:6], depthwise=sizes[6]), *design
    )
    assert (counts.cycles, nanojoules(counts)) == (cycles, pytest.approx(energy, rel=1e-9))


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
