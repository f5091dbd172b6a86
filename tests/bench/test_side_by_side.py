"""Timing in turns, ratios within a round, and when a ratio may not be quoted. Clock and load are fakes."""

import gc

import numpy as np
import pytest
import torch

from edgetrain.bench.load import busy_cpu_seconds, others_cpu_seconds, own_cpu_seconds, usable_cores
from edgetrain.bench.side_by_side import Contender, Ratio, Timing, measure, quartiles, ratio

SECONDS = [1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 1.0]


def test_contenders_take_turns_and_every_other_round_runs_backwards(machine) -> None:
    contenders = [machine.contender(name, [1.0]) for name in "abc"]
    measure(contenders, repeats=3, warmup=2, threads=1)
    assert "".join(machine.turns) == "abc" * 2 + "abc" + "cba" + "abc"


@pytest.mark.parametrize(
    ("minutes", "rounds"),
    [(None, 9), (10, 9), (1, 5), (59 / 60, 4), (0, 1)],
)
def test_no_round_begins_that_would_end_after_the_minutes(machine, minutes: float | None, rounds: int) -> None:
    """A round takes 10 s, the warm-up too: 60 s hold five counted ones, 59 s four. The first is always made."""
    contenders = [machine.contender("a", [4.0]), machine.contender("b", [6.0])]
    timings = measure(contenders, repeats=9, warmup=1, threads=1, minutes=minutes)
    assert [len(timing.rates) for timing in timings] == [rounds, rounds]


def test_rates_are_units_over_seconds_of_the_counted_repeats(machine) -> None:
    (timing,) = measure([machine.contender("a", [99.0, 1.0, 2.0, 4.0], units=8)], repeats=3, warmup=1, threads=1)
    assert timing.rates == [8.0, 4.0, 2.0]
    assert timing.median == 4.0
    assert timing.quartiles == (3.0, 4.0, 6.0)


def test_quartiles_equal_numpys() -> None:
    for count in (2, 5, 7, 8):
        values = np.random.default_rng(count).random(count).tolist()
        assert quartiles(values) == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)


def test_a_ratio_is_taken_within_each_round(machine) -> None:
    """The machine gets slower and faster by fours; the ratio is 3 in every round all the same."""
    slow = [3 * seconds for seconds in SECONDS]
    fast, other = measure([machine.contender("a", SECONDS), machine.contender("b", slow)], warmup=0, threads=1)
    assert (ratio(fast, other).lower, ratio(fast, other).median, ratio(fast, other).upper) == (3.0, 3.0, 3.0)
    assert ratio(other, fast).median == pytest.approx(1 / 3)
    assert ratio(fast, other).quotable
    assert str(ratio(fast, other)) == "3 (3 to 3)"


def test_load_is_the_share_of_all_cores_that_others_took(machine) -> None:
    """Others run 0.3 s a second on one of two cores during `a`, nothing during `b`, which takes as long."""
    pair = measure([machine.contender("a", [1.0], load=0.3), machine.contender("b", [1.0])], threads=2)
    assert ratio(*pair).load == pytest.approx(0.3 / 2 / 2)


def test_a_loaded_machine_gives_no_ratio(machine) -> None:
    a, b = measure(
        [machine.contender("a", [1.0], load=0.25), machine.contender("b", [2.0], load=0.25)], warmup=0, threads=2
    )
    assert not ratio(a, b).quotable
    assert str(ratio(a, b)) == "not quotable: other processes took 12% of the machine"
    machine.others = None  # a system without accounts: the spread alone decides
    a, b = measure([machine.contender("a", [1.0]), machine.contender("b", [2.0])], threads=2)
    assert ratio(a, b).load is None
    assert ratio(a, b).quotable


def made(median: float, lower: float, upper: float, **changed) -> Ratio:
    facts = {"repeats": 7, "load": 0.0, "threads": 2, "cores": 2.0}
    return Ratio(median, lower, upper, **(facts | changed))


@pytest.mark.parametrize(
    ("found", "why_not"),
    [
        (made(1.5, 1.4, 1.6), ""),
        (made(0.5, 0.45, 0.55), ""),
        (made(1.5, 1.25, 1.75), ""),  # a spread of exactly the difference is the most that is allowed
        (made(1.5, 1.2, 1.75), "further apart than 1.5 and 1"),
        (made(0.8, 0.65, 0.9), "further apart than 0.8 and 1"),
        (made(1.02, 0.99, 1.05), "on both sides of 1"),
        (made(0.98, 0.97, 1.0), "on both sides of 1"),
        (made(1.5, 1.4, 1.6, load=0.1), ""),
        (made(1.5, 1.4, 1.6, load=0.11), "other processes took 11% of the machine"),
        (made(1.5, 1.4, 1.6, threads=3), "3 threads on 2 cores"),
        (made(1.5, 1.4, 1.6, repeats=4), "4 repeats are fewer than 5"),
    ],
)
def test_a_ratio_is_refused_when_spread_or_load_exceeds_the_difference(found: Ratio, why_not: str) -> None:
    assert found.quotable == (why_not == "")
    assert why_not in found.why_not
    assert str(found).startswith("not quotable: ") == bool(why_not)


def test_the_garbage_collector_rests_only_while_a_contender_is_timed() -> None:
    seen = []
    contender = Contender("a", lambda: seen.append(gc.isenabled()) or 1)
    measure([contender], repeats=1, warmup=0)
    assert seen == [False]
    assert gc.isenabled()

    def fails() -> int:
        raise ValueError

    with pytest.raises(ValueError):
        measure([Contender("b", fails)], repeats=1, warmup=0)
    assert gc.isenabled()


def test_a_gpu_is_waited_for_before_and_after_each_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait"))
    measure([Contender("a", lambda: order.append("run") or 1)], repeats=2, warmup=0, device="cuda")
    assert order == ["wait", "run", "wait"] * 2


STATISTICS = """\
cpu  9999 9 9 9 9 9 9 9 9 9
cpu0 100 20 30 4000 500 6 7 8 90 10
cpu1 1000 0 0 5000 0 0 0 0 0 0
cpu10 7 0 0 0 0 0 0 0 0 0
intr 5 5
"""


def test_busy_time_leaves_out_idling_and_counts_guests_once() -> None:
    """user + nice + system + irq + softirq + steal = 171 ticks of 10 ms on the first core."""
    assert busy_cpu_seconds(STATISTICS, {0}, 100) == pytest.approx(1.71)
    assert busy_cpu_seconds(STATISTICS, {0, 1}, 100) == pytest.approx(11.71)
    assert busy_cpu_seconds(STATISTICS, {10}, 100) == pytest.approx(0.07)


def test_own_work_is_not_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from edgetrain.bench import load

    (tmp_path / "stat").write_text("".join(f"cpu{core} 500 0 0 9 0 0 0 0\n" for core in range(4096)))
    monkeypatch.setattr(load, "STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(load.os, "sysconf", lambda _: 100)
    monkeypatch.setattr(load, "own_cpu_seconds", lambda: 4.0)
    assert others_cpu_seconds() == pytest.approx(6.0)
    monkeypatch.setattr(load, "STATISTICS", tmp_path / "none")
    assert others_cpu_seconds() is None
    monkeypatch.undo()
    assert own_cpu_seconds() > 0


def test_a_containers_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from edgetrain.bench import load

    monkeypatch.setattr(load, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: set(range(8)))
    assert usable_cores() == 8
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert usable_cores() == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores() == 8


def test_a_timing_of_one_repeat_has_quartiles() -> None:
    assert Timing("a", units=[10], seconds=[2.0]).quartiles == (5.0, 5.0, 5.0)
