"""Kill training runs with SIGKILL, resume them, and compare the end, bit by bit, with an uninterrupted run.

    scripts/kill_test N [SEED]      N random kills over the settings below; exit 1 on any difference
    scripts/kill_test fixed         the three of tests/test_resume.py; one JSON line each

Modules are imported once; every run is a fork of this process, a real process that a real SIGKILL ends.
"""

import json
import math
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from edgetrain.checkpoint import kept_checkpoints, read_checkpoint
from edgetrain.cli import main
from edgetrain.folder import PART, RunFolder
from edgetrain.jobs import checkpoints
from edgetrain.jobs.callbacks import Throughput

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SMALL, write_texts

STEPS, BATCH = 20, 64
RUN = [
    "run",
    "recipe=layerskip_llama",
    *SMALL,
    "data.limit=10",
    f"data.batch_size={BATCH}",  # 4 batches an epoch
    f"trainer.max_steps={STEPS}",
    "method.layerskip.dropout_schedule=exponential",
    "method.layerskip.p_max=0.5",
    "trainer.precision=32-true",
    "measure=[]",
    "export=[]",
    "logger=[csv]",
]
# Curricula, data workers, accumulation, precision, cadence by steps and by time, and a method that draws from torch's
# own random state.
SETTINGS = {
    "fp32, rotational": ["job.checkpoint_steps=3"],
    "fp32, gradual, 2 workers": ["method.layerskip.curriculum=gradual", "data.workers=2", "job.checkpoint_steps=2"],
    "bf16, rotational, accumulate 3": [
        "trainer.precision=bf16-mixed",
        "trainer.accumulate_grad_batches=3",
        "job.checkpoint_steps=2",
    ],
    "bf16, gradual, 2 workers, accumulate 2, by time": [
        "trainer.precision=bf16-mixed",
        "method.layerskip.curriculum=gradual",
        "data.workers=2",
        "trainer.accumulate_grad_batches=2",
        "job.checkpoint_minutes=0.0005",
    ],
    "fp32, lora with dropout, accumulate 2": [
        "method=[layerskip,lora]",
        "method.layerskip.rotation=3",
        "method.lora.dropout=0.3",
        "method.lora.rank=2",
        "trainer.accumulate_grad_batches=2",
        "job.checkpoint_steps=3",
    ],
}
# All of it at once. Optimiser steps end with batches 3, 4, 7, 8, ..., checkpoints with batches 7, 12, 19, 24, ...
FIXED = [
    "trainer.max_steps=11",
    "trainer.precision=bf16-mixed",
    "trainer.accumulate_grad_batches=3",
    "method=[layerskip,lora]",
    "method.layerskip.curriculum=gradual",
    "method.lora.dropout=0.3",
    "method.lora.rank=2",
    "data.workers=2",
    "job.checkpoint_steps=3",
]


@dataclass(frozen=True)
class Moment:
    """When to kill. kind batch: `extra` seconds after batch `number` began, 0 holds it there; write: in checkpoint
    `number`, after a share `extra` of its bytes; rename: when checkpoint `number` + 1 is written and the older one has
    just been renamed.
    """

    kind: str
    number: int
    extra: float = 0.0

    def __str__(self) -> str:
        return {
            "batch": f"batch {self.number} + {1000 * self.extra:.0f} ms",
            "write": f"{self.extra:.0%} of checkpoint {self.number} written",
            "rename": f"checkpoint {self.number + 1} taking its name",
        }[self.kind]


class Progress:
    """What a child tells its parent: batches begun, and whether it waits to be killed. In memory that both see."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 16)

    def tell(self, batches: int, waits: bool = False) -> None:
        self.memory[:16] = struct.pack("qq", batches, waits)

    def read(self) -> tuple[int, bool]:
        batches, waits = struct.unpack("qq", self.memory[:16])
        return batches, bool(waits)


def fork(arguments: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """A process that runs one command line; its output goes to `log`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        prepare()
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ending(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def watch(progress: Progress, moment: Moment | None) -> Callable[[], None]:
    """What a child does before it starts: count batches, and stand still where it is to be killed."""
    counts = {"batches": 0, "checkpoints": 0, "renames": 0}
    begin, save, replace = Throughput.on_train_batch_start, torch.save, Path.replace

    def stand_still() -> None:
        progress.tell(counts["batches"], waits=True)
        time.sleep(3600)

    def on_train_batch_start(self: Throughput, *arguments: Any) -> None:
        counts["batches"] += 1
        progress.tell(counts["batches"])
        if moment == Moment("batch", counts["batches"]):
            stand_still()
        begin(self, *arguments)

    def save_in_part(checkpoint: Any, file: Any) -> None:
        counts["checkpoints"] += 1
        save(checkpoint, file)
        if moment and moment.kind == "write" and counts["checkpoints"] == moment.number:
            file.flush()
            file.truncate(int(moment.extra * file.tell()))
            stand_still()

    def replace_and_wait(self: Path, target: Path) -> Path:
        done = replace(self, target)
        if moment and moment.kind == "rename" and Path(target).name == "previous.ckpt":
            counts["renames"] += 1
            if counts["renames"] == moment.number:
                stand_still()
        return done

    def prepare() -> None:
        Throughput.on_train_batch_start = on_train_batch_start
        checkpoints.torch.save = save_in_part
        Path.replace = replace_and_wait

    return prepare


def kill(child: int, progress: Progress, moment: Moment) -> None:
    """Wait for the moment, then SIGKILL; a child that ended before is left alone."""
    while not (moment.kind == "batch" and progress.read()[0] >= moment.number) and not progress.read()[1]:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.0005)
    time.sleep(moment.extra if moment.kind == "batch" else 0.0)
    os.kill(child, signal.SIGKILL)
    ending(child)


