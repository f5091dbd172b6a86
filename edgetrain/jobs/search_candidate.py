"""A network that a search looks at: its configuration, what it needs of the board, and how it does when trained."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgetrain.build import Trained, build, load_trained, read_config, seed_everything, write_config
from edgetrain.checkpoint import kept_checkpoints
from edgetrain.config import Config
from edgetrain.environment import describe, now
from edgetrain.errors import UserError, listing
from edgetrain.folder import RunFolder
from edgetrain.jobs.search_board import Verdict
from edgetrain.jobs.search_space import Point
from edgetrain.tasks.predictions import Predictions

MAY_CHANGE = ("trust", "logger")  # when a search goes on
VALIDATION = "validation/"  # of the names of scores in a run's metrics.json


@dataclass
class Candidate:
    """config: of an ordinary fit; values: as tables show them; point: None for one that was made by hand.

    metrics: of its run, once it was trained; problem: why it has no score.
    """

    name: str
    config: Config
    verdict: Verdict
    values: Mapping[str, str] = field(default_factory=dict)
    point: Point | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def items(self) -> int:
        """Of the validation data."""
        return int(self.metrics.get(f"{VALIDATION}items", 0))

    def score(self, metric: str) -> float | None:
        return self.metrics.get(f"{VALIDATION}{metric}")

    def folder(self, search: RunFolder) -> RunFolder:
        return search.child(self.name, self.config.seed)

    def train(self, search: RunFolder) -> None:
        """Train it as a run of its own and score it on validation data; go on with a run that was stopped.

        A finished run is read and not repeated. Raises UserError when the folder holds one of other settings.
        """
        folder = self.folder(search)
        resumed = bool(kept_checkpoints(folder))
        if resumed or folder.finished:
            self._check(folder)
        if folder.finished:
            self.metrics = folder.read_json("metrics.json")
            return
        if not resumed:
            shutil.rmtree(folder.path, ignore_errors=True)
            self._begin(folder)
        started = time.monotonic()
        seed_everything(self.config.seed)
        config = replace(self.config, resume=str(folder.path)) if resumed else self.config
        trained, metrics = build(config.job).train(config, folder)
        judged = trained.task.predictions(trained.model, trained.data.val_dataloader())
        scores = trained.task.score(judged) | {"items": len(judged)}
        metrics |= {f"{VALIDATION}{name}": value for name, value in scores.items()}
        folder.write_json("metrics.json", metrics)
        environment = folder.read_json("environment.json")
        seconds = round(time.monotonic() - started, 1)
        folder.write_json("environment.json", environment | {"finished": now(), "wall_seconds": seconds})
        self.metrics = metrics

    def load(self, search: RunFolder) -> Trained:
        """What its run trained, ready to use."""
        return load_trained(self.folder(search), self.config)

    def _begin(self, folder: RunFolder) -> None:
        write_config(self.config.to_dict(), folder)
        folder.write_json("environment.json", describe() | {"seed": self.config.seed})

    def _check(self, folder: RunFolder) -> None:
        there, here = read_config(folder), self.config.to_dict()
        changed = [key for key in here if key not in MAY_CHANGE and there.get(key) != here[key]]
        if changed:
            raise UserError(
                f"{folder.path} has another {listing(changed)} than this search gives it; go on with the settings that "
                "the search was started with, or start a new one"
            )


def on_test(trained: Trained) -> Predictions:
    """What a trained network says of the test split."""
    trained.data.setup("test")
    return trained.task.predictions(trained.model, trained.data.test_dataloader())
