"""What a few repeats of one number support: their mean, their deviation, an interval for the mean or for a share."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Student's t for a two-sided 95% interval, 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook of Statistical Methods,
# section 1.3.6.7.2, column 0.975).
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
Z95 = 1.959964  # the normal distribution's


class Spread(NamedTuple):
    """deviation: standard deviation with n - 1; None for a single number."""

    mean: float
    deviation: float | None
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Of at least one number."""
    n = len(values)
    mean = sum(values) / n
    return Spread(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None, n)


def fold_means(by_seed: Mapping[int, float], folds: int | None) -> list[float]:
    """The mean over the seeds of each fold, the seeds that are equal modulo `folds`; without folds every seed's own."""
    groups: dict[int, list[float]] = {}
    for seed, value in by_seed.items():
        groups.setdefault(seed % folds if folds else seed, []).append(value)
    return [spread(values).mean for values in groups.values()]


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """The 95% t-interval of the mean of at least two numbers; beyond 31 of them a little wide."""
    mean, deviation, n = spread(values)
    half = T95[min(n - 1, len(T95)) - 1] * deviation / math.sqrt(n)
    return mean - half, mean + half


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The 95% interval of a share of n independent trials (Wilson 1927); within 0 to 1 and never empty."""
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return 0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half
