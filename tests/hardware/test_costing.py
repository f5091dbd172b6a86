"""Several devices, one table of layers, one run folder."""

from dataclasses import replace

import pytest

from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.hardware.cost import Cost, LayerCost, Limit
from edgetrain.hardware.costing import (
    alike,
    cost_devices,
    costliest,
    device_rows,
    kind_shares,
    layer_rows,
    roofline_points,
)
from edgetrain.hardware.terminal import print_costs
from edgetrain.hardware.workload import Activation, Layer, Loops, Workload


class PerMac:
    """A second a MAC and a joule a MAC; pools only where `pools`."""

    def __init__(self, name: str, seconds: float, pools: bool = True, ram: int = 100) -> None:
        self.name, self.seconds, self.pools, self.ram = name, seconds, pools, ram

    def cost(self, workload: Workload) -> Cost:
        rows = []
        for layer in workload:
            if layer.kind == "pool" and not self.pools:
                rows.append(LayerCost(layer.name, layer.kind, 0, uncovered="no figure for pool"))
                continue
            joules = float(layer.macs)
            rows.append(
                LayerCost(
                    layer.name,
                    layer.kind,
                    layer.macs,
                    self.seconds * (layer.macs or 1),
                    joules,
                    {"DRAM": 8.0},
                    {"core": joules},
                )
            )
        limit = Limit("RAM", 60, self.ram)
        return Cost(
            self.name,
            workload.name,
            tuple(rows),
            40,
            60,
            limits=(limit,),
            sources={"seconds": "invented"},
            unverified=("seconds",),
            notes=("billing=none",),
            macs_per_second=2.0,
            bytes_per_second=1.0,
            memory_level="DRAM",
        )


@pytest.fixture
def workload() -> Workload:
    x, y, z, out = (Activation(name, (4,)) for name in ("x", "y", "z", "out"))
    return Workload(
        "net",
        (
            Layer("conv", "conv", Loops(out_channels=5), (x,), (y,), macs=5, weights=5),
            Layer("pool", "pool", Loops(groups=5), (y,), (z,), operations=4),
            Layer("fc", "linear", Loops(out_channels=3), (z,), (out,), macs=3, weights=3),
        ),
        ("x",),
        ("out",),
    )


@pytest.fixture
def devices() -> dict[str, PerMac]:
    return {"small": PerMac("small", 1.0, ram=50), "fast": PerMac("fast", 1e-3, pools=False)}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create("cost", str(tmp_path / "run"))


def test_every_layer_is_there_on_every_device_and_what_is_not_covered_is_empty(workload, devices, folder):
    costs, metrics = cost_devices(workload, devices, folder)
    rows = layer_rows(workload, costs)
    assert [row["layer"] for row in rows] == ["conv", "pool", "fc"]
    assert [row["small ms"] for row in rows] == [5000.0, 1000.0, 3000.0]
    assert [row["fast ms"] for row in rows] == [5.0, None, 3.0]
    assert metrics["cost/small/milliseconds"] == 9000.0
    assert metrics["cost/fast/milliseconds"] == 8.0
    assert metrics["cost/fast/millijoules"] == 8000.0
    assert metrics["cost/fast/uncovered_layers"] == 1
    assert metrics["cost/small/fits"] == 0 and metrics["cost/fast/fits"] == 1
    assert metrics["cost/macs"] == 8 and metrics["cost/weights"] == 8
    assert folder.read_table("cost_uncovered") == [
        {"device": "fast", "kind": "pool", "layers": "1", "why": "no figure for pool"}
    ]
    assert {row["read there"] for row in folder.read_table("cost_sources")} == {"no"}
    assert folder.read_table("cost_small")[0]["bytes DRAM"] == "8.0"
    assert {item["name"] for item in folder.report_items()} >= {"cost", "cost_layers", "cost_kinds", "cost_roofline"}


def test_a_board_that_is_too_small_is_a_result(workload, devices, folder):
    costs, _ = cost_devices(workload, devices, folder)
    assert [row["fits"] for row in device_rows(costs)] == ["no: RAM", "yes"]


def test_the_costliest_layers_keep_their_order(workload, devices, folder):
    costs, _ = cost_devices(workload, devices, folder)
    rows = layer_rows(workload, costs)
    assert [row["layer"] for row in costliest(rows, 2)] == ["conv", "fc"]
    assert [row["layer"] for row in costliest(rows[1:], 1)] == ["fc"]


