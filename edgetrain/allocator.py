"""glibc's allocator, told to keep what training frees.

A training step frees and asks for the same large tensors as the step before it. glibc gives each back to the system,
which hands it out again page by page and zeroed: a seventh of a step's time on a CPU. The largest memory of the process
is the same, as the next step's peak is the last one's.
"""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # mallopt's parameters, from malloc.h
NEVER, LARGEST = -1, 2**31 - 1


def keep_freed_memory() -> bool:
    """From now on freed memory stays in this process; True where that could be set: on Linux with glibc.

    One arena for all threads: those of other threads than the first cannot hold large tensors.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, NEVER), (ARENA_MAX, 1))
    return all([mallopt(parameter, value) for parameter, value in settings])