def same(a: Any, b: Any) -> bool:
    """Bit-equal, containers and all."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def end_state(folder: Path) -> dict[str, Any]:
    """Weights, optimiser, schedule, step and random states after training."""
    checkpoint = read_checkpoint(kept_checkpoints(RunFolder(folder))[0])
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "edgetrain")
    state = {name: checkpoint[name] for name in names}
    state["edgetrain"] = {key: value for key, value in state["edgetrain"].items() if key.endswith("_random")}
    return state


@dataclass
class Reference:
    """An uninterrupted run: where, batches trained and those of an epoch, checkpoints written, seconds a batch."""

    folder: Path
    batches: int
    epoch: int
    saves: int
    seconds: float


def reference(place: Path, number: int, setting: list[str]) -> Reference:
    folder, progress = place / f"whole_{number}", Progress()
    log = place / f"whole_{number}.log"
    saves = Progress()

    def prepare() -> None:
        watch(progress, None)()
        save, count = checkpoints.torch.save, iter(range(1, 10**6))

        def counted(*arguments: Any) -> None:
            save(*arguments)
            saves.tell(next(count))

        checkpoints.torch.save = counted

    code = ending(fork([*RUN, *setting, f"out={folder}"], log, prepare))
    if code:
        raise SystemExit(f"the uninterrupted run of {setting} ended with {code}:\n{log.read_text()}")
    batches = progress.read()[0]
    seconds = RunFolder(folder).read_json("metrics.json")["train_seconds"] / batches
    fit_loop = read_checkpoint(kept_checkpoints(RunFolder(folder))[0])["loops"]["fit_loop"]
    epoch = math.ceil(fit_loop["state_dict"]["combined_loader"][0]["total"] / BATCH)
    return Reference(folder, batches, epoch, saves.read()[0], seconds)


@dataclass(frozen=True)
class Outcome:
    """resumed_from: optimiser step, 0 for the start; in_write: the kill left a half-written file behind."""

    resumed_from: int
    in_write: bool
    equal: bool
    log: str


def kill_and_resume(folder: Path, setting: list[str], moment: Moment, whole: Reference) -> Outcome:
    log, progress = folder.with_suffix(".log"), Progress()
    kill(fork([*RUN, *setting, f"out={folder}"], log, watch(progress, moment)), progress, moment)
    kept = kept_checkpoints(RunFolder(folder))
    step = read_checkpoint(kept[0])["global_step"] if kept else 0
    in_write = any(folder.rglob(f".*{PART}"))
    code = ending(fork(["run", f"resume={folder}"], log))
    equal = code == 0 and same(end_state(folder), end_state(whole.folder)) and not any(folder.rglob(f".*{PART}"))
    return Outcome(step, in_write, equal, log.read_text())


def random_moment(draw: random.Random, whole: Reference) -> Moment:
    kind = draw.choice(["batch", "batch", "edge", "write", "write", "rename"])
    if kind == "write":
        return Moment("write", draw.randint(1, whole.saves), round(draw.random(), 2))
    if kind == "rename":
        return Moment("rename", draw.randint(1, max(1, whole.saves - 1)))
    number = draw.randint(1, whole.batches)
    if kind == "edge":  # the last batch of an epoch, or the first of the next
        number = whole.epoch * draw.randint(1, whole.batches // whole.epoch - 1) + draw.randint(0, 1)
    return Moment("batch", number, draw.uniform(0, 1.5) * whole.seconds)


def workplace() -> Path:
    """A new folder with texts in it, entered."""
    place = Path(tempfile.mkdtemp(prefix="kill_test_"))
    os.environ["EDGETRAIN_CACHE"] = str(place / "cache")
    os.chdir(write_texts(place / "texts").parent)
    return place


def fixed_kills() -> int:
    """In the middle of an epoch and of an accumulation, at an epoch's edge, and half way through a checkpoint."""
    place = workplace()
    whole = reference(place, 0, FIXED)
    for number, moment in enumerate([Moment("batch", 10), Moment("batch", 13), Moment("write", 3, 0.5)]):
        print(json.dumps(asdict(kill_and_resume(place / f"killed_{number}", FIXED, moment, whole))))
    shutil.rmtree(place)
    return 0


def kill_test(count: int, seed: int) -> int:
    """Print one row a kill. Returns the exit code."""
    draw = random.Random(seed)
    different = 0
    place = workplace()
    wholes: dict[str, Reference] = {}
    print(f"{count} kills, seed {seed}, {STEPS} steps each")
    for number in range(count):
        name = list(SETTINGS)[number % len(SETTINGS)]
        if name not in wholes:
            wholes[name] = reference(place, len(wholes), SETTINGS[name])
        moment = random_moment(draw, wholes[name])
        outcome = kill_and_resume(place / f"killed_{number}", SETTINGS[name], moment, wholes[name])
        different += not outcome.equal
        print(
            f"{number + 1:3}  {name:48} {moment!s:36} {'half a file left' if outcome.in_write else '':17} "
            f"resumed from step {outcome.resumed_from:2}  {'bit-equal' if outcome.equal else 'DIFFERENT'}",
            flush=True,
        )
        if not outcome.equal:
            print(outcome.log, file=sys.stderr)
    print(f"{count - different} of {count} bit-equal")
    if different:
        print(f"what they left is in {place}")
        return 1
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["fixed"]:
        sys.exit(fixed_kills())
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.exit(kill_test(*(numbers + [25, 0][len(numbers) :])))
