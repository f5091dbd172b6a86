"""Memory hierarchy: the streaming transducer worked by hand, placement under a budget, what a call reads."""

from dataclasses import replace

import pytest
import yaml
from conftest import ROOT
from small_workloads import layer, tensor

from edgetrain.build import build
from edgetrain.errors import UserError
from edgetrain.hardware.formats import FP32, INT8, Format
from edgetrain.hardware.memory import MemoryHierarchy, computed_macs, read_bytes, stored_bytes
from edgetrain.hardware.workload import Activation, Kind, Layer, Loops, Workload

RATES = {"encoder": 6.25, "predictor": 3, "joiner": 28}  # 160 ms segments; 3 tokens/s; 25 frames/s + 3 tokens/s
SIZES = {"encoder": 63_605_760, "predictor": 8_932_864 - 2_097_664, "joiner": 4_199_425}  # torchaudio's base transducer
TABLE = 2_097_664  # of the predictor's parameters, 4,097 x 512


def part(component: str, weights: int, kind: Kind = "linear", **facts) -> Layer:
    """A layer of int8 weights whose tensors and MACs weigh nothing beside them."""
    x, y = tensor(f"{component}.x", 1), tensor(f"{component}.y", 1)
    return replace(
        Layer(component, kind, Loops(), (x,), (y,), weights=weights, weight_format=INT8, component=component), **facts
    )


def transducer() -> Workload:
    lookup = part("predictor", TABLE, "embedding", name="table", outputs=(tensor("row", 512),))
    parts = [part(component, weights) for component, weights in SIZES.items()]
    return Workload("transducer", (parts[0], lookup, *parts[1:]))


def profile(**changes) -> MemoryHierarchy:
    node = yaml.safe_load((ROOT / "conf" / "hardware" / "memory_horowitz45nm.yaml").read_text())
    return build(node | changes)


def simple(**changes) -> MemoryHierarchy:
    """A near memory of 100 bytes at 1 pJ and a far one at 10 pJ a byte; 1 pJ a MAC."""
    levels = {
        "near": {"picojoules_per_byte": 1, "bytes": 100},
        "far": {"picojoules_per_byte": 10, "bytes": None},
    }
    facts = {"levels": levels, "mac_picojoules": {"int8": 1, "fp32": 4}} | changes
    return MemoryHierarchy(**{"sources": dict.fromkeys([*facts["levels"], *facts["mac_picojoules"]], "hand")} | facts)


def test_a_transducer_reads_536_megabytes_a_second_and_takes_86_milliwatts():
    powers = {one.component: one for one in profile(rates=RATES).power(transducer())}
    traffic = {name: one.bytes_per_second / 1e6 for name, one in powers.items()}
    assert traffic["encoder"] == pytest.approx(397.54, abs=0.005)
    assert traffic["predictor"] == pytest.approx(20.51, abs=0.005)  # a row of the table, never the table
    assert traffic["joiner"] == pytest.approx(117.58, abs=0.005)
    milliwatts = {name: 1e3 * one.weight_watts for name, one in powers.items()}
    assert milliwatts == pytest.approx({"encoder": 63.6, "predictor": 3.28, "joiner": 18.8}, rel=1e-3)
    assert sum(milliwatts.values()) == pytest.approx(85.7, abs=0.05)
    sensitivities = [powers[name].watts_per_byte / 160e-12 for name in RATES]
    assert sensitivities == pytest.approx([6.25, 3, 28])
    assert all(one.level == "dram" for one in powers.values())


def test_the_joiner_in_sram_saves_a_fifth():
    base = sum(profile(rates=RATES).cost(transducer()).watts.values())
    near = sum(profile(rates=RATES, placement={"joiner": "sram_8k"}).cost(transducer()).watts.values())
    assert 1e3 * near == pytest.approx(67.0, abs=0.05)
    assert near / base - 1 == pytest.approx(-0.218, abs=0.0005)


def test_watts_are_calls_a_second_by_joules_a_call():
    cost = profile(rates=RATES).cost(transducer())
    for component, rate in RATES.items():
        joules = sum(row.joules for row in cost.rows if row.component == component)
        assert cost.watts[component] == pytest.approx(rate * joules)
    assert "encoder runs 6.25 times a second and takes 63.61 mW" in cost.notes
    assert not profile().cost(transducer()).watts
    assert profile().cost(transducer()).joules == pytest.approx(cost.joules)


