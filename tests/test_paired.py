"""Paired comparison against cases worked by hand, and against SciPy."""

import pytest
import torch

from edgetrain.errors import UserError
from edgetrain.paired import clopper_pearson, compare, mcnemar


def test_one_against_eight_disagreements_worked_by_hand() -> None:
    first = [True] * 1 + [False] * 8 + [True] * 80 + [False] * 11
    second = [False] * 1 + [True] * 8 + [True] * 80 + [False] * 11
    found = compare(first, second)
    assert (found.n, found.only_first, found.only_second) == (100, 1, 8)
    assert found.difference == 0.07
    assert found.p == 2 * (1 + 9) / 2**9


def test_all_disagreements_for_one_has_a_closed_form() -> None:
    """P(X >= n) = low^n = 0.025."""
    found = compare([False] * 6 + [True] * 4, [True] * 10)
    assert found.low == pytest.approx((2 * 0.025 ** (1 / 6) - 1) * 0.6, abs=1e-12)
    assert found.high == 0.6
    assert found.p == 2 / 2**6


def test_exchanging_the_two_changes_the_signs_only() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 300, generator=generator) < 0.8
    one, other = compare(first, second), compare(second, first)
    assert (one.difference, one.p) == (-other.difference, other.p)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
    assert one.low < one.difference < one.high


def test_equal_answers_tell_nothing() -> None:
    assert compare([True, False], [True, False]) == (2, 0, 0, 0.0, 0.0, 0.0, 1.0)
    assert mcnemar(3, 3) == 1.0


@pytest.mark.parametrize(("first", "second"), [([True], [True, False]), ([], [])])
def test_unequal_or_no_items_are_refused(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(UserError, match="same items"):
        compare(first, second)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 7), (3, 9), (1, 30), (29, 30), (250, 400), (1000, 1900)])
def test_intervals_and_p_are_scipys(k: int, n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    test = stats.binomtest(k, n, 0.5)
    interval = test.proportion_ci(0.95, method="exact")
    assert clopper_pearson(k, n) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert mcnemar(n - k, k) == pytest.approx(test.pvalue, rel=1e-9)
