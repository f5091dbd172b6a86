"""Freed memory that stays: it is still this process's, and a large tensor made anew costs no page faults."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from edgetrain.allocator import keep_freed_memory
from edgetrain.environment import resident
kept = {kept} and keep_freed_memory()
before = resident()
tensors = [torch.zeros(2**24) for _ in range(4)]  # of 64 MiB
del tensors
held = resident() - before
for _ in range(20):  # until the heap has room between what else is in it
    torch.zeros(2**24)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(2**24)
print(kept, held, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_stays_and_is_not_asked_of_the_system_again() -> None:
    found = {}
    for kept in (False, True):
        ended = subprocess.run([sys.executable, "-c", PROGRAM.format(kept=kept)], capture_output=True, text=True)
        assert ended.stdout.startswith(str(kept)), ended.stderr
        found[kept] = [int(number) for number in ended.stdout.split()[1:]]
    (given_back, faults), (held, none) = found[False], found[True]
    assert given_back < 2**26 < 3 * 2**26 < held
    assert none < 10 < 1000 < faults
