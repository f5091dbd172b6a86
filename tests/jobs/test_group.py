"""One run in two processes: the losses of one process, one folder, one sentence, one end."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, SMALL
from lightning.fabric.plugins.environments import LightningEnvironment
from ranks import Ended, command, ranks

from edgetrain import processes
from edgetrain.build import build_trained
from edgetrain.checkpoint import model_weights, read_checkpoint
from edgetrain.compose import compose
from edgetrain.folder import RunFolder
from edgetrain.jobs import group
from edgetrain.jobs.callbacks import Throughput
from edgetrain.tasks.language import Language

Call = Callable[..., tuple[int, str, str]]
STEPS = 4
RUN = [
    "recipe=layerskip_llama",
    *SMALL,
    f"trainer.max_steps={STEPS}",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
    "trainer.precision=32-true",
    "measure=[]",
    "export=[]",
    "logger=[csv]",
]
TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]
PLAIN = ["method.layerskip.p_max=0", "method.layerskip.e_scale=0"]
SKIPS = ["method.layerskip.p_max=0.6", "method.layerskip.dropout_schedule=constant"]
STRATEGIES = ["ddp", "fsdp2"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return model_weights(read_checkpoint(folder / "checkpoints" / "last.ckpt"))


def losses(folder: Path) -> list[tuple[int, str, float]]:
    names = ("train/loss", "train/objective", "validation/loss")
    curves = RunFolder(folder).training_curves()
    return [(step, name, values[name]) for step, values in curves for name in names if name in values]


def assert_ended(ended: list[Ended], *codes: int) -> None:
    assert [rank.code for rank in ended] == list(codes), "\n".join(rank.said for rank in ended)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_have_the_losses_of_one_with_their_samples(
    edgetrain: Call, workplace: Path, strategy: str
) -> None:
    """Process 0 trains on samples 0, 2, 4 and 6 of the order, process 1 on 1, 3, 5 and 7; the one on all eight."""
    code, _, err = edgetrain(*RUN, *PLAIN, "data.batch_size=8", "out=one")
    assert code == 0, err
    ended = command(*RUN, *PLAIN, *TWO, f"trainer.strategy={strategy}", "out=two", place=workplace)
    assert_ended(ended, 0, 0)
    one, two = losses(workplace / "one"), losses(workplace / "two")
    assert [row[:2] for row in two] == [row[:2] for row in one]
    assert len([row for row in two if row[1] == "train/loss"]) == STEPS
    torch.testing.assert_close([row[2] for row in two], [row[2] for row in one], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights(workplace / "two"), weights(workplace / "one"), rtol=1e-4, atol=2e-5)
    one, two = (RunFolder(workplace / name).read_json("metrics.json") for name in ("one", "two"))
    assert two["tokens_trained"] == one["tokens_trained"] == STEPS * 8 * 32
    assert two["flops_per_token"] == one["flops_per_token"]
    assert two["test/loss"] == pytest.approx(one["test/loss"], rel=1e-4)


def one_after_the_other(overrides: list[str]) -> dict[str, torch.Tensor]:
    """The model after STEPS optimiser steps on the mean of two processes' gradients, in a plain loop."""
    torch.manual_seed(0)
    trained = build_trained(compose([*overrides, "out=unused"]))
    task, method = trained.task, trained.task.methods[0]
    configured = task.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    loaders = []
    for rank in range(2):
        loader = trained.data.train_dataloader()
        loader.sampler.num_replicas, loader.sampler.rank = 2, rank
        loaders.append(iter(loader))
    task.train()
    for step in range(STEPS):
        for loader in loaders:
            method.after_step(task.model, step)  # both draw the same numbers
            (task.training_step(next(loader), 0) / 2).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        task.after_step(step + 1)
    return trained.model.state_dict()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_layerskip_in_two_processes_is_the_mean_of_their_gradients(workplace: Path, strategy: str) -> None:
    expected = one_after_the_other([*RUN, *SKIPS])
    ended = command(*RUN, *SKIPS, *TWO, f"trainer.strategy={strategy}", "out=two", place=workplace)
    assert_ended(ended, 0, 0)
    torch.testing.assert_close(weights(workplace / "two"), expected, rtol=1e-4, atol=2e-5)


def test_only_the_first_process_writes_and_prints(workplace: Path) -> None:
    ended = command(*RUN, *SKIPS, *TWO, place=workplace)
    assert_ended(ended, 0, 0)
    (folder,) = (workplace / "outputs" / "layerskip_llama").iterdir()
    assert {path.name for path in folder.iterdir()} > {"config.yaml", "environment.json", "metrics.json", "report.html"}
    assert "tokens_per_s" in ended[0].said
    assert "edgetrain" not in ended[1].said.replace(str(ROOT), "")
    assert not re.search("tokens_per_s|report|run folder|drops what", ended[1].said)


