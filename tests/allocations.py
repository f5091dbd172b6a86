"""What a call allocates, from torch's own memory profiler."""

from collections.abc import Callable
from itertools import accumulate

import torch


def allocations(step: Callable[[], object]) -> list[int]:
    """Bytes allocated and, as negative numbers, freed during a call on the CPU, in order."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = step()
    del result
    return [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]


def largest_allocation(step: Callable[[], object]) -> int:
    """Bytes above the start at the worst moment of a call."""
    return max(accumulate(allocations(step)), default=0)


def kept(step: Callable[[], object]) -> int:
    """Bytes above the start that are still held when a call has returned, its result among them."""
    return sum(allocations(step))
