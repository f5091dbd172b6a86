"""The points of a space that a search has costed, each once, in order."""

import json
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from edgetrain.errors import listing
from edgetrain.folder import RunFolder
from edgetrain.jobs.search_board import Board, Verdict, restored, saved
from edgetrain.jobs.search_candidate import Candidate
from edgetrain.jobs.search_space import Axis, Point, configured, point, size

STATE = "search.json"


class Proposals:
    """Candidates by their point, and what the board says of them; kept in the folder's search.json.

    base: the configuration that the points change; resume: what an earlier process has costed is read and not done
    again.
    """

    def __init__(
        self, base: dict[str, Any], axes: Sequence[Axis], board: Board, folder: RunFolder, resume: bool
    ) -> None:
        self.base, self.axes, self.board, self.folder = base, axes, board, folder
        self.known: dict[Point, Candidate] = {}
        self.before: Mapping[str, Any] = folder.read_json(STATE, {}) if resume else {}
        self.judged, self.seconds = 0, 0.0  # by this process

    def __len__(self) -> int:
        return len(self.known)

    @property
    def all(self) -> list[Candidate]:
        return list(self.known.values())

    @property
    def feasible(self) -> list[Candidate]:
        return [one for one in self.known.values() if one.verdict.feasible]

    @property
    def rate(self) -> float | None:
        """How many were costed a minute; None where this process had none to cost."""
        return 60 * self.judged / self.seconds if self.judged else None

    def survey(self, count: int, seed: int, console: Console) -> None:
        """Cost `count` points drawn from the space without repeats, or all of a smaller one."""
        every = size(self.axes)
        numbers = range(every) if every <= count else random.Random(seed).sample(range(every), count)
        for number in track(numbers, "costing", console=console, transient=True):
            self.at(point(self.axes, number))
        self.save()

    def at(self, place: Point) -> Candidate:
        """The candidate of a point, costed when it is new."""
        if place not in self.known:
            config = configured(self.base, self.axes, place)
            values = {axis.key: axis.shown(number) for axis, number in zip(self.axes, place, strict=True)}
            stored = self.before.get(json.dumps(place))
            verdict = restored(stored) if stored else self._judge(config)
            self.known[place] = Candidate(f"candidate{len(self.known)}", config, verdict, values, place)
        return self.known[place]

    def _judge(self, config: Any) -> Verdict:
        started = time.monotonic()
        verdict = self.board.judge(config)
        self.judged, self.seconds = self.judged + 1, self.seconds + time.monotonic() - started
        return verdict

    def save(self) -> None:
        self.folder.write_json(STATE, {json.dumps(place): saved(one.verdict) for place, one in self.known.items()})

    def refusal(self) -> str:
        """Where nothing fits: the network that misses least, and by how much."""
        many = f"none of {len(self)} networks of job.space"
        judged = [one for one in self.all if not one.verdict.problem]
        if not judged:
            return f"{many} can be built; {self.all[0].verdict.problem}"
        nearest = min(judged, key=lambda one: one.verdict.excess)
        values = listing(f"{key}={value}" for key, value in nearest.values.items())
        return (
            f"{many} fits {self.board.device.name}; the nearest, {values}, exceeds {nearest.verdict.reason}; put "
            "smaller values into job.space, raise job.proposals, or choose a larger board"
        )
