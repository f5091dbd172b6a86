"""The processes of a sweep: pruned, timed out, killed, interrupted, two at a time; none is lost or counted twice."""

import csv
import fcntl
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from edgetrain.cli import main
from edgetrain.folder import RunFolder
from edgetrain.sweep.plan import plan_sweep
from edgetrain.sweep.trials import GRACE, Failed, RunningTrial

RATE = "job.rate=0.01"


def rows(place: Path) -> list[dict[str, str]]:
    with (place / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def starts(place: Path, name: str) -> list[str]:
    return (place / "runs" / f"{name}.starts").read_text().split()


def started(place: Path, *arguments: str) -> subprocess.Popen:
    log = place.with_suffix(".err").open("a")
    command = [sys.executable, "-m", "edgetrain", *arguments]
    return subprocess.Popen(command, cwd=place.parent, stdout=log, stderr=log)


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 90
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def done(place: Path, number: int) -> bool:
    log = place.with_suffix(".err")
    return log.exists() and f"done     trial{number}" in log.read_text()


def test_a_killed_sweep_loses_no_trial_and_counts_none_twice(tmp_path: Path) -> None:
    """Two at a time: the first waits for a file, the others finish beside it; then the sweep's process is killed."""
    place = tmp_path / "s"
    process = started(
        place, "sweep", "recipe=bowl", RATE, "job.width=1,2,3", "job.end=waits", "parallel=2", "retrain=0", "out=s"
    )
    wait_for(lambda: done(place, 1))
    process.kill()
    process.wait()
    waiting = RunFolder(place / "runs" / "trial0_seed0")
    wait_for((place / "runs" / "trial0_seed0.starts").exists)
    assert not waiting.finished
    again = started(place, "resume=s", "trust=[bowl_job]")
    wait_for(lambda: "running  trial0_seed0, which an earlier process" in place.with_suffix(".err").read_text())
    (tmp_path / "go").touch()
    assert again.wait(90) == 0, place.with_suffix(".err").read_text()
    assert [row["trial"] for row in rows(place)] == ["0", "1", "2"]
    assert [row["state"] for row in rows(place)] == ["complete"] * 3
    assert [starts(place, f"trial{number}_seed0") for number in range(3)] == [["new"]] * 3
    assert json.loads((place / "metrics.json").read_text())["trials_complete"] == 3


def test_ctrl_c_stops_the_runs_and_says_how_to_go_on(tmp_path: Path) -> None:
    place = tmp_path / "s"
    process = started(place, "sweep", "recipe=bowl", RATE, "job.width=1,2", "job.end=waits", "retrain=0", "out=s")
    wait_for((place / "runs" / "trial0_seed0.starts").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "interrupted; resume with: python -m edgetrain resume=s" in place.with_suffix(".err").read_text()
    with (place / "runs" / "trial0_seed0.log").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody runs there any more
    assert not (place / "results.csv").exists()


def test_a_hopeless_trial_is_pruned_and_ends_cleanly(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = optuna.pruners.MedianPruner
    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda: usual(n_startup_trials=1))
    typed = ("pruner=median", RATE, "job.width=3,40", "job.steps=200", "job.pause=0.01", "retrain=0")
    assert main(["sweep", "recipe=bowl", *typed, "job.end=well", "out=s"]) == 0
    good, bad = rows(Path("s"))
    assert (good["state"], bad["state"], bad["mean"]) == ("complete", "pruned", "")
    assert bad["note"].startswith("pruned at step ")
    folder = RunFolder(Path("s/runs/trial1_seed0"))
    assert (folder.path / "ended_cleanly.json").exists()
    assert not folder.finished
    assert len(folder.training_curves()) < 200
    assert json.loads(Path("s/metrics.json").read_text())["trials_pruned"] == 1
    journal = optuna.storages.journal.JournalFileBackend("s/trials.journal")
    study = optuna.load_study(storage=optuna.storages.JournalStorage(journal), study_name="bowl")
    assert study.trials[0].intermediate_values == {step: 1 - step / 200 for step in range(1, 201)}
    assert bad["note"] == f"pruned at step {max(study.trials[1].intermediate_values)}"


def test_a_killed_run_is_a_failed_trial(workplace: Path) -> None:
    typed = (RATE, "job.width=1,2", "job.end=is_killed", "parallel=2", "retrain=0")
    assert main(["sweep", "recipe=bowl", *typed, "out=s"]) == 0
    assert [row["state"] for row in rows(Path("s"))] == ["failed", "complete"]
    assert "trial0_seed0 failed, killed by SIGKILL" in rows(Path("s"))[0]["note"]


class Process:
    """One that runs until it is killed, and remembers what it was sent."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def poll(self) -> int | None:
        return -9 if signal.SIGKILL in self.sent else None

    def send_signal(self, number: int) -> None:
        self.sent.append(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def test_a_run_out_of_time_is_asked_to_end_and_killed_when_it_does_not_listen(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("edgetrain.sweep.trials.time", SimpleNamespace(monotonic=lambda: clock[0]))
    sweep = plan_sweep(["recipe=bowl", "job.width=1,2", "timeout=2"])
    trial = optuna.trial.FixedTrial({}, number=0)
    one = RunningTrial(sweep, trial, {"job.width": "1"}, RunFolder(workplace))
    (runner,) = one.runners
    process = runner.process = Process()
    runner.attempts, one.since = 1, clock[0]
    sent = {119: [], 121: [signal.SIGINT], 121 + GRACE - 1: [signal.SIGINT]}
    for seconds, expected in sent.items():
        clock[0] = 1000.0 + seconds
        assert one.poll(1) is False
        assert process.sent == expected
    clock[0] = 1000.0 + 121 + GRACE + 1
    assert one.poll(1) is False
    assert process.sent == [signal.SIGINT, signal.SIGKILL]
    with pytest.raises(Failed, match="trial0_seed0 took longer than timeout=2 minutes"):
        one.poll(1)
