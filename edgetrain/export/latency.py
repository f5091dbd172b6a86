"""How long one call takes on one thread of this machine, several contenders in turns."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

REPEATS = 21


def latencies(contenders: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Median milliseconds of a call of each. In turns, so that what else the machine does falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with one_thread(), torch.inference_mode():
        for call in contenders.values():
            call()  # allocates, compiles and fills caches
        for _ in range(repeats):
            for name, call in contenders.items():
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
    return {name: 1e3 * statistics.median(each) for name, each in times.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread; a runtime of another kind has its own setting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
