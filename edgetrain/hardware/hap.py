"""The assignment problem solved: by its bounds where they tell, by lists, by CP-SAT."""

from typing import Literal

from edgetrain.hardware.assignment import TOLERANCE, Assignment, Problem, Status
from edgetrain.hardware.cp_sat import exact
from edgetrain.hardware.list_scheduling import cheaper, fastest, mapped, polished, shorter


def solve(problem: Problem, deadline: float | None, time_limit: float) -> tuple[Assignment, Status]:
    """Least energy by `deadline`; without one the soonest end, and of those least energy where it is known.

    deadline: seconds, infinite for the least energy at all; time_limit: as in `cp_sat.exact`, each time it is asked; 0
    never asks. Status: optimal, or feasible where that is not proved; infeasible (proved) or unknown when nothing was
    found that ends by the deadline: then the assignment is that without a deadline, so that it has a finite makespan.
    """
    quick = fastest(problem)
    if deadline is None or not quick.ends_by(deadline):
        quick = shorter(problem, quick)
    if deadline is None:
        found, status = _soonest(problem, quick, time_limit)
        if problem.joules is None:
            return found, status
        frugal, proved = _least_energy(problem, found.makespan, found, time_limit)
        return frugal or found, "optimal" if status == proved == "optimal" else "feasible"
    found, status = _least_energy(problem, deadline, quick, time_limit)
    if found is not None:
        return found, status
    soonest, _ = solve(problem, None, time_limit)
    if not soonest.ends_by(deadline):
        return soonest, status
    return cheaper(problem, soonest, deadline), "feasible"


def _soonest(problem: Problem, quick: Assignment, time_limit: float) -> tuple[Assignment, Status]:
    if quick.makespan <= problem.least_seconds * (1 + TOLERANCE):
        return quick, "optimal"
    found, status = _exact(problem, quick.makespan, "seconds", quick, time_limit)
    if found is None or found.makespan > quick.makespan:
        found = quick
    return found, "optimal" if status == "optimal" else "feasible"


def _least_energy(
    problem: Problem, deadline: float, quick: Assignment, time_limit: float
) -> tuple[Assignment | None, Status]:
    cheapest = mapped(problem, problem.cheapest())
    if cheapest.ends_by(deadline):
        return cheapest, "optimal"
    if problem.least_seconds > deadline * (1 + TOLERANCE):
        return None, "infeasible"
    guess = cheaper(problem, quick, deadline) if quick.ends_by(deadline) else quick
    found, status = _exact(problem, deadline, "joules", guess, time_limit)
    if status == "feasible":
        found = polished(problem, found, deadline)
    ending = [one for one in (found, guess) if one is not None and one.ends_by(deadline)]
    if not ending:
        return None, "infeasible" if status == "infeasible" else "unknown"
    proved = status == "optimal" and found.ends_by(deadline)
    return min(ending, key=lambda one: one.joules), "optimal" if proved else "feasible"


def _exact(
    problem: Problem, deadline: float, least: Literal["seconds", "joules"], guess: Assignment, time_limit: float
) -> tuple[Assignment | None, Status]:
    return exact(problem, deadline, least, guess, time_limit) if time_limit and deadline else (None, "unknown")