def test_a_budget_of_sram_goes_to_what_is_read_most_often():
    parts = [part("encoder", 90), part("joiner", 60), part("predictor", 30)]
    workload = Workload("w", tuple(parts))
    rates = {"encoder": 15.0, "joiner": 20.0, "predictor": 10.0}  # the encoder reads most in all, not most often
    levels = {one.component: one.level for one in simple(rates=rates).power(workload)}
    assert levels == {"encoder": "far", "joiner": "near", "predictor": "near"}
    rates["encoder"] = 25.0
    levels = {one.component: one.level for one in simple(rates=rates).power(workload)}
    assert levels == {"encoder": "near", "joiner": "far", "predictor": "far"}


def test_activations_and_given_components_take_their_room_first():
    workload = Workload("w", (part("encoder", 60), part("joiner", 40)))
    near = {one.component: one.level for one in simple(rates={"encoder": 1, "joiner": 2}).power(workload)}
    assert near == {"encoder": "far", "joiner": "near"}  # 100 bytes of weights, and two tensors at a time
    given = simple(rates={"encoder": 1, "joiner": 2}, placement={"encoder": "near"})
    assert {one.component: one.level for one in given.power(workload)} == {"encoder": "near", "joiner": "far"}
    fits = Workload("w", (part("encoder", 60), part("joiner", 30)))
    assert {one.level for one in given.power(fits)} == {"near"}


def test_a_table_of_which_a_row_is_read_gives_way():
    lookup = part("predictor", 90, "embedding", outputs=(tensor("row", 10),))
    workload = Workload("w", (lookup, part("joiner", 80)))
    levels = {one.component: one.level for one in simple(rates={"predictor": 8, "joiner": 1}).power(workload)}
    assert levels == {"predictor": "far", "joiner": "near"}  # 8 * 10 / 90 bytes a second and byte against 1


def test_a_given_place_is_kept_even_if_it_overflows_and_the_limit_says_so():
    cost = simple(placement={"encoder": "near"}).cost(Workload("w", (part("encoder", 101),)))
    (limit,) = cost.limits
    assert (limit.name, limit.needed, limit.available) == ("near", 101 + 2, 100)
    assert not cost.fits
    assert cost.rows[0].energy["weights"] == pytest.approx(101e-12)
    roomy = simple().cost(Workload("w", (part("encoder", 101),)))
    assert roomy.fits
    assert roomy.rows[0].energy["weights"] == pytest.approx(1010e-12)


def test_energy_is_weights_activations_and_macs():
    fc = layer("fc", "linear", Loops(1, 1, 3, 5), [tensor("x", 1, 5)], tensor("y", 1, 3))
    (row,) = simple(placement={"model": "far"}).cost(Workload("w", (fc,), ("x",), ("y",))).rows
    assert dict(row.energy) == pytest.approx({"weights": 180e-12, "activations": 8e-12, "MACs": 15e-12})
    assert row.joules == pytest.approx(203e-12)
    assert dict(row.moved) == {"far": 18, "near": 8}
    (row,) = simple().cost(Workload("w", (fc,), ("x",), ("y",))).rows
    assert dict(row.moved) == {"near": 26}


def test_activations_that_do_not_fit_stand_farther_away():
    fc = layer("fc", "linear", Loops(1, 1, 1, 100), [tensor("x", 1, 100)], tensor("y", 1, 1))
    (row,) = simple(placement={"model": "near"}).cost(Workload("w", (fc,), ("x",), ("y",))).rows
    assert row.energy["activations"] == pytest.approx(1010e-12)


def test_a_call_reads_rows_of_a_table_and_a_recurrent_layers_weights_at_every_step():
    ids, rows = tensor("ids", 3), tensor("rows", 3, 16)
    table = Layer("t", "embedding", Loops(), (ids,), (rows,), weights=1000, weight_format=Format(4))
    assert (read_bytes(table), stored_bytes(table)) == (24, 500)
    lstm = Layer("l", "recurrent", Loops(out_height=7), weights=100, biases=10, weight_format=INT8)
    assert (read_bytes(lstm), stored_bytes(lstm)) == (770, 110)
    four = replace(part("a", 101), weight_format=Format(4), biases=3)
    assert read_bytes(four) == 52


def test_zeros_and_what_a_low_rank_leaves_out_cost_nothing():
    loops = Loops(2, 1, 40, 30, 5, 5, 3, 3)
    conv = Layer("c", "conv", loops, macs=loops.macs, weights=40 * 30 * 9, biases=40, weight_format=INT8)
    half = replace(conv, density=0.5)
    assert stored_bytes(half) == 5400 + 40
    assert computed_macs(half) == loops.macs / 2
    factored = replace(conv, rank=4)
    assert stored_bytes(factored) == 4 * (30 * 9 + 40) + 40
    assert computed_macs(factored) == 2 * 5 * 5 * 4 * (30 * 9 + 40)
    assert stored_bytes(replace(conv, rank=4000)) == stored_bytes(conv)
    assert stored_bytes(replace(factored, weights=100)) == 140  # counted as factors already


def test_weights_that_components_share_stand_once_and_are_read_there_by_both():
    shared = Workload("w", (part("a", 50, weight_name="w"), part("b", 50, weight_name="w")))
    cost = simple(placement={"a": "far"}).cost(shared)
    assert cost.weight_bytes == 50
    assert [row.energy["weights"] for row in cost.rows] == pytest.approx([500e-12, 500e-12])
    assert "weights of a are in far" in cost.notes
    assert not any("weights of b" in note for note in cost.notes)
    # What b reads makes a's weights worth the near memory, of which c would have taken half.
    rivals = Workload("w", (*shared, part("c", 60)))
    rates = {"a": 1, "b": 3, "c": 2}
    assert {one.component: one.level for one in simple(rates=rates).power(rivals)}["a"] == "near"
    rates["b"] = 0.5
    assert {one.component: one.level for one in simple(rates=rates).power(rivals)}["a"] == "far"
    with pytest.raises(UserError, match="placement.b: b stores no weights of its own"):
        simple(placement={"b": "far"}).cost(shared)


@pytest.mark.parametrize(
    ("weights", "inputs", "picojoules"),
    [
        (INT8, INT8, 1),
        (Format(4), INT8, 1),
        (FP32, FP32, 4),
        (Format(16, 5), FP32, 4),
        (INT8, FP32, 4),
        (INT8, Format(16), 9),
    ],
)
def test_a_mac_takes_the_energy_of_the_wider_factor(weights, inputs, picojoules):
    one = Layer("l", "linear", Loops(), (Activation("x", (1,), inputs),), (), macs=10, weight_format=weights)
    energies = {"fp32": 4, "int32": 9, "int8": 1}  # the narrowest that holds both, wherever it stands in the list
    (row,) = simple(mac_picojoules=energies).cost(Workload("w", (one,))).rows
    assert row.energy["MACs"] == pytest.approx(10e-12 * picojoules)


def test_a_format_without_energy_is_uncovered_and_not_zero():
    cost = simple().cost(Workload("w", (part("a", 10, weight_format=Format(16)),)))
    assert cost.uncovered[0].uncovered == "the profile has no energy of a MAC of int8 and int16"
    assert cost.joules is None


def test_floating_point_is_costed_as_assumed_and_said_so():
    fc = part("a", 10, weight_format=FP32)
    cost = simple(assume="int8").cost(Workload("w", (fc,)))
    assert cost.weight_bytes == 10
    assert "floating-point layers are costed as int8" in cost.notes
    assert simple().cost(Workload("w", (fc,))).weight_bytes == 40
    integers = simple(assume="int8").cost(Workload("w", (part("a", 10),)))
    assert not any("floating" in note for note in integers.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": {}}, "levels and mac_picojoules must each have at least one entry"),
        ({"levels": {"near": {"bytes": 1}}}, "levels.near must have picojoules_per_byte and bytes"),
        ({"levels": {"near": {"picojoules_per_byte": -1, "bytes": 1}}}, "levels.near.picojoules_per_byte=-1 must be"),
        ({"mac_picojoules": {"int8": "low"}}, "mac_picojoules.int8=low must be a number, zero or more"),
        ({"mac_picojoules": {"byte": 1}}, "'byte' is not a number format"),
        ({"rates": {"joiner": -3}}, "rates.joiner=-3 must be a number"),
        ({"placement": {"joiner": "nera"}}, "placement.joiner=nera is no level.*did you mean 'near'"),
        ({"sources": {}}, "the constant 'near' has no source"),
    ],
)
def test_a_profile_that_cannot_be_used_is_a_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        simple(**changes)


@pytest.mark.parametrize("option", ["rates", "placement"])
def test_a_component_that_is_not_there_is_a_sentence(option):
    given = {"joinr": "near" if option == "placement" else 1}
    with pytest.raises(UserError, match=f"{option}.joinr is for no component of w.*did you mean 'joiner'"):
        simple(**{option: given}).cost(Workload("w", (part("joiner", 1),)))
