"""Layers on devices: the toy of two chains, every small instance by trying everything, and what the solvers promise."""

import math
import random
import sys
from itertools import permutations, product

import pytest

from edgetrain.hardware.assignment import FULL, Problem, replayed
from edgetrain.hardware.cp_sat import exact
from edgetrain.hardware.hap import solve
from edgetrain.hardware.list_scheduling import cheaper, fastest, mapped, shorter

# Chains a0 a1 a2 and b0 b1 on two sub-accelerators.
TOY = Problem(
    seconds=[(4, 6), (8, 3), (5, 5), (2, 7), (6, 4)],
    before=[(), (0,), (1,), (), (3,)],
    joules=[(9, 5), (10, 7), (3, 8), (4, 6), (12, 5)],
)


def trying_everything(problem: Problem) -> list[tuple[int, float | None]]:
    """(makespan, joules) of every mapping with its best schedule, whole seconds, on a grid of single seconds."""
    found = []
    for devices in product(*problem.choices):
        took = [problem.seconds[layer][device] for layer, device in enumerate(devices)]
        best = min(
            placed(problem, devices, took, order)
            for order in permutations(range(len(problem)))
            if all(order.index(other) < order.index(i) for i in order for other in problem.before[i])
        )
        found.append((best, problem.energy(devices)))
    return found


def placed(problem: Problem, devices, took, order) -> int:
    """Each layer of the order at the first second from which on everything that it needs is free."""
    occupied: dict[int, list[int]] = {}
    ends = [0] * len(problem)
    for layer in order:
        start = max((ends[other] for other in problem.before[layer]), default=0)
        share = problem.shares[layer][devices[layer]] if problem.shares else 0

        def free(second, layer=layer, share=share) -> bool:
            running = occupied.get(second, [])
            load = sum(problem.shares[other][devices[other]] for other in running) if problem.shares else 0
            return all(devices[other] != devices[layer] for other in running) and load + share <= FULL

        while not all(free(start + more) for more in range(took[layer])):
            start += 1
        for second in range(start, start + took[layer]):
            occupied.setdefault(second, []).append(layer)
        ends[layer] = start + took[layer]
    return max(ends)


