"""Several devices as one: the toy of two chains through devices, shared bandwidth, what nobody covers, and its Cost."""

import math
import struct
from dataclasses import replace

import pytest

from edgetrain.build import build
from edgetrain.compose import compose
from edgetrain.errors import UserError
from edgetrain.hardware.cost import Cost, LayerCost, Limit
from edgetrain.hardware.device_table import joined, predecessors
from edgetrain.hardware.formats import INT8
from edgetrain.hardware.system import System
from edgetrain.hardware.workload import Activation, Layer, Loops, Workload

# hardware.md's toy in milliseconds and millijoules: chains a0 a1 a2 and b0 b1 on two sub-accelerators.
SECONDS = {"a0": (4, 6), "a1": (8, 3), "a2": (5, 5), "b0": (2, 7), "b1": (6, 4)}
JOULES = {"a0": (9, 5), "a1": (10, 7), "a2": (3, 8), "b0": (4, 6), "b1": (12, 5)}


class Tabled:
    """A device whose figures are given, by the layer's name; it covers nothing else and counts its questions."""

    def __init__(self, name, milliseconds, millijoules=None, bytes=None, area=1.5, limits=()) -> None:
        self.name, self.milliseconds, self.millijoules, self.bytes = name, milliseconds, millijoules, bytes
        self.area, self.limits, self.asked = area, limits, 0

    def cost(self, workload: Workload) -> Cost:
        self.asked += 1
        rows = []
        for layer in workload:
            if layer.name not in self.milliseconds:
                rows.append(LayerCost(layer.name, layer.kind, layer.macs, uncovered="no such unit"))
                continue
            joules = self.millijoules[layer.name] / 1e3 if self.millijoules else None
            moved = {"DRAM": self.bytes.get(layer.name, 0)} if self.bytes is not None else {}
            rows.append(
                LayerCost(layer.name, layer.kind, layer.macs, self.milliseconds[layer.name] / 1e3, joules, moved)
            )
        return Cost(
            self.name,
            workload.name,
            tuple(rows),
            100,
            area_mm2=self.area,
            macs_per_second=1e9,
            bytes_per_second=1e8,
            memory_level="DRAM" if self.bytes is not None else "",
            limits=self.limits,
            sources={"clock": "made up"},
            unverified=("clock",),
            notes=("counts nothing else",),
        )


def toy_devices(**options) -> dict[str, Tabled]:
    return {
        name: Tabled(
            name, *({layer: pair[k] for layer, pair in table.items()} for table in (SECONDS, JOULES)), **options
        )
        for k, name in enumerate(("left", "right"))
    }


def layer(name: str, reads: str = "", writes: str = "") -> Layer:
    tensors = [tuple(Activation(tensor, (1,)) for tensor in names.split()) for names in (reads, writes)]
    return Layer(name, "conv", Loops(), *tensors, macs=1)


def chain(name: str, *layers: str) -> Workload:
    return Workload(name, tuple(layer(one) for one in layers))


A, B = chain("a", "a0", "a1", "a2"), chain("b", "b0", "b1")


def test_the_toy_through_devices_has_its_published_answers() -> None:
    system = System(toy_devices())
    soonest = system.schedule([A, B])
    assert (soonest.makespan, soonest.joules) == pytest.approx((0.012, 0.028))
    for deadline, joules in ((0.012, 0.028), (0.013, 0.028), (0.014, 0.024), (math.inf, 0.024)):
        found = system.schedule([A, B], deadline=deadline)
        assert found.status == "optimal" and found.in_time and found.joules == pytest.approx(joules)
    late = system.schedule([A, B], deadline=0.011)
    assert late.status == "infeasible" and not late.in_time and late.makespan == pytest.approx(0.012)