def test_what_is_wrong_everywhere_is_said_once(workplace: Path) -> None:
    ended = command(*RUN, *TWO, "model.dim=33", "out=two", place=workplace, together=True)
    assert ended[0].code == 2, ended[0].said
    # The launcher's SIGTERM finds the other outside of its work, on the way into it, or inside, where who is not the
    # first stops with 0.
    assert ended[1].code in (-signal.SIGTERM, 128 + signal.SIGTERM, 0), ended[1].said
    assert "".join(rank.said for rank in ended).count("error:") == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_of_two_processes_ends_bit_equal(edgetrain: Call, workplace: Path, strategy: str) -> None:
    """Its checkpoint is one file, which other commands read as they do any other."""
    run = [*RUN, *SKIPS, *TWO, f"trainer.strategy={strategy}", f"task.total_steps={STEPS}"]
    assert_ended(command(*run, "out=whole", place=workplace), 0, 0)
    assert_ended(command(*run, "trainer.max_steps=2", "out=parts", place=workplace), 0, 0)
    assert_ended(command("resume=parts", f"trainer.max_steps={STEPS}", place=workplace), 0, 0)
    whole, parts = (read_checkpoint(workplace / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        torch.testing.assert_close(parts[part], whole[part], rtol=0, atol=0)
    code, out, err = edgetrain("eval", "run=parts")
    assert code == 0, err
    measured = RunFolder(workplace / "parts").read_json("metrics.json")["test/loss"]
    assert f"test/loss        {measured:.4g}" in out
    model = model_weights(parts)
    assert torch.equal(model["lm_head.weight"], model["model.embed_tokens.weight"])


def at_batch(number: int, rank: int, act: Callable[[], object]) -> Callable[[int], None]:
    """For `command`: do something in that process when that training batch begins."""

    def prepare(here: int) -> None:
        if here != rank:
            return
        begin, count = Throughput.on_train_batch_start, iter(range(1, 10**6))

        def on_train_batch_start(self: Throughput, *arguments: object) -> None:
            begin(self, *arguments)
            if next(count) == number:
                act()

        Throughput.on_train_batch_start = on_train_batch_start

    return prepare


@pytest.mark.parametrize(("dead", "strategy"), [(0, "ddp"), (1, "fsdp2")])
def test_when_a_process_dies_the_other_says_so_and_the_run_can_be_resumed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, dead: int, strategy: str
) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    run = [*RUN, *SKIPS, *TWO, f"trainer.strategy={strategy}", "job.checkpoint_steps=1", "out=two"]
    ended = command(*run, place=workplace, prepare=at_batch(3, dead, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    left = ended[1 - dead]
    assert (ended[dead].code, left.code) == (-signal.SIGKILL, 2), left.said
    assert left.said.count("error:") == 1
    assert "training stopped: another process of this run has ended; go on with resume=" in left.said
    assert str(workplace / "two") in left.said
    assert "Traceback" not in left.said
    assert left.seconds < 30
    assert read_checkpoint(workplace / "two" / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert_ended(command("resume=two", place=workplace), 0, 0)


def test_sigterm_for_one_process_stops_both_after_the_same_step(workplace: Path) -> None:
    ended = command(
        *RUN, *TWO, "out=two", place=workplace, prepare=at_batch(2, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    )
    assert_ended(ended, 143, 0)
    assert ended[0].said.count("resume with: python -m edgetrain resume=two") == 1
    assert "resume" not in ended[1].said
    assert read_checkpoint(workplace / "two" / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_a_loss_that_is_not_finite_in_one_process_stops_both(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the first says what the other found."""
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    step = Language.training_step

    def prepare(rank: int) -> None:
        def training_step(self: Language, batch: torch.Tensor, index: int) -> torch.Tensor:
            return step(self, batch, index) * (float("nan") if rank == 1 and index == 2 else 1.0)

        Language.training_step = training_step

    ended = command(*RUN, *TWO, "out=two", place=workplace, prepare=prepare)
    assert_ended(ended, 2, 2)
    assert "the loss of batch 2 in step 2 is nan" in ended[0].said
    assert json.loads((workplace / "two" / "fault.json").read_text())["step"] == 2
    assert not list((workplace / "two" / "checkpoints").glob("*"))


def test_a_process_that_waits_for_a_dead_one_ends_with_a_sentence(workplace: Path) -> None:
    """As in a collective operation on a GPU, which a signal does not interrupt. Lightning's observer is not needed."""

    def wait(rank: int) -> None:
        launcher = SimpleNamespace(procs=[subprocess.Popen(["false"])])
        strategy = SimpleNamespace(cluster_environment=LightningEnvironment(), launcher=launcher)
        trainer = SimpleNamespace(strategy=strategy, local_rank=0)
        with group.watched(trainer, RunFolder(workplace / "two")):
            time.sleep(60)

    (ended,) = ranks(wait, workplace, world=1)
    assert ended.code == 2
    assert ended.said == f"error: {group.lost(RunFolder(workplace / 'two'))}\n"
    assert ended.seconds < 20