def instance(seed: int, layers: int, devices: int, shared: bool = False) -> Problem:
    """A random graph with whole seconds; some layers cannot run everywhere."""
    draw = random.Random(seed)
    seconds = [
        [draw.randint(1, 9) if draw.random() < 0.85 else math.inf for _ in range(devices)] for _ in range(layers)
    ]
    for row in seconds:
        row[draw.randrange(devices)] = draw.randint(1, 9)
    return Problem(
        seconds,
        [[other for other in range(layer) if draw.random() < 0.35] for layer in range(layers)],
        [[draw.randint(1, 9) for _ in range(devices)] for _ in range(layers)],
        [[draw.choice([0, 1, 2, 3, 4]) * FULL // 4 for _ in range(devices)] for _ in range(layers)] if shared else None,
    )


def respects_everything(problem: Problem, found) -> bool:
    """Layers wait for their inputs, devices run one at a time, the memory is never overdrawn."""
    ends = [start + problem.seconds[i][found.devices[i]] for i, start in enumerate(found.starts)]
    waits = all(found.starts[i] >= ends[other] for i in range(len(problem)) for other in problem.before[i])
    alone = all(
        ends[i] <= found.starts[j] or ends[j] <= found.starts[i]
        for i in range(len(problem))
        for j in range(i)
        if found.devices[i] == found.devices[j]
    )
    loads = (
        [
            sum(problem.shares[i][found.devices[i]] for i in range(len(problem)) if found.starts[i] <= moment < ends[i])
            for moment in found.starts
        ]
        if problem.shares
        else [0]
    )
    return waits and alone and max(loads) <= FULL and found.makespan == max(ends)


def test_the_toy_has_the_published_pareto_front() -> None:
    everything = trying_everything(TOY)
    assert min(everything) == (12, 28)
    front = [one for one in set(everything) if not any(a <= one[0] and b <= one[1] for a, b in set(everything) - {one})]
    assert sorted(front) == [(12, 28), (14, 24)]


def test_the_toy_ends_soonest_at_12_with_energy_28() -> None:
    found, status = solve(TOY, None, 0.1)
    assert (found.makespan, found.joules, status) == (12, 28, "optimal")


@pytest.mark.parametrize(("deadline", "joules"), [(12, 28), (13, 28), (14, 24), (100, 24), (math.inf, 24)])
def test_the_toy_takes_the_least_energy_that_its_deadline_allows(deadline: float, joules: float) -> None:
    found, status = solve(TOY, deadline, 0.1)
    assert (found.joules, status) == (joules, "optimal")
    assert found.ends_by(deadline) and respects_everything(TOY, found)


def test_a_deadline_that_nothing_meets_gives_the_shortest_makespan() -> None:
    found, status = solve(TOY, 11, 0.1)
    assert (found.makespan, status) == (12, "infeasible")


def test_a_deadline_below_the_longest_chain_needs_no_solver() -> None:
    assert solve(TOY, 1, 0)[1] == "infeasible"
    assert solve(TOY, 1, 0.1)[0].makespan == 12


def test_cheapest_for_every_layer_takes_24_and_ends_at_14() -> None:
    greedy = mapped(TOY, TOY.cheapest())
    assert (greedy.devices, greedy.makespan, greedy.joules) == ((1, 1, 0, 0, 1), 14, 24)


@pytest.mark.parametrize("shared", [False, True], ids=["own memory", "shared memory"])
@pytest.mark.parametrize("seed", range(12))
def test_small_instances_are_solved_as_by_trying_everything(seed: int, shared: bool) -> None:
    problem = instance(seed, layers=5, devices=2 + seed % 2, shared=shared)
    everything = trying_everything(problem)
    shortest = min(makespan for makespan, _ in everything)
    found, status = solve(problem, None, 0.2)
    assert status == "optimal" and respects_everything(problem, found)
    assert (found.makespan, found.joules) == min(everything)
    assert problem.least_seconds <= shortest
    for deadline in range(shortest, max(makespan for makespan, _ in everything) + 1, 2):
        found, status = solve(problem, deadline, 0.2)
        assert status == "optimal" and respects_everything(problem, found) and found.makespan <= deadline
        assert found.joules == min(joules for makespan, joules in everything if makespan <= deadline)
    found, status = solve(problem, shortest - 0.01, 0.2)
    assert (status, found.makespan) == ("infeasible", shortest)


@pytest.mark.parametrize("shared", [False, True], ids=["own memory", "shared memory"])
def test_lists_alone_give_schedules_that_hold(shared: bool) -> None:
    sooner = 0
    for seed in range(40):
        problem = instance(seed, layers=14, devices=3, shared=shared)
        quick = fastest(problem)
        assert respects_everything(problem, quick)
        assert quick.makespan >= problem.least_seconds
        soon = shorter(problem, quick)
        assert respects_everything(problem, soon) and problem.least_seconds <= soon.makespan <= quick.makespan
        sooner += soon.makespan < quick.makespan
        frugal = cheaper(problem, quick, 1.3 * quick.makespan)
        assert respects_everything(problem, frugal) and frugal.makespan <= 1.3 * quick.makespan
        assert frugal.joules <= quick.joules
        again = replayed(problem, quick.devices, sorted(range(14), key=lambda layer: (quick.starts[layer], layer)))
        assert again == quick
    assert sooner  # moving single layers helps some of them


def test_the_price_of_energy_decides_where_a_layer_runs() -> None:
    """1 s and 10 J, or 3 s and 4 J: from a third of a second a joule on, the second is worth it."""
    problem = Problem([(1.0, 3.0)], [()], [(10.0, 4.0)])
    assert [fastest(problem, price).devices for price in (0.0, 0.33, 0.34)] == [(0,), (0,), (1,)]


def test_without_or_tools_lists_find_a_schedule_and_say_that_it_is_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    quick = fastest(TOY)
    assert exact(TOY, 13, "joules", quick, 1.0) == (None, "unknown")
    found, status = solve(TOY, 13, 1.0)
    assert status == "feasible" and found.makespan <= 13 and respects_everything(TOY, found)
    assert solve(TOY, math.inf, 1.0)[1] == "optimal"
    late, status = solve(TOY, 11.9, 1.0)
    assert status == "infeasible" and late.makespan == 12  # below the longest chain, 12: no solver needed


def test_more_search_never_ends_later_or_takes_more() -> None:
    for seed in range(5):
        problem = instance(seed, layers=12, devices=2)
        listed, searched = solve(problem, None, 0)[0], solve(problem, None, 0.02)[0]
        assert searched.makespan <= listed.makespan
        deadline = 1.1 * listed.makespan
        assert solve(problem, deadline, 0.02)[0].joules <= solve(problem, deadline, 0)[0].joules


def test_the_same_question_has_the_same_answer() -> None:
    problem = instance(7, layers=16, devices=3, shared=True)
    assert solve(problem, None, 0.01) == solve(problem, None, 0.01)


def test_times_and_energies_in_other_units_change_nothing() -> None:
    """Nanoseconds, or hours: CP-SAT's whole numbers stand for fractions of the deadline."""
    for scale in (1e-9, 3.7e-4, 3600.0):
        scaled = Problem(
            [[scale * a for a in row] for row in TOY.seconds],
            TOY.before,
            [[scale * a for a in row] for row in TOY.joules],
        )
        for deadline, joules in ((12, 28), (13, 28), (14, 24)):
            found, status = solve(scaled, deadline * scale, 0.1)
            assert status == "optimal" and found.joules == pytest.approx(scale * joules)
        assert solve(scaled, None, 0.1)[0].makespan == pytest.approx(12 * scale)


def test_layers_that_need_the_whole_memory_never_run_together() -> None:
    """Two layers of a second on two devices: at half the bandwidth together, at more than that one after the other."""
    for share, makespan in ((FULL // 2, 1.0), (FULL // 2 + 1, 2.0)):
        problem = Problem([(1.0, math.inf), (math.inf, 1.0)], [(), ()], None, [(share, 0), (0, share)])
        assert solve(problem, None, 0.1)[0].makespan == makespan


def test_layers_without_duration_and_no_layers_at_all_are_scheduled() -> None:
    still = Problem([(0.0, 0.0), (0.0, 0.0)], [(), (0,)], [(1.0, 2.0), (2.0, 1.0)])
    found, status = solve(still, None, 0.1)
    assert (found.makespan, found.joules, status) == (0.0, 2.0, "optimal")
    assert solve(Problem([], [], []), None, 0.1)[0].makespan == 0.0
