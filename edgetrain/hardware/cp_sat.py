"""The assignment problem for OR-Tools' CP-SAT: exact where its time suffices.

Variables: x[layer, device], one start a layer, and an optional interval for each pair: NoOverlap on every device,
Cumulative on the shared bandwidth. CP-SAT counts in whole numbers, so times are rounded down to 2^-30 of the deadline:
what it proves impossible is, and what it finds is replayed with the exact times.
"""

import math
from typing import Literal

from edgetrain.hardware.assignment import FULL, Assignment, Problem, Status, replayed

TICKS = 1 << 30  # to the deadline; a thousand layers' roundings are still less than assignment.TOLERANCE


def exact(
    problem: Problem, deadline: float, least: Literal["seconds", "joules"], guess: Assignment, time_limit: float
) -> tuple[Assignment | None, Status]:
    """The schedule that ends by `deadline` and takes least seconds or joules, and what is known of it.

    guess: a schedule to begin with, whether it ends in time or not; time_limit: by CP-SAT's deterministic clock, of
    which a second is several real ones, so that the answer does not depend on how busy the machine is. One thread.
    Status: optimal, feasible (not proved to be best), infeasible (proved); unknown when time is up or OR-Tools is not
    installed. The last two come without a schedule.
    """
    try:
        from ortools.sat.python import cp_model
    except ModuleNotFoundError:
        return None, "unknown"
    tick = deadline / TICKS
    ticks = [[took / tick for took in row] for row in problem.seconds]
    whole = Problem(
        [[math.floor(min(took, TICKS + 1)) for took in row] for row in ticks], problem.before, None, problem.shares
    )
    in_time = [
        [device for device in choices if whole.seconds[layer][device] <= TICKS]
        for layer, choices in enumerate(problem.choices)
    ]
    if not all(in_time):
        return None, "infeasible"
    hint = replayed(whole, guess.devices, sorted(range(len(problem)), key=lambda layer: (guess.starts[layer], layer)))
    model = cp_model.CpModel()
    starts = [model.new_int_var(0, TICKS, "") for _ in range(len(problem))]
    ends, picked = [], []
    on_device: list[list[cp_model.IntervalVar]] = [[] for _ in range(problem.devices)]
    loads: list[tuple[cp_model.IntervalVar, int]] = []
    for layer, choices in enumerate(in_time):
        took = whole.seconds[layer]
        x = {device: model.new_bool_var("") for device in choices}
        model.add_exactly_one(x.values())
        for device in choices:
            interval = model.new_optional_fixed_size_interval_var(starts[layer], took[device], x[device], "")
            on_device[device].append(interval)
            if problem.shares is not None:
                loads.append((interval, problem.shares[layer][device]))
            model.add_hint(x[device], device == hint.devices[layer])
        model.add_hint(starts[layer], min(int(hint.starts[layer]), TICKS))
        ends.append(starts[layer] + sum(took[device] * x[device] for device in choices))
        model.add(ends[layer] <= TICKS)
        for other in problem.before[layer]:
            model.add(starts[layer] >= ends[other])
        picked.append(x)
    for intervals in on_device:
        model.add_no_overlap(intervals)
    if loads:
        model.add_cumulative([interval for interval, _ in loads], [share for _, share in loads], FULL)
    if least == "seconds":
        makespan = model.new_int_var(0, TICKS, "")
        for end in ends:
            model.add(end <= makespan)
        model.add_hint(makespan, min(int(hint.makespan), TICKS))
        model.minimize(makespan)
    else:
        options = [(problem.joules[i][device], chosen) for i, x in enumerate(picked) for device, chosen in x.items()]
        unit = max(joules for joules, _ in options) / TICKS or 1.0
        model.minimize(sum(round(joules / unit) * chosen for joules, chosen in options))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.interleave_search = True  # several strategies in turns: on many layers much better than one
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = time_limit
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, "infeasible" if status == cp_model.INFEASIBLE else "unknown"
    devices = [next(device for device, chosen in x.items() if solver.boolean_value(chosen)) for x in picked]
    order = sorted(range(len(problem)), key=lambda i: (solver.value(starts[i]), solver.value(ends[i]), i))
    return replayed(problem, devices, order), "optimal" if status == cp_model.OPTIMAL else "feasible"
