"""Paired comparison against cases worked by hand, and against SciPy."""

import math

import pytest
import torch

from edgetrain.errors import UserError
from edgetrain.paired import clopper_pearson, compare, interval, mcnemar


def test_one_against_eight_disagreements_worked_by_hand() -> None:
    first = [True] * 1 + [False] * 8 + [True] * 80 + [False] * 11
    second = [False] * 1 + [True] * 8 + [True] * 80 + [False] * 11
    found = compare(first, second)
    assert (found.n, found.only_first, found.only_second) == (100, 1, 8)
    assert found.difference == 0.07
    assert found.p == pytest.approx(2 * (1 + 9) / 2**9, rel=1e-12)


def test_all_items_for_one_has_a_closed_form() -> None:
    """Of n of n, P(X >= n) = low^n = 0.0125; of 0 of n, P(X <= 0) = (1 - high)^n = 0.0125."""
    found = compare([False] * 6, [True] * 6)
    end = 0.0125 ** (1 / 6)
    assert (found.low, found.high) == (pytest.approx(end - (1 - end), abs=1e-12), 1.0)
    assert found.p == pytest.approx(2 / 2**6, rel=1e-12)


def test_one_disagreement_of_two_has_a_closed_form() -> None:
    """c = 1 of 2: 1 - (1 - low)^2 = 0.0125 and 1 - high^2 = 0.0125; b = 0 of 2: (1 - high)^2 = 0.0125."""
    found = compare([True, False], [True, True])
    assert found.low == pytest.approx((1 - 0.9875**0.5) - (1 - 0.0125**0.5), abs=1e-12)
    assert found.high == pytest.approx(0.9875**0.5, abs=1e-12)


@pytest.mark.parametrize("n", [1, 7, 20])
def test_the_interval_covers_in_95_percent_of_all_samples(n: int) -> None:
    """Exactly: b and c are trinomial, and every (b, c) is weighed by its probability."""
    bounds = {(b, c): interval(b, c, n) for b in range(n + 1) for c in range(n + 1 - b)}
    shares = [0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9]
    for p in shares:
        for q in (q for q in shares if p + q <= 1):
            covered = 0.0
            for (b, c), (low, high) in bounds.items():
                if low - 1e-9 <= q - p <= high + 1e-9:
                    ways = math.comb(n, b) * math.comb(n - b, c)
                    covered += ways * p**b * q**c * max(0.0, 1 - p - q) ** (n - b - c)
            assert covered >= 0.95, (p, q)


def test_a_rare_loss_of_300_items_is_covered() -> None:
    """Only the first is right in 1%: b ~ Binomial(300, 0.01), c = 0. Given b + c, the interval covered in 58%."""
    covered = 0.0
    for b in range(31):
        low, high = interval(b, 0, 300)
        covered += math.comb(300, b) * 0.01**b * 0.99 ** (300 - b) if low <= -0.01 <= high else 0
    assert covered >= 0.95


def test_exchanging_the_two_changes_the_signs_only() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 300, generator=generator) < 0.8
    one, other = compare(first, second), compare(second, first)
    assert (one.difference, one.p) == (-other.difference, other.p)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
    assert one.low < one.difference < one.high


def test_equal_answers_leave_the_doubt_of_so_few_items() -> None:
    """(1 - high)^2 = 0.0125."""
    high = pytest.approx(1 - 0.0125**0.5, abs=1e-12)
    found = compare([True, False], [True, False])
    assert found[:4] == (2, 0, 0, 0.0)
    assert (-found.low, found.high, found.p) == (high, high, 1.0)
    assert mcnemar(3, 3) == 1.0


@pytest.mark.parametrize(("first", "second"), [([True], [True, False]), ([], [])])
def test_unequal_or_no_items_are_refused(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(UserError, match="same items"):
        compare(first, second)


CASES = [(0, 1), (1, 1), (0, 7), (3, 9), (1, 30), (29, 30), (250, 400), (1000, 1900), (24_050, 48_500), (3, 100_000)]


@pytest.mark.parametrize(("k", "n"), [*CASES, (50_300, 100_000), (99_990, 100_000)])
def test_intervals_and_p_are_scipys(k: int, n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    test = stats.binomtest(k, n, 0.5)
    for level in (0.95, 0.975):
        there = test.proportion_ci(level, method="exact")
        assert clopper_pearson(k, n, level) == pytest.approx((there.low, there.high), abs=1e-9)
    assert mcnemar(n - k, k) == pytest.approx(test.pvalue, rel=1e-9)


def test_a_hundred_thousand_items_are_compared_at_once() -> None:
    """They took minutes where every term of every binomial was summed."""
    first = torch.arange(100_000) % 2 == 0
    assert compare(first, ~first)[:4] == (100_000, 50_000, 50_000, 0.0)
