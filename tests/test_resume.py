"""Whatever ends a run, `resume` ends with the weights of the run that nothing ended."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, SMALL

from edgetrain.checkpoint import read_checkpoint
from edgetrain.folder import RunFolder
from edgetrain.jobs import checkpoints
from edgetrain.jobs.callbacks import Throughput
from edgetrain.tasks.language import Language

Call = Callable[..., tuple[int, str, str]]
RUN = ["run", "recipe=layerskip_llama", *SMALL, "measure=[]", "export=[]"]
# Optimiser steps end with every third batch, and with the last of an epoch.
ACCUMULATING = [*RUN, "trainer.accumulate_grad_batches=3", "job.checkpoint_steps=2"]


def end(folder: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}


def assert_same_end(a: Path, b: Path) -> None:
    torch.testing.assert_close(end(a), end(b), rtol=0, atol=0)


def raise_signal_at(monkeypatch: pytest.MonkeyPatch, number: int, batch: int, times: int = 1) -> None:
    """Send this process a signal when that training batch begins."""
    begin, count = Throughput.on_train_batch_start, iter(range(1, 10**6))

    def on_train_batch_start(self: Throughput, *arguments: Any) -> None:
        begin(self, *arguments)
        if next(count) == batch:
            for _ in range(times):
                os.kill(os.getpid(), number)

    monkeypatch.setattr(Throughput, "on_train_batch_start", on_train_batch_start)


def test_three_kills_end_bit_equal() -> None:
    """In an epoch and an accumulation, at an edge of an epoch, in a half-written checkpoint; all of kills.FIXED."""
    command = [sys.executable, str(ROOT / "tests" / "kills.py"), "fixed"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    outcomes = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [outcome["equal"] for outcome in outcomes] == [True, True, True], ended.stdout
    assert [outcome["resumed_from"] for outcome in outcomes] == [3, 6, 6]
    assert [outcome["in_write"] for outcome in outcomes] == [False, False, True]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "inter")]
)
def test_a_signal_lets_the_step_end_and_saves_it(
    edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, word: str
) -> None:
    """Batch 5 is in the middle of step 2, which ends with batch 6."""
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        raise_signal_at(patch, number, batch=5)
        ended, _, err = edgetrain(*ACCUMULATING, "out=parts")
    assert ended == code, err
    assert word in err
    assert "resume with: python -m edgetrain resume=parts" in err
    assert "Traceback" not in err
    assert end(workplace / "parts")["global_step"] == 2
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert edgetrain("run", "resume=parts")[0] == 0
    assert edgetrain(*ACCUMULATING, "out=whole")[0] == 0
    assert_same_end(workplace / "whole", workplace / "parts")


def test_a_second_signal_does_not_wait(edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_signal_at(monkeypatch, signal.SIGINT, batch=2, times=2)
    assert edgetrain(*ACCUMULATING, "out=run")[0] == 130
    assert not list((workplace / "run").rglob("*.ckpt"))


@pytest.mark.parametrize(("accumulate", "validated", "step_saved"), [(1, [0], 3), (2, [0, 1, 2], 2)])
def test_a_signal_in_validation_waits_for_its_end_only_where_gradients_accumulate(
    edgetrain: Call,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    accumulate: int,
    validated: list[int],
    step_saved: int,
) -> None:
    """Validation follows batch 3, which with two batches a step is in the middle of step 2."""
    step = Language.validation_step
    batches = []

    def validation_step(self: Language, batch: Any, index: int) -> None:
        batches.append(index)
        if index == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, batch, index)

    settings = ["trainer.limit_val_batches=3", f"trainer.accumulate_grad_batches={accumulate}"]
    with monkeypatch.context() as patch:
        patch.setattr(Language, "validation_step", validation_step)
        code, _, err = edgetrain(*RUN, *settings, "out=parts")
    assert code == 143, err
    assert batches == validated
    assert end(workplace / "parts")["global_step"] == step_saved
    assert edgetrain("run", "resume=parts")[0] == 0
    assert edgetrain(*RUN, *settings, "out=whole")[0] == 0
    assert_same_end(workplace / "whole", workplace / "parts")


def test_sigterm_before_training_is_one_line(workplace: Path) -> None:
    """It comes while torch is being imported."""
    command = [sys.executable, "-X", "importtime", "-m", "edgetrain", *RUN, "out=run"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=workplace)
    while "torch._C" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said = [line for line in process.communicate(timeout=60)[1].splitlines() if not line.startswith("import time:")]
    assert process.returncode == 143, said
    assert said == ["terminated"]


def test_sigterm_while_the_model_is_built_says_how_to_resume(
    edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetrain.models.llama import Llama

    with monkeypatch.context() as patch:
        patch.setattr(Llama, "__init__", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        code, _, err = edgetrain(*RUN, "out=run")
    assert code == 143
    assert "terminated; resume with" in err
    assert edgetrain("run", "resume=run")[0] == 0  # before its first checkpoint, from the start
    assert edgetrain(*RUN, "out=whole")[0] == 0
    assert_same_end(workplace / "whole", workplace / "run")


def test_curves_are_on_the_disk_before_the_checkpoint_is(
    edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the step itself, which is 1 and then 3, Lightning logs after the checkpoint."""
    save = checkpoints.torch.save
    written = []

    def save_and_look(*arguments: Any) -> None:
        written.append([step for step, values in RunFolder(Path("run")).training_curves() if "train/loss" in values])
        save(*arguments)

    monkeypatch.setattr(checkpoints.torch, "save", save_and_look)
    settings = ["job.checkpoint_steps=2", "trainer.log_every_n_steps=1", "trainer.max_steps=4", "out=run"]
    assert edgetrain(*RUN, *settings)[0] == 0
    assert written == [[0], [0, 1, 2]]


