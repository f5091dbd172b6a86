"""A job with a known optimum, to show what a sweep makes of it: loss = (log10(rate) + 2)^2 + (width - 3)^2 / 10."""

import csv
import math
import os
import signal
import time
from pathlib import Path
from typing import Literal

from edgetrain.config import Config
from edgetrain.errors import Interrupted
from edgetrain.folder import RunFolder
from edgetrain.jobs.result import Result


class Bowl:
    """`noise` times the seed is added to the loss, 1 for kind=flat. steps: points of the logged curve, which falls to
    the loss. end: how a run with width 1 ends, other than well; `waits` waits until ./go is there."""

    def __init__(
        self,
        seed: int,
        rate: float = 0.1,
        width: int = 1,
        kind: Literal["round", "flat"] = "round",
        noise: float = 0.0,
        steps: int = 0,
        pause: float = 0.0,
        end: Literal["well", "fails", "is_nan", "is_killed", "waits"] = "well",
    ) -> None:
        self.seed, self.rate, self.width, self.kind, self.noise = seed, rate, width, kind, noise
        self.steps, self.pause, self.end = steps, pause, end if width == 1 else "well"

    @property
    def loss(self) -> float:
        if self.end == "is_nan":
            return math.nan
        return (
            (math.log10(self.rate) + 2) ** 2
            + (self.width - 3) ** 2 / 10
            + self.noise * self.seed
            + (self.kind == "flat")
        )

    def run(self, config: Config, folder: RunFolder) -> Result:
        with folder.path.with_name(f"{folder.path.name}.starts").open("a") as file:
            file.write("resumed\n" if config.resume else "new\n")
        try:
            self.train(folder)
        except KeyboardInterrupt:
            folder.write_json("ended_cleanly.json", {})
            raise Interrupted from None
        return Result({"test/loss": self.loss, "test/size": self.width})

    def train(self, folder: RunFolder) -> None:
        if self.end == "fails":
            raise RuntimeError("the width is unplugged")
        if self.end == "is_killed":
            os.kill(os.getpid(), signal.SIGKILL)
        until = time.monotonic() + 60  # a test that failed may have left this process behind
        while self.end == "waits" and not Path("go").exists() and time.monotonic() < until:
            time.sleep(0.05)
        log = folder.new_log_part() / "metrics.csv"
        log.parent.mkdir(parents=True)
        with log.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", "validation/loss"])
            writer.writeheader()
            for step in range(1, self.steps + 1):
                writer.writerow({"step": step, "validation/loss": self.loss + 1 - step / self.steps})
                file.flush()
                time.sleep(self.pause)
