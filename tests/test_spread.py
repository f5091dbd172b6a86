"""Means, deviations and intervals against cases worked by hand, and the table of t against its own distribution."""

import math

import pytest

from edgetrain.spread import T95, Z95, fold_means, interval_of_mean, spread, wilson_interval


def within(t: float, degrees: int) -> float:
    """P(|T| <= t), Abramowitz and Stegun 26.7.3 and 26.7.4: a finite sum for whole degrees of freedom."""
    angle = math.atan(t / math.sqrt(degrees))
    term, total = (math.cos(angle) if degrees % 2 else 1.0), 0.0
    for k in range(degrees // 2):
        total += term
        term *= math.cos(angle) ** 2 * ((2 * k + 2) / (2 * k + 3) if degrees % 2 else (2 * k + 1) / (2 * k + 2))
    return 2 / math.pi * (angle + math.sin(angle) * total) if degrees % 2 else math.sin(angle) * total


@pytest.mark.parametrize("degrees", range(1, len(T95) + 1))
def test_the_table_of_t_holds_95_percent(degrees: int) -> None:
    assert within(T95[degrees - 1] - 0.0006, degrees) < 0.95 < within(T95[degrees - 1] + 0.0006, degrees)


def test_the_deviation_divides_by_n_minus_1() -> None:
    assert spread([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2)), 3)


def test_one_number_has_no_deviation() -> None:
    assert spread([2.5]) == (2.5, None, 1)


def test_the_interval_of_three_numbers_by_hand() -> None:
    """Mean 2, deviation 1: half the interval is 4.303 / sqrt(3) = 2.484."""
    assert interval_of_mean([1.0, 2.0, 3.0]) == (pytest.approx(-0.4843, abs=1e-4), pytest.approx(4.4843, abs=1e-4))


def test_the_interval_of_two_numbers_by_hand() -> None:
    """Mean 0, deviation sqrt(2): half the interval is 12.706."""
    assert interval_of_mean([-1.0, 1.0]) == (pytest.approx(-12.706), pytest.approx(12.706))


def test_many_numbers_take_the_widest_factor_of_the_table() -> None:
    low, high = interval_of_mean([-1.0, 1.0] * 50)
    assert (high - low) / 2 == pytest.approx(2.042 * math.sqrt(100 / 99) / 10)


def test_wilson_interval_of_a_published_case() -> None:
    """Newcombe 1998 (Statistics in Medicine 17, table I): 81 of 263 has 0.2553 to 0.3662; 0 of 20, 0 to 0.1611."""
    assert wilson_interval(81 / 263, 263) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert wilson_interval(0.0, 20) == (0.0, pytest.approx(0.1611, abs=5e-5))
    assert wilson_interval(0.0, 6)[0] == 0.0 and wilson_interval(1.0, 6)[1] == 1.0  # to the last bit


def test_the_ends_of_a_wilson_interval_are_where_the_share_is_just_rejected() -> None:
    """Its definition: |share - end| = z * sqrt(end (1 - end) / n)."""
    for end in wilson_interval(3 / 7, 7):
        assert abs(3 / 7 - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / 7))


def test_seeds_of_a_fold_are_averaged_first() -> None:
    """Seeds 0, 2 and 4 share a fold of two, 1 and 3 the other."""
    by_seed = {0: 1.0, 1: 10.0, 2: 2.0, 3: 30.0, 4: 6.0}
    assert fold_means(by_seed, 2) == [3.0, 20.0]
    assert fold_means(by_seed, None) == [1.0, 10.0, 2.0, 30.0, 6.0]
    assert fold_means({}, 2) == []