def test_slots_hold_every_layer_once_with_its_device_and_its_time() -> None:
    found = System(toy_devices()).schedule([A, B])
    assert sorted(slot.layer for slot in found.slots) == sorted(SECONDS)
    for slot in found.slots:
        device = ("left", "right").index(slot.device)
        assert slot.end - slot.start == pytest.approx(SECONDS[slot.layer][device] / 1e3)
        assert slot.joules == pytest.approx(JOULES[slot.layer][device] / 1e3)
        assert slot.model == slot.layer[0]
    starts = {slot.layer: slot.start for slot in found.slots}
    assert [slot.start for slot in found.slots] == sorted(starts.values())
    assert starts["a0"] < starts["a1"] < starts["a2"] and starts["b0"] < starts["b1"]
    assert max(row["end ms"] for row in found.rows()) == pytest.approx(12)


def test_models_wait_for_their_own_layers_alone() -> None:
    system = System(toy_devices())
    problem = joined([system.table(A).problem, system.table(B).problem])
    assert problem.before == [[], [0], [1], [], [3]]
    assert list(map(list, problem.seconds)) == [pytest.approx([one / 1e3 for one in SECONDS[name]]) for name in SECONDS]


def test_two_of_the_same_model_are_told_apart() -> None:
    found = System(toy_devices()).schedule([B, B])
    assert {slot.model for slot in found.slots} == {"b", "b:2"}
    assert len(found.slots) == 4


def test_a_chain_alone_ends_soonest_on_the_fastest_device_of_every_layer() -> None:
    """4 + 3 + 5 ms: nothing runs beside anything."""
    cost = System(toy_devices()).cost(A)
    assert cost.seconds == pytest.approx(0.012)
    assert [row.device for row in cost.rows] == ["left", "right", "left"]
    assert [row.seconds for row in cost.rows] == pytest.approx([0.004, 0.003, 0.005])
    assert cost.joules == pytest.approx(0.009 + 0.007 + 0.003)  # a2 is as fast on both and cheaper on the left


def test_a_cost_keeps_to_the_deadline_of_the_system() -> None:
    cost = System(toy_devices(), deadline=0.014).cost(A)
    assert [row.device for row in cost.rows] == ["right", "right", "left"]
    assert cost.seconds == pytest.approx(0.014) and cost.joules == pytest.approx(0.015)
    assert "least energy by 14 ms, proved to be best" in cost.notes[0]
    late = System(toy_devices(), deadline=0.0119).cost(A)
    assert late.seconds == pytest.approx(0.012)
    assert "by 11.9 ms, which nothing can" in late.notes[0]


def test_the_cost_of_branches_is_the_makespan_not_the_sum() -> None:
    """x feeds two layers of 2 ms that run beside each other; the last waits for both."""
    devices = {name: Tabled(name, {"x": 1, "l": 2, "r": 2, "y": 1}) for name in ("one", "two")}
    diamond = Workload(
        "diamond", (layer("x", "in", "t"), layer("l", "t", "u"), layer("r", "t", "v"), layer("y", "u v", "out"))
    )
    cost = System(devices).cost(diamond)
    assert cost.seconds == cost.makespan == pytest.approx(0.004)
    assert sum(row.seconds for row in cost.rows) == pytest.approx(0.006)
    assert cost.rows[1].device != cost.rows[2].device
    assert cost.joules is None


def test_layers_wait_for_who_writes_what_they_read() -> None:
    graph = (
        layer("x", "in", "t"),
        layer("y", "in", "u"),
        layer("z", "t u late", "v"),
        layer("w", "v t", "late"),
        layer("cache", "u cache", "cache"),
        layer("last", "cache", "out"),
    )
    assert predecessors(Workload("graph", graph)) == [set(), set(), {0, 1}, {0, 2}, {1}, {4}]
    rewritten = (
        layer("x", "in", "t"),
        layer("y", "t", "u"),
        layer("z", "t", "v"),
        layer("w", "in", "t"),
        layer("r", "t"),
    )
    assert predecessors(Workload("in place", rewritten)) == [set(), {0}, {0}, {0, 1, 2}, {3}]
    assert predecessors(A) == [set(), {0}, {1}]
    assert predecessors(Workload("half", (layer("x", "in", "t"), layer("y"), layer("z", "t")))) == [set(), {0}, {0}]


