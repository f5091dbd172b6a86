"""Files appear whole or not at all; folders are new, and one process's at a time, whatever the clock says."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from conftest import SMALL

from edgetrain import folder as module
from edgetrain.checkpoint import last_checkpoint
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder, atomic, write_atomic

Call = Callable[..., tuple[int, str, str]]
RUN = ["run", "recipe=layerskip_llama", *SMALL, "measure=[]", "export=[]"]


def test_a_file_has_its_old_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    with atomic(path, keep=tmp_path / "before.txt") as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
        assert not (tmp_path / "before.txt").exists()
    assert path.read_text() == "new"
    assert (tmp_path / "before.txt").read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.txt", "before.txt"]


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    with pytest.raises(RuntimeError), atomic(path, keep=tmp_path / "before.txt") as file:
        file.write(b"ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    program = (
        "import os, signal; from pathlib import Path; from edgetrain.folder import atomic\n"
        "with atomic(Path('checkpoints/last.ckpt')) as file: file.write(b'x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path)
    (left,) = (tmp_path / "checkpoints").iterdir()
    assert left.name.startswith(".last.ckpt.")
    write_atomic(tmp_path / "part.part", "mine")
    RunFolder(tmp_path).remove_parts()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["part.part"]


def test_a_lock_is_free_again_after_use(tmp_path: Path) -> None:
    program = "from pathlib import Path; from edgetrain.folder import RunFolder\nwith RunFolder(Path()).locked(): pass"

    def other() -> str:
        return subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True).stderr

    with RunFolder(tmp_path).locked():
        assert f"in use by process {os.getpid()} on" in other()
    assert other() == ""


def test_a_lock_in_an_unwritable_place_is_one_sentence() -> None:
    with pytest.raises(UserError, match="cannot write into the run folder /proc/self"):
        RunFolder(Path("/proc/self")).locked().__enter__()


class Backwards(datetime):
    """A clock that is an hour earlier each time it is read."""

    hours = iter(range(10**6))

    @classmethod
    def now(cls, tz: object = None) -> datetime:
        return datetime(2026, 11, 25, 12) - timedelta(hours=next(cls.hours))


class Standing(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:
        return datetime(2026, 11, 25, 12)


def test_runs_of_the_same_second_and_the_same_luck_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draws: Iterator[str] = iter(["aaaa", "aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr(module, "datetime", Standing)
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: next(draws))
    names = [RunFolder.create("r").path.name for _ in range(2)]
    assert names == ["20261125-120000-aaaa", "20261125-120000-bbbb"]


def test_an_empty_folder_with_the_lock_of_a_killed_run_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").write_text("process 1 on nowhere\n")
    assert RunFolder.create("r", str(tmp_path / "out")).path == tmp_path / "out"


def test_a_clock_that_runs_backwards_disturbs_nothing(
    edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints fall due by the monotonic clock, and the newest is found without looking at times."""
    import time

    seconds = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    monkeypatch.setattr(module, "datetime", Backwards)
    settings = ["job.checkpoint_minutes=0.00001", "trainer.max_steps=4"]
    assert edgetrain(*RUN, *settings, "out=run")[0] == 0
    run = RunFolder.open("run")
    assert run.read_json("environment.json")["wall_seconds"] > 0
    assert run.read_json("metrics.json")["train_seconds"] > 0
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["last.ckpt", "previous.ckpt"]
    os.utime(run.checkpoints / "last.ckpt", (0, 0))
    assert last_checkpoint(run).name == "last.ckpt"
    code, _, err = edgetrain("run", "resume=run", "trainer.max_steps=6")
    assert code == 0, err
    assert run.read_json("metrics.json")["steps"] == 6
    assert [step for step, _ in run.training_curves()] == sorted(step for step, _ in run.training_curves())
