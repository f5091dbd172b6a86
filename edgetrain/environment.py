"""What a run needs to be repeated and believed: command, commit, versions, machine."""

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

STATUS, MEMORY = Path("/proc/self/status"), Path("/proc/meminfo")
PACKAGES = ("torch", "lightning", "hydra-core", "transformers", "datasets", "torchaudio", "flwr", "optuna", "numpy")


def command_line() -> str:
    """The command as typed, with the interpreter's path left out."""
    program = "edgetrain" if Path(sys.argv[0]).name == "edgetrain" else "python -m edgetrain"
    return shlex.join([*program.split(), *sys.argv[1:]])


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def resident(which: str = "VmRSS") -> int | None:
    """Bytes of this process in memory now, or with VmHWM at most so far; None where the system does not tell.

    Not getrusage's ru_maxrss: on Linux that begins with the size of the process that started this one.
    """
    return proc_bytes(STATUS, which)


def proc_bytes(path: Path, name: str) -> int | None:
    """A line `name: N kB` of a file in /proc, in bytes."""
    with suppress(OSError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return 1024 * int(value.split()[0])
    return None


def commit() -> str:
    """The project's commit, `+changes` when files differ from it, `unknown` outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return "unknown"
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def now() -> str:
    """The time of day with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def describe() -> dict[str, Any]:
    """Everything about now and here. Imports torch only for what it alone knows."""
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "command": command_line(),
        "started": now(),
        "edgetrain": metadata.version("edgetrain"),
        "commit": commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        "gpu": ", ".join(devices) or "none",
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }
