"""A bench that takes no time: the clock and the other processes' load are what a test says."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from edgetrain.bench import side_by_side
from edgetrain.bench.side_by_side import Contender


@pytest.fixture(autouse=True)
def short_collections() -> Iterator[None]:
    """What was imported before is not searched: a bench collects garbage before each repeat, a second each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@dataclass
class FakeMachine:
    """Its time moves only when a contender works; `others` is the processor time of other processes so far."""

    now: float = 100.0
    others: float | None = 0.0
    turns: list[str] = field(default_factory=list)

    def contender(self, name: str, seconds: list[float], units: int = 10, load: float = 0.0) -> Contender:
        """Takes the next of `seconds` (the last one ever after); others take `load` seconds a second meanwhile."""
        left = list(seconds)

        def run() -> int:
            took = left.pop(0) if len(left) > 1 else left[0]
            self.now += took
            if self.others is not None:
                self.others += load * took
            self.turns.append(name)
            return units

        return Contender(name, run)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    fake = FakeMachine()
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: fake.now)
    monkeypatch.setattr(side_by_side, "others_cpu_seconds", lambda: fake.others)
    monkeypatch.setattr(side_by_side, "usable_cores", lambda: 2.0)
    return fake