def test_a_damaged_last_checkpoint_is_named_and_the_one_before_it_used(edgetrain: Call, workplace: Path) -> None:
    settings = ["job.checkpoint_steps=4"]
    assert edgetrain(*RUN, *settings, "out=whole")[0] == 0
    assert edgetrain(*RUN, *settings, "out=parts")[0] == 0
    last = workplace / "parts" / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    weight = read_checkpoint(last)["state_dict"]["model.lm_head.weight"]
    content[content.index(weight.numpy().tobytes())] ^= 1  # one bit of a tensor, of which torch.load says nothing
    last.write_bytes(content)
    code, _, err = edgetrain("run", "resume=parts")
    assert code == 0, err
    assert f"{last} is damaged; going on from the one before it, of step 4" in err
    assert_same_end(workplace / "whole", workplace / "parts")
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "last.ckpt.damaged", "previous.ckpt"]


def test_a_run_whose_checkpoints_are_all_damaged_is_one_sentence(edgetrain: Call, workplace: Path) -> None:
    assert edgetrain(*RUN, "job.checkpoint_steps=4", "out=run")[0] == 0
    for path in (workplace / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    code, _, err = edgetrain("run", "resume=run")
    assert code == 2
    assert "no checkpoint of" in err
    assert "last.ckpt, previous.ckpt are damaged; start the run again" in err
    assert "Traceback" not in err


def test_a_second_process_in_the_same_folder_is_refused(edgetrain: Call, workplace: Path) -> None:
    assert edgetrain(*RUN, "out=run")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (workplace / "run").rglob("*") if path.name != ".lock"}
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from edgetrain.folder import RunFolder\n"
            "with RunFolder.open('run').locked(): print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=workplace,
    )
    assert holder.stdout.readline() == "held\n"
    code, _, err = edgetrain("run", "resume=run", "trainer.max_steps=8")
    assert code == 2
    assert f"is in use by process {holder.pid} on {socket.gethostname()}; wait until it ends" in err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    holder.kill()  # its lock ends with it
    holder.wait()
    assert edgetrain("run", "resume=run", "trainer.max_steps=8")[0] == 0
