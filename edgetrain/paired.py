"""Two classifiers on the same items: only the items on which one is right and the other wrong tell them apart.

McNemar 1947, Psychometrika 12:153, in its exact form: of b items that only the first gets right and c that only the
second does, b is binomial with n = b + c and p = 1/2 when both are equally good.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgetrain.errors import UserError


class Paired(NamedTuple):
    """n: items; only_first, only_second: b and c, those that only one gets right.

    difference: accuracy of the second minus that of the first; low, high: its exact 95% interval given b + c; p:
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

    The interval is Clopper and Pearson's (1934) of the share c / (b + c), as (2 share - 1) (b + c) / n. It is given the
    b + c: without any disagreement it is (0, 0), whatever n is.
    """
    first, second = [bool(right) for right in first], [bool(right) for right in second]
    n = len(first)
    if n != len(second) or not n:
        raise UserError(f"{n} and {len(second)} items cannot be compared in pairs; judge both on the same items")
    b = sum(one and not other for one, other in zip(first, second, strict=True))
    c = sum(other and not one for one, other in zip(first, second, strict=True))
    low, high = clopper_pearson(c, b + c) if b + c else (0.5, 0.5)
    share = (b + c) / n
    return Paired(n, b, c, (c - b) / n, (2 * low - 1) * share, (2 * high - 1) * share, mcnemar(b, c))


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p: twice the smaller tail of Binomial(b + c, 1/2), at most 1."""
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2 ** (b + c))


def at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), 0 < p < 1."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def clopper_pearson(k: int, n: int) -> tuple[float, float]:
    """The exact 95% interval of a binomial share, k of n: where P(X >= k) and P(X <= k) are 2.5%."""
    low = 0.0 if k == 0 else root(lambda p: 1 - at_most(k - 1, n, p) - 0.025)
    high = 1.0 if k == n else root(lambda p: 0.025 - at_most(k, n, p))
    return low, high


def root(rising: Callable[[float], float]) -> float:
    """Where a rising function of (0, 1) crosses zero, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
