"""The processes of one run after they have met: one folder, one answer to a question, and an end when one has died."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import lightning
import torch.distributed
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Callback

from edgetrain.folder import RunFolder

Value = TypeVar("Value")

PERIOD, GRACE = 0.2, 3.0  # seconds between two looks; for this process to find out by itself


class OneFolder(Callback):
    """Tells every process where the first one's run folder is."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def setup(self, trainer: lightning.Trainer, task: lightning.LightningModule, stage: str) -> None:
        self.folder.path = Path(trainer.strategy.broadcast(str(self.folder.path)))


def anybodys(value: Value | None) -> Value | None:
    """The value of the lowest process that has one. All call it together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    values: list[Value | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return next((found for found in values if found is not None), None)


def part() -> None:
    """Leave the group: from here on every process is on its own."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def lost(folder: RunFolder) -> str:
    return f"training stopped: another process of this run has ended; go on with resume={folder.path}"


@contextmanager
def watched(trainer: lightning.Trainer, folder: RunFolder) -> Iterator[None]:
    """Inside, this process ends with a sentence when another one of its machine has died and it waits for that one.

    Only where Lightning starts the processes: torchrun and srun watch theirs. Lightning's own observer ends the first
    process with SIGKILL, so that it could say nothing; it finds nobody to observe and stops.
    """
    if not isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment):
        yield
        return
    over = threading.Event()
    threading.Thread(target=_watch, args=(trainer, folder, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(trainer: lightning.Trainer, folder: RunFolder, over: threading.Event) -> None:
    parent, children = os.getppid(), []
    waiting: list[subprocess.Popen] = getattr(trainer.strategy.launcher, "procs", [])
    while not over.wait(PERIOD):
        waiting = getattr(trainer.strategy.launcher, "procs", waiting)
        while waiting:
            children.append(waiting.pop())
        orphaned = trainer.local_rank > 0 and os.getppid() != parent
        if (orphaned or any(child.poll() for child in children)) and not over.wait(GRACE):
            for child in children:
                child.kill()
            os.write(2, f"error: {lost(folder)}\n".encode())
            os._exit(2)  # the main thread waits in a collective operation, which nothing interrupts
