"""What a device hands back: totals, limits, sources."""

import pytest

from edgetrain.errors import UserError
from edgetrain.hardware.cost import Cost, LayerCost, Limit, check_sources, ignored_facts
from edgetrain.hardware.workload import Layer, Loops, Workload


def test_totals_are_sums_and_unknown_energy_stays_unknown():
    rows = (LayerCost("a", "conv", 10, 0.5, 2.0), LayerCost("b", "pool", 0, uncovered="no figure for pool"))
    cost = Cost("d", "w", rows, 100)
    assert (cost.seconds, cost.joules) == (0.5, 2.0)
    assert [row.name for row in cost.uncovered] == ["b"]
    assert Cost("d", "w", (LayerCost("a", "conv", 10, 0.5),), 100).joules is None


def test_a_board_that_is_exactly_full_fits():
    full, over = Limit("flash", 1024, 1024), Limit("RAM", 1025, 1024)
    assert Cost("d", "w", (), 0, limits=(full,)).fits
    assert not Cost("d", "w", (), 0, limits=(full, over)).fits


def test_every_constant_needs_a_source_and_every_source_a_constant():
    check_sources("d", {"clock_hz": 1.0}, {"clock_hz": "data sheet"}, ["clock_hz"])
    with pytest.raises(UserError, match="hardware d: the constant 'clock_hz' has no source"):
        check_sources("d", {"clock_hz": 1.0}, {"clock_hz": " "}, [])
    with pytest.raises(UserError, match="power in sources or unverified is none of its constants"):
        check_sources("d", {"clock_hz": 1.0}, {"clock_hz": "data sheet"}, ["power"])


def test_energy_that_is_known_of_some_layers_alone_is_no_total():
    rows = (LayerCost("a", "conv", 10, 0.5, 2.0), LayerCost("b", "conv", 10, 0.5))
    assert Cost("d", "w", rows, 100).joules is None


def test_what_a_layer_says_and_a_device_ignores_is_a_note():
    thin = Layer("a", "linear", Loops(out_channels=4, in_channels=4), macs=2, density=0.1, rank=1)
    said = ignored_facts(Workload("w", (thin,)))
    assert len(said) == 3 and "zero weights" in said[0] and "low rank" in said[1] and "other MACs" in said[2]
    assert len(ignored_facts(Workload("w", (thin,)), density=True, rank=True)) == 1
    whole = Layer("a", "linear", Loops(out_channels=4, in_channels=4), macs=16)
    assert ignored_facts(Workload("w", (whole,))) == []
