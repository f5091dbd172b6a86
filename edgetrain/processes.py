"""Which of a run's processes this one is, known before torch is imported.

One run may be many processes, on one machine or many. The first owns the run folder: it alone writes there, prints,
measures, exports and reports. The others train.
"""

import os
import time
from collections.abc import Mapping

RANK, WORLD = "RANK", "WORLD_SIZE"  # torchrun's
PARTS = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # Lightning's for the processes that it starts; the user's; srun's
PATIENCE = 5.0  # seconds


def is_first() -> bool:
    """Whether this process is number 0 of its run, as one that was started alone is."""
    names = (RANK,) if RANK in os.environ else PARTS
    return all(os.environ.get(name, "0") in ("", "0") for name in names)


def under_torchrun() -> bool:
    """Whether torchrun started more than one process of this command."""
    return RANK in os.environ and os.environ.get(WORLD, "1") != "1"


def has_to_speak(patience: float = PATIENCE) -> bool:
    """Whether this process says what went wrong. The first does, at once.

    Most of what can go wrong does so in every process, and a launcher ends those that are left when one has ended. So
    another process waits for that, `patience` seconds, and speaks when it is still there: it was alone with its fault.
    """
    if is_first():
        return True
    parent, end = os.getppid(), time.monotonic() + patience
    while time.monotonic() < end:
        if os.getppid() != parent:  # the process that started it was the first, and has spoken
            return False
        time.sleep(0.1)
    return True


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that starts a run of its own, whatever this one is a part of."""
    return {name: value for name, value in environment.items() if name not in (RANK, WORLD, *PARTS)}
