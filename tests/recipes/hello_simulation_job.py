"""Frames that arrive at random and are served one after another: a job that trains nothing."""

import numpy as np

from edgetrain.config import Config
from edgetrain.folder import RunFolder
from edgetrain.jobs.result import Result
from edgetrain.report.figures import line_chart


class HelloSimulation:
    """frames: how many arrive; load: mean service time over mean time between arrivals; seed: of both draws."""

    def __init__(self, frames: int, load: float, seed: int = 0) -> None:
        self.frames, self.load, self.seed = frames, load, seed

    def run(self, config: Config, folder: RunFolder) -> Result:
        generator = np.random.default_rng(self.seed)
        arrivals = np.cumsum(generator.exponential(1.0, self.frames))
        services = generator.exponential(self.load, self.frames)
        free, waits = 0.0, []
        for arrival, service in zip(arrivals, services, strict=True):
            waits.append(max(0.0, free - arrival))
            free = max(free, arrival) + service
        folder.add_table("waits", [{"frame": i, "wait": wait} for i, wait in enumerate(waits[:20])], "First waits")
        folder.add_figure("waits", line_chart({"wait": list(enumerate(waits))}, "frame", "wait (s)"), "Waiting times")
        return Result({"waiting_over_service": float(np.mean(waits) / np.mean(services))})
