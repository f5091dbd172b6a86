"""Two classifiers on the same items: only the items on which one is right and the other wrong tell them apart.

McNemar 1947, Psychometrika 12:153, in its exact form: of b items that only the first gets right and c that only the
second does, b is binomial with n = b + c and p = 1/2 when both are equally good.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from edgetrain.errors import UserError


class Paired(NamedTuple):
    """n: items; only_first, only_second: b and c, those that only one gets right.

    difference: accuracy of the second minus that of the first; low, high: its 95% interval, as `interval` says; p:
    two-sided, that equally good ones differ so much or more.
    """

    n: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p: float


def compare(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Which items each gets right, in one order; bool tensors too. Raises UserError when they are not as many, or none.

    The p is exact; the interval covers in at least 95% of all samples, whatever the two get right.
    """
    n = len(first)
    if n != len(second) or not n:
        raise UserError(f"{n} and {len(second)} items cannot be compared in pairs; judge both on the same items")
    one, other = (np.asarray(right, dtype=bool) for right in (first, second))
    b, c = int((one & ~other).sum()), int((other & ~one).sum())
    return Paired(n, b, c, (c - b) / n, *interval(b, c, n), mcnemar(b, c))


def interval(b: int, c: int, n: int) -> tuple[float, float]:
    """Of c / n - b / n, at least 95%: from exact intervals of 97.5% of the two shares (Clopper and Pearson 1934).

    Each misses its share in at most 2.5% of all samples, so one of them does in at most 5% (Bonferroni), however the
    two hang together. It is wider than need be, and not empty without disagreements.
    """
    (b_low, b_high), (c_low, c_high) = clopper_pearson(b, n, 0.975), clopper_pearson(c, n, 0.975)
    return c_low - b_high, c_high - b_low


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p: twice the smaller tail of Binomial(b + c, 1/2), at most 1."""
    k, n = min(b, c), b + c
    return min(1.0, 2 * (math.comb(n, k) / 2**n) * falling(k, n, 1.0))


def falling(k: int, n: int, odds: float) -> float:
    """P(X <= k) / P(X = k) for X ~ Binomial(n, p), odds = (1 - p) / p; few terms where k is at most about n p."""
    term = total = 1.0
    while k and term > 1e-17 * total:
        term *= k / (n - k + 1) * odds
        total += term
        k -= 1
    return total


def at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), 0 < p < 1."""
    if k >= n:
        return 1.0
    if k > n * p:  # the other tail is the shorter one
        return 1 - at_most(n - k - 1, n, 1 - p)
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    return min(1.0, math.exp(log) * falling(k, n, (1 - p) / p))


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a binomial share, k of n: where P(X >= k) and P(X <= k) are each half of 1 - level."""
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else root(lambda p: 1 - at_most(k - 1, n, p) - tail)
    high = 1.0 if k == n else root(lambda p: tail - at_most(k, n, p))
    return low, high


def root(rising: Callable[[float], float]) -> float:
    """Where a rising function of (0, 1) crosses zero, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
