"""A sweep of the bowl whose lowest point is known, its runs in this process where a test looks at no process."""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from edgetrain.cli import main
from edgetrain.study.children import Runner

RECIPES = ROOT / "tests" / "recipes"


@pytest.fixture(autouse=True)
def recipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The recipes of tests/recipes and their jobs, here and in the runs."""
    monkeypatch.setenv("EDGETRAIN_RECIPES", str(RECIPES))
    monkeypatch.setenv("PYTHONPATH", str(RECIPES))
    monkeypatch.syspath_prepend(str(RECIPES))
    yield


class Here(Runner):
    """A run in this process, over when it has been started."""

    def start(self, threads: int) -> bool:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                code = main(self.command())
            except Exception:
                traceback.print_exc()
                code = 1
        self.attempts += 1
        self.process = SimpleNamespace(poll=lambda: code, returncode=code)
        return True


class Computed(Runner):
    """A finished run of the bowl without having run: for sweeps of many trials."""

    def start(self, threads: int) -> bool:
        from bowl_job import Bowl

        typed = dict(text.split("=") for text in self.arguments)
        job = {key.removeprefix("job."): float(value) for key, value in typed.items() if key.startswith("job.")}
        self.folder.write_json("metrics.json", {"test/loss": Bowl(seed=int(typed["seed"]), **job).loss})
        self.folder.write_json("environment.json", {"finished": "yes"})
        with self.folder.path.with_name(f"{self.folder.path.name}.starts").open("a") as file:
            file.write("new\n")
        self.attempts += 1
        self.process = SimpleNamespace(poll=lambda: 0, returncode=0)
        return True


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetrain.sweep.trials.Runner", Here)
    monkeypatch.setattr("edgetrain.study.children.Runner", Here)
    monkeypatch.setattr("edgetrain.sweep.trials.POLL", 0)
    monkeypatch.setattr("edgetrain.study.children.POLL", 0)
    monkeypatch.setattr("edgetrain.run.write_report", lambda folder: folder.path)  # of the runs: most of their time


@pytest.fixture
def computed(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetrain.sweep.trials.Runner", Computed)


@pytest.fixture
def sweep(here: None, edgetrain: Callable[..., tuple[int, str, str]], workplace: Path) -> Callable[..., tuple]:
    """Sweep the bowl with these arguments: exit code, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return edgetrain("sweep", "recipe=bowl", *arguments)

    return call
