"""A job that dies in a chosen way, to show what a study makes of it."""

import os
import signal
import time
from pathlib import Path
from typing import Literal

import torch

from edgetrain.build import last_checkpoint, read_checkpoint
from edgetrain.config import Config
from edgetrain.folder import RunFolder
from edgetrain.jobs.result import Result


class Fragile:
    """Counts its starts in <run folder>.starts. end: how the first start ends; `fails` fails until ./mended is there,
    and `waits` waits for ./go."""

    def __init__(
        self, end: Literal["well", "killed_early", "killed_after_checkpoint", "fails", "waits"] = "well"
    ) -> None:
        self.end = end

    def run(self, config: Config, folder: RunFolder) -> Result:
        starts = folder.path.with_name(f"{folder.path.name}.starts")
        first = not starts.exists()
        with starts.open("a") as file:
            file.write("resumed\n" if config.resume else "new\n")
        if self.end == "killed_early" and first:
            (folder.path / "half.txt").write_text("written before it died")
            os.kill(os.getpid(), signal.SIGKILL)
        if self.end == "killed_after_checkpoint" and first:
            folder.checkpoints.mkdir()
            torch.save({"reached": 7}, folder.checkpoints / "last.ckpt")
            os.kill(os.getpid(), signal.SIGKILL)
        if self.end == "fails" and not Path("mended").exists():
            raise RuntimeError("the sensor is unplugged")
        until = time.monotonic() + 60  # a test that failed may have left this process behind
        while self.end == "waits" and not Path("go").exists() and time.monotonic() < until:
            time.sleep(0.05)
        return Result({"reached": read_checkpoint(last_checkpoint(folder))["reached"] if config.resume else 0})