def test_a_layer_runs_where_it_is_covered_and_its_reasons_are_listed_where_it_is_nowhere() -> None:
    devices = {"fast": Tabled("fast", {"a0": 1, "a2": 1}), "slow": Tabled("slow", {"a1": 9, "a2": 9})}
    system = System(devices)
    cost = system.cost(chain("net", "a0", "a1", "norm", "a2"))
    assert [row.device for row in cost.rows] == ["fast", "slow", "", "fast"]
    assert [row.name for row in cost.rows] == ["a0", "a1", "norm", "a2"]
    assert cost.uncovered == (cost.rows[2],)
    assert cost.rows[2].uncovered == "fast: no such unit; slow: no such unit"
    assert cost.seconds == pytest.approx(0.011)  # a2 still waits for a1, through the layer that is left out
    assert system.schedule([chain("net", "norm", "a2")]).uncovered[0].name == "norm"


def test_a_workload_that_nobody_covers_takes_no_time_and_is_all_uncovered() -> None:
    cost = System({"only": Tabled("only", {})}).cost(A)
    assert cost.seconds == 0 and len(cost.uncovered) == 3


def test_shared_bandwidth_stretches_layers_and_keeps_apart_what_does_not_fit() -> None:
    """Two models of a layer of 10 ms each on their own device; a megabyte each, at 100, 200 and 50 MB/s."""
    devices = {"one": Tabled("one", {"x": 10}, bytes={"x": 1e6}), "two": Tabled("two", {"y": 10}, bytes={"y": 1e6})}
    models = [chain("first", "x"), chain("second", "y")]
    sources = {"bandwidth": "made up"}
    assert System(devices).schedule(models).makespan == pytest.approx(0.010)
    for bandwidth, makespan in ((200e6, 0.010), (100e6, 0.020), (199e6, 0.020), (50e6, 0.040)):
        found = System(devices, bandwidth=bandwidth, sources=sources).schedule(models)
        assert found.makespan == pytest.approx(makespan)
    stretched = System(devices, bandwidth=50e6, sources=sources).cost(models[0])
    assert stretched.rows[0].seconds == pytest.approx(0.020)
    assert stretched.bytes_per_second == 50e6 and stretched.memory_level == "DRAM"
    assert stretched.sources["bandwidth"] == "made up"


def test_areas_and_rates_add_up_and_sources_say_whose_they_are() -> None:
    devices = toy_devices()
    system = System(devices, name="pair")
    cost = system.cost(A)
    assert (cost.device, cost.workload, cost.area_mm2, cost.macs_per_second) == ("pair", "a", 3.0, 2e9)
    assert system.area_mm2(A) == 3.0
    assert cost.sources == {"left.clock": "made up", "right.clock": "made up"}
    assert cost.unverified == ("left.clock", "right.clock")
    assert "right: counts nothing else" in cost.notes
    devices["right"].area = None
    assert System(devices).cost(A).area_mm2 is None