def test_layers_that_are_alike_are_one_row():
    def row(name: str, ms: float | None, macs: int = 4, **more: str) -> dict:
        return {**more, "layer": name, "kind": "conv", "macs": macs, "weights": 2, "d ms": ms}

    rows = [
        row("b.0.c1", 1.0),
        row("b.0.c2", 5.0),
        row("b.1.c1", 2.0),
        row("b.10.c1", None),
        row("b.2.c1", 9.0, macs=5),
    ]
    merged = [(row["layer"], row["d ms"], row["macs"], row["weights"]) for row in alike(rows)]
    assert merged == [("b.*.c* x4", 8.0, 16, 8), ("b.2.c1", 9.0, 5, 2)]
    assert alike([row("pool", None)]) == [row("pool", None)]
    assert len(alike([row("b.0", 1.0, component="prefill"), row("b.1", 1.0, component="decode")])) == 2


def test_shares_of_kinds_are_per_cent(workload, devices):
    shares = kind_shares({name: device.cost(workload) for name, device in devices.items()})
    assert shares["conv"] == {"small": pytest.approx(500 / 9), "fast": pytest.approx(62.5)}
    assert shares["pool"] == {"small": pytest.approx(100 / 9), "fast": 0.0}
    assert set(shares) == {"conv", "linear", "pool"}


def test_a_roofline_has_macs_a_byte_that_the_device_moved_or_else_of_all_tensors_once(workload, devices):
    cost = devices["small"].cost(workload)
    assert roofline_points(workload, cost) == {"conv": [(5 / 8, 1e-9)], "linear": [(3 / 8, 1e-9)]}
    unknown = replace(cost, memory_level="L9")  # 5 weights, 4 numbers in, 4 out, of 4 bytes
    assert roofline_points(workload, unknown)["conv"] == [(5 / (4 * 13), 1e-9)]


def test_what_is_printed_is_what_was_costed(workload, devices, folder, capsys):
    cost_devices(workload, devices, folder)
    print_costs(folder)
    printed = capsys.readouterr().out
    assert "modelled, not measured" in printed
    assert [line.split()[0] for line in printed.splitlines()[2:5]] == ["conv", "pool", "fc"]


def test_many_devices_are_printed_without_their_layers(workload, folder, capsys):
    cost_devices(workload, {f"d{n}": PerMac(f"d{n}", 1.0) for n in range(4)}, folder)
    print_costs(folder)
    four = capsys.readouterr().out
    assert "d3 ms" in four and " mJ" not in four
    cost_devices(workload, {f"d{n}": PerMac(f"d{n}", 1.0) for n in range(7)}, folder)
    print_costs(folder)
    seven = capsys.readouterr().out
    assert "d6" in seven and "d6 ms" not in seven


def test_power_by_component_is_a_table_and_a_metric(workload, folder):
    class Streaming(PerMac):
        def cost(self, workload: Workload) -> Cost:
            return replace(super().cost(workload), watts={"encoder": 0.25, "joiner": 0.5})

    _, metrics = cost_devices(workload, {"stream": Streaming("stream", 1.0)}, folder)
    assert metrics["cost/stream/milliwatts"] == 750.0
    assert [row["milliwatts"] for row in folder.read_table("cost_power")] == ["250.0", "500.0"]


def test_a_device_without_time_has_no_milliseconds(workload, folder):
    costs, metrics = cost_devices(workload, {"energy": PerMac("energy", 0.0)}, folder)
    assert "cost/energy/milliseconds" not in metrics and metrics["cost/energy/millijoules"] == 8000.0
    assert "milliseconds" not in device_rows(costs)[0]
    assert "energy ms" not in layer_rows(workload, costs)[0]


def test_a_device_that_cannot_read_the_workload_leaves_nothing(workload, folder):
    class Refusing:
        name = "refusing"

        def cost(self, workload: Workload) -> Cost:
            raise UserError("refusing: layer 'conv' has 32 bits")

    with pytest.raises(UserError, match="32 bits"):
        cost_devices(workload, {"small": PerMac("small", 1.0), "refusing": Refusing()}, folder)
    assert not list(folder.path.iterdir())
