"""Measures of repetition, against slow and obvious ones."""

import random

import pytest

from edgetrain.decoding.degeneration import distinct_n, longest_repeated_span


def slow_longest_repeat(tokens: list[int]) -> int:
    best = 0
    for first in range(len(tokens)):
        for second in range(first + 1, len(tokens)):
            length = 0
            while second + length < len(tokens) and tokens[first + length] == tokens[second + length]:
                length += 1
            best = max(best, length)
    return best


def test_distinct_3_counts_different_trigrams() -> None:
    assert distinct_n([1, 2, 3, 1, 2, 3]) == 3 / 4  # 123 231 312 123
    assert distinct_n([5] * 10) == 1 / 8
    assert distinct_n([1, 2, 3, 4, 5]) == 1.0
    assert distinct_n([1, 1, 1], n=1) == 1 / 3


def test_too_few_tokens_repeat_nothing() -> None:
    assert distinct_n([]) == distinct_n([1, 1]) == 1.0
    assert longest_repeated_span([]) == longest_repeated_span([4]) == longest_repeated_span([4, 5]) == 0


def test_longest_repeated_span_may_overlap_itself() -> None:
    assert longest_repeated_span([7, 7, 7, 7]) == 3
    assert longest_repeated_span([1, 2, 1, 2, 1]) == 3
    assert longest_repeated_span([1, 2, 3, 9, 1, 2, 3]) == 3


@pytest.mark.parametrize("seed", range(20))
def test_longest_repeated_span_equals_the_slow_one(seed: int) -> None:
    numbers = random.Random(seed)
    tokens = [numbers.randrange(3) for _ in range(numbers.randrange(60))]
    assert longest_repeated_span(tokens) == slow_longest_repeat(tokens)
