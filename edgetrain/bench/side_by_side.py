"""Ways of doing the same work, timed in turns in one process, so that what slows the machine slows all of them.

Round r runs every contender once, in the given order when r is even and backwards when it is odd. Two contenders are
compared by the ratios of their rates within each round; a ratio is quoted only when its spread and the machine's load
allow it (`Ratio.why_not`).
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import quantiles

from edgetrain.bench.load import others_cpu_seconds, usable_cores

FEWEST_REPEATS = 5  # below it quartiles say nothing
MOST_LOAD = 0.1  # share of the machine's processor time that others may take


@dataclass(frozen=True)
class Contender:
    """One way of doing the work: `run` does it once and returns how many units (tokens, images) it did."""

    name: str
    run: Callable[[], int]


@dataclass
class Timing:
    """What `measure` saw of one contender: per repeat units, seconds, and processor seconds taken by others.

    `others` is empty where the system does not tell; `threads` were used on a machine of `cores`.
    """

    name: str
    cores: float = 1.0
    threads: int = 1
    units: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Units a second of every repeat."""
        return [units / seconds for units, seconds in zip(self.units, self.seconds, strict=True)]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the rates."""
        return quartiles(self.rates)

    @property
    def median(self) -> float:
        return self.quartiles[1]


@dataclass(frozen=True)
class Ratio:
    """How many times faster one contender is than another: median and quartiles of the rounds' ratios.

    `load`: share of the machine's processor time that others took meanwhile, None where that is unknown.
    """

    median: float
    lower: float
    upper: float
    repeats: int
    load: float | None
    threads: int
    cores: float

    @property
    def why_not(self) -> str:
        """The reason why this ratio may not be quoted; empty when it may."""
        if self.repeats < FEWEST_REPEATS:
            return f"{self.repeats} repeats are fewer than {FEWEST_REPEATS}"
        if self.load is not None and self.load > MOST_LOAD:
            return f"other processes took {self.load:.0%} of the machine"
        if self.threads > self.cores:
            return f"{self.threads} threads on {self.cores:g} cores"
        if self.lower <= 1.0 <= self.upper:
            return f"the quartiles {self.lower:.3g} and {self.upper:.3g} are on both sides of 1"
        if self.upper - self.lower > abs(self.median - 1.0):
            return f"the quartiles {self.lower:.3g} and {self.upper:.3g} are further apart than {self.median:.3g} and 1"
        return ""

    @property
    def quotable(self) -> bool:
        return not self.why_not

    def __str__(self) -> str:
        if self.why_not:
            return f"not quotable: {self.why_not}"
        return f"{self.median:.3g} ({self.lower:.3g} to {self.upper:.3g})"


def measure(
    contenders: Sequence[Contender],
    repeats: int = 7,
    warmup: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    minutes: float | None = None,
) -> list[Timing]:
    """A timing for every contender, in their order; the garbage collector rests while one is timed.

    warmup: rounds that are not counted; device: "cuda" waits for the device before and after each repeat;
    threads: that the contenders compute on, torch's own number by default; minutes: no round begins that would end
    after so many, by the longest so far, except the first counted one.
    """
    import torch

    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    threads = torch.get_num_threads() if threads is None else threads
    timings = [Timing(contender.name, usable_cores(), threads) for contender in contenders]
    pairs = list(zip(contenders, timings, strict=True))
    begun = time.perf_counter()
    for _ in range(warmup):
        for contender in contenders:
            contender.run()
    longest = 0.0
    for turn in range(repeats):
        started = time.perf_counter()
        if turn and minutes is not None and started + longest > begun + 60 * minutes:
            break
        for contender, timing in pairs if turn % 2 == 0 else reversed(pairs):
            _timed(contender, timing, wait)
        longest = max(longest, time.perf_counter() - started)
    return timings


def _timed(contender: Contender, timing: Timing, wait: Callable[[], None]) -> None:
    """Run once and add what was seen to `timing`."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        wait()
        before, started = others_cpu_seconds(), time.perf_counter()
        units = contender.run()
        wait()
        seconds, after = time.perf_counter() - started, others_cpu_seconds()
    finally:
        if collecting:
            gc.enable()
    timing.units.append(units)
    timing.seconds.append(seconds)
    if before is not None and after is not None:
        timing.others.append(after - before)


def ratio(one: Timing, other: Timing) -> Ratio:
    """How many times the rate of `other` the rate of `one` is, from the rounds that they were both in."""
    lower, middle, upper = quartiles([a / b for a, b in zip(one.rates, other.rates, strict=True)])
    wall = sum(one.seconds) + sum(other.seconds)
    others = one.others + other.others
    load = max(0.0, sum(others)) / (wall * one.cores) if others else None
    return Ratio(middle, lower, upper, len(one.rates), load, one.threads, one.cores)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, interpolated between neighbours (Hyndman and Fan's type 7)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, middle, upper = quantiles(values, n=4, method="inclusive")
    return lower, middle, upper
