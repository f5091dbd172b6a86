"""What unmasks a model that repeats itself: such text is easy to draft, so its acceptance says nothing.

Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration" (arXiv 1904.09751), section 3.
"""

from bisect import bisect_left
from collections.abc import Sequence


def distinct_n(tokens: Sequence[int], n: int = 3) -> float:
    """Different n-grams of all n-grams, 0 to 1 (Li et al. 2016, arXiv 1510.03055); 1 for fewer than n tokens."""
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_repeated_span(tokens: Sequence[int]) -> int:
    """Length in tokens of the longest span that stands at two places, which may overlap; 0 when none does."""

    def all_differ(length: int) -> bool:
        starts = range(len(tokens) - length + 1)
        return len({tuple(tokens[start : start + length]) for start in starts}) == len(starts)

    # A span that repeats has shorter ones that do: the first length without a repeat is found by halving.
    return bisect_left(range(1, len(tokens)), True, key=all_differ)