def test_two_accelerators_together_are_never_slower_than_either_and_take_both_areas() -> None:
    nodes = compose(["recipe=cost", "hardware=[nvdla,shidiannao,nvdla_shidiannao]"]).hardware
    nvdla, shidiannao, both = (build(node) for node in nodes.values())
    shapes = [
        Loops(1, 1, 32, 3, 56, 56, 3, 3, 2, 2),
        Loops(1, 1, 64, 32, 28, 28, 1, 1),
        Loops(1, 1, 256, 128, 7, 7, 3, 3),
    ]
    layers = [Layer(f"conv{n}", "conv", loops, macs=loops.macs, weight_format=INT8) for n, loops in enumerate(shapes)]
    alone, other, cost = (device.cost(Workload("net", tuple(layers))) for device in (nvdla, shidiannao, both))
    faster = [min(pair, key=lambda row: row.seconds) for pair in zip(alone.rows, other.rows, strict=True)]
    assert [row.seconds for row in cost.rows] == [row.seconds for row in faster]
    assert {row.device for row in cost.rows} == {"nvdla", "shidiannao"}
    assert cost.seconds == pytest.approx(sum(row.seconds for row in faster))
    assert cost.seconds <= min(alone.seconds, other.seconds)
    assert cost.area_mm2 == pytest.approx(alone.area_mm2 + other.area_mm2)
    assert cost.sources["nvdla.mac_pj"] == alone.sources["mac_pj"]


def test_limits_of_single_devices_are_said_to_be_unchecked() -> None:
    limited = System({"board": Tabled("board", {"b0": 1, "b1": 1}, limits=(Limit("flash", 10, 5),))}).cost(B)
    assert limited.limits == () and any("is not checked" in note for note in limited.notes)
    assert not any("is not checked" in note for note in System(toy_devices()).cost(A).notes)


def test_a_system_is_a_device_inside_another() -> None:
    inner = System(toy_devices(), name="pair")
    outer = System({"pair": inner, "other": Tabled("other", {"a2": 1}, {"a2": 1})}, name="both")
    cost = outer.cost(A)
    assert [row.device for row in cost.rows] == ["pair", "pair", "other"]
    assert "pair.left.clock" in cost.sources


def test_devices_are_asked_once_for_a_workload() -> None:
    devices = toy_devices()
    system = System(devices)
    for deadline in (None, 0.012, 0.014):
        system.schedule([A, B], deadline)
    system.cost(replace(A))  # an equal table is the same one
    assert devices["left"].asked == 2


def test_the_gantt_chart_is_a_picture() -> None:
    png = System(toy_devices()).schedule([A, B], deadline=0.014).gantt()
    assert png.startswith(b"\x89PNG") and struct.unpack(">II", png[16:24])[0] == 1080


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"devices": {}}, "hardware toy: a system needs devices; name at least one under devices"),
        ({"deadline": 0.0}, "deadline=0.0 must be above zero seconds"),
        ({"deadline": math.nan}, "deadline=nan must be above zero seconds"),
        ({"bandwidth": -1.0}, "bandwidth=-1.0 must be above zero bytes/s"),
        ({"time_limit": -1.0}, "time_limit=-1.0 must be zero seconds or more"),
        ({"bandwidth": 1e9}, "the constant 'bandwidth' has no source"),
        ({"sources": {"bandwidth": "x"}}, "bandwidth in sources or unverified is none of its constants"),
    ],
)
def test_what_makes_no_system_is_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        System(**{"devices": toy_devices(), "name": "toy"} | options)


def test_what_the_devices_do_not_know_is_asked_for_in_one_sentence() -> None:
    silent = System({"one": Tabled("one", {"b0": 1, "b1": 1})}, name="toy")
    with pytest.raises(UserError, match="hardware toy: a deadline asks for the least energy, and one has no model of"):
        silent.schedule([B], deadline=1.0)
    partly = System(toy_devices() | {"third": Tabled("third", {"b1": 1})}, name="toy")
    with pytest.raises(UserError, match="third has no model of energy"):
        partly.schedule([A, B], deadline=1.0)
    assert partly.schedule([A, B]).joules is None
    assert partly.schedule([A], deadline=1.0).status == "optimal"  # the third device covers none of its layers
    sharing = System(toy_devices(), name="toy", bandwidth=1e9, sources={"bandwidth": "x"})
    with pytest.raises(
        UserError, match="hardware toy: bandwidth=1e\\+09 cannot be shared, because left does not count"
    ):
        sharing.cost(A)
