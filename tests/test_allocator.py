"""Freed memory that stays: a large tensor made anew costs no page faults."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from edgetrain.allocator import keep_freed_memory
kept = {kept} and keep_freed_memory()
for _ in range(20):  # until the heap has room between what else is in it
    torch.zeros(2**24)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(2**24)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_freed_and_taken_again_is_not_asked_of_the_system() -> None:
    def page_faults(kept: bool) -> int:
        ended = subprocess.run([sys.executable, "-c", PROGRAM.format(kept=kept)], capture_output=True, text=True)
        assert ended.stdout.startswith(str(kept)), ended.stderr
        return int(ended.stdout.split()[1])

    assert page_faults(kept=False) > 1000 > 10 > page_faults(kept=True)
