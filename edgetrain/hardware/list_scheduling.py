"""List scheduling: good schedules at once, where OR-Tools is not installed or its time is up, and its first guess."""

import math
from collections.abc import Sequence
from itertools import cycle, islice

from edgetrain.hardware.assignment import Assignment, Problem, dispatched

PRICES = [2.0**power for power in range(-2, 10)]  # of energy: shares of the makespan for the whole energy
TRIES = 1000  # a schedule of a hundred layers takes most of a millisecond


def fastest(problem: Problem, price: float = 0.0) -> Assignment:
    """HEFT (Topcuoglu, Hariri, Wu 2002): by upward rank, each layer on the device where it would end first.

    price: seconds by which a layer may end later to save a joule.
    """
    free = [0.0] * problem.devices
    ends, devices = [0.0] * len(problem), [0] * len(problem)
    for layer in by_rank(problem):
        ready = max((ends[other] for other in problem.before[layer]), default=0.0)
        best = (math.inf, math.inf, 0)
        for device in problem.choices[layer]:
            end = max(ready, free[device]) + problem.seconds[layer][device]
            best = min(best, (end + price * problem.joules[layer][device] if price else end, end, device))
        _, end, device = best
        devices[layer], ends[layer], free[device] = device, end, end
    return mapped(problem, devices)


def shorter(problem: Problem, found: Assignment) -> Assignment:
    """`found` with single layers moved as long as that ends sooner; it looks at TRIES moves at most."""
    moves = [(layer, device) for layer, choices in enumerate(problem.choices) for device in choices]
    useless = 0
    for layer, device in islice(cycle(moves), TRIES):
        if useless == len(moves) or found.makespan <= problem.least_seconds:
            break
        useless += 1
        if device == found.devices[layer]:
            continue
        devices = list(found.devices)
        devices[layer] = device
        moved = mapped(problem, devices)
        if moved.makespan < found.makespan:
            found, useless = moved, 0
    return found


def cheaper(problem: Problem, quick: Assignment, deadline: float) -> Assignment:
    """The least energy by the deadline, by which `quick` ends, of lists at all prices of energy, polished."""
    scale = quick.makespan / (quick.joules or 1.0)
    priced = [fastest(problem, price * scale) for price in PRICES]
    best = min([quick, *(one for one in priced if one.ends_by(deadline))], key=lambda one: one.joules)
    return polished(problem, best, deadline)


def polished(problem: Problem, found: Assignment, deadline: float) -> Assignment:
    """`found` with single layers moved to where they take less energy, largest savings first, while it ends in time."""
    moves = [
        (problem.joules[layer][device] - problem.joules[layer][found.devices[layer]], layer, device)
        for layer, choices in enumerate(problem.choices)
        for device in choices
    ]
    for _, layer, device in sorted(move for move in moves if move[0] < 0):
        if problem.joules[layer][device] >= problem.joules[layer][found.devices[layer]]:
            continue  # it moved to a better one already
        devices = list(found.devices)
        devices[layer] = device
        moved = mapped(problem, devices)
        if moved.ends_by(deadline):
            found = moved
    return found


def mapped(problem: Problem, devices: Sequence[int]) -> Assignment:
    """The schedule on given devices that prefers what has the longest way to the end."""
    return dispatched(problem, devices, by_rank(problem, devices))


def by_rank(problem: Problem, devices: Sequence[int] | None = None) -> list[int]:
    """Layers by the longest way from their start to the end of everything, at mean times without `devices`."""
    ranks = [0.0] * len(problem)
    for layer in reversed(range(len(problem))):
        times = [problem.seconds[layer][device] for device in problem.choices[layer]]
        took = sum(times) / len(times) if devices is None else problem.seconds[layer][devices[layer]]
        ranks[layer] = took + max((ranks[other] for other in problem.after[layer]), default=0.0)
    return sorted(range(len(problem)), key=lambda layer: (-ranks[layer], layer))
