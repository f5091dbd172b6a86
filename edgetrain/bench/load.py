"""How much of this machine other processes use, from the kernel's own accounts."""

import os
import resource
from pathlib import Path

STATISTICS = Path("/proc/stat")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
IDLE, IOWAIT = 3, 4  # columns of a processor's line in /proc/stat; those from GUEST on are counted in earlier ones
GUEST = 8


def usable_cores() -> float:
    """Cores that this process may use: its affinity, and a container's quota where there is one."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = QUOTA.read_text().split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return cores


def own_cpu_seconds() -> float:
    """Processor time of this process, its threads and its ended children since it started, s."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def busy_cpu_seconds(statistics: str, cores: set[int], ticks: int) -> float:
    """Time that these cores were not idle since the machine started, s; time stolen by a hypervisor counts as busy."""
    total = 0
    for line in statistics.splitlines():
        name, *counts = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            total += sum(int(count) for column, count in enumerate(counts[:GUEST]) if column not in (IDLE, IOWAIT))
    return total / ticks


def others_cpu_seconds() -> float | None:
    """Processor time that everything but this process took on its cores, s, from some fixed moment.

    Only differences mean anything. None where the system keeps no such accounts.
    """
    try:
        text = STATISTICS.read_text()
        cores = os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return None
    return busy_cpu_seconds(text, cores, os.sysconf("SC_CLK_TCK")) - own_cpu_seconds()
