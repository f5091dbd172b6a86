"""Which feasible points of a search are trained next: first evenly over their cost, then as Optuna proposes."""

import math
import warnings
from collections.abc import Iterator, Sequence

import optuna

from edgetrain.jobs.search_space import Axis, Point

optuna.logging.set_verbosity(optuna.logging.WARNING)

Scored = tuple[Point, float, float]  # the point, its cost, and its score, of which more is better


def spread_over(costs: dict[Point, float], count: int) -> list[Point]:
    """Points whose costs lie evenly on a logarithmic scale from the lowest to the highest, as far as there are any."""
    left = sorted(costs, key=lambda place: (costs[place], place))
    low, high = math.log(costs[left[0]]), math.log(costs[left[-1]])
    chosen = []
    for number in range(min(count, len(left))):
        aim = low + (high - low) * number / max(1, count - 1)
        nearest = min(left, key=lambda place: abs(math.log(costs[place]) - aim))
        left.remove(nearest)
        chosen.append(nearest)
    return chosen


def suggestions(axes: Sequence[Axis], scored: Sequence[Scored], seed: int) -> Iterator[Point]:
    """Points without end from Optuna's multi-objective TPE: low logarithm of the cost, high score."""
    sampler = optuna.samplers.TPESampler(n_startup_trials=0, seed=seed)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    distributions = {axis.key: axis.distribution for axis in axes}
    for places, cost, score in scored:
        params = {axis.key: place for axis, place in zip(axes, places, strict=True)}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, values=[math.log(cost), score])
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        while True:
            trial = study.ask(distributions)
            yield tuple(trial.params[axis.key] for axis in axes)
