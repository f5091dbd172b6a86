"""Training of a Llama: ours, with its method and without, against transformers' Trainer and litgpt.

`trainers` says what all have in common, `training_memory` what of their memory is counted. The loss of the last repeat
stands beside each rate, so that a difference would be seen. The repeats share one process, in turns, and its allocator
keeps what is freed (`allocator`) for all of them; in its own process only ours sets that.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from edgetrain.allocator import keep_freed_memory
from edgetrain.bench.litgpt import load_litgpt
from edgetrain.bench.paused import Paused
from edgetrain.bench.results import show_rows, timing_rows
from edgetrain.bench.side_by_side import Contender, Timing, measure, ratio
from edgetrain.bench.trainers import LITGPT, OURS, PEER, precision_of, trainings, with_method
from edgetrain.bench.training_memory import ABOVE, batch_of, memory_row
from edgetrain.build import build
from edgetrain.compose import compose
from edgetrain.config import Config
from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.jobs.efficiency import peak_flops, training_flops
from edgetrain.models.huggingface import save_llama
from edgetrain.models.llama import Llama
from edgetrain.report.figures import bar_chart

WARMUP = 1  # rounds that are not counted
# What a model that comes without a recipe trains on, and its tokens, sequences and classes unless they are said.
BARE = ["method=[]", "data.vocab_size=32000", "data.context=2048", "data.batch_size=1"]
RANDOM_TOKENS = "edgetrain.bench.random_tokens.RandomTokens"
NOT_RUN = "not run"


def train_language(
    folder: RunFolder,
    *,
    recipe: str = "layerskip_llama",
    overrides: list[str] = (),
    steps: int = 20,
    repeats: int = 7,
    minutes: float = 10.0,
    litgpt: str | None = None,
    memory_tokens: str | None = None,
) -> dict[str, Any]:
    """Tokens a second in training and its memory, against transformers' Trainer and litgpt, and what a method costs.

    recipe and overrides: say model, data and settings; model=NAME trains that model without the recipe's methods, and
    unless data= is chosen, on random tokens. steps: optimiser steps a repeat; minutes: no repeat begins that would end
    after so many; litgpt: folder of a checkout, whose code runs; memory_tokens: the batch whose memory is measured
    after that (8x2048 is sequences and tokens of each), the timed one by default.
    """
    keep_freed_memory()
    config = training_config(recipe, list(overrides), steps * (repeats + WARMUP))
    batch = batch_of(memory_tokens, config)
    if litgpt is not None:
        load_litgpt(litgpt)
    losses: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        weights = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = initial_model(config)
        model.context = max(model.context, batch[1])
        save_llama(model, weights)
        start = replace(config, init_from=str(weights))
        works = trainings(start, weights, folder.path / "trainings", losses, litgpt)
        timings = timed(works, config, steps, repeats, minutes)
        memory = [memory_row(config, name, weights, litgpt, batch) for name in works]
    if litgpt is None:
        memory.append({"contender": LITGPT, ABOVE: NOT_RUN})

    parameters = sum(parameter.numel() for parameter in model.parameters())
    title = f"Training a Llama of {parameters:,} parameters, {tokens_of(config):,} tokens a step, {settings_of(config)}"
    done = len(timings[OURS].rates)
    capped = "" if done == repeats else f", of {repeats} asked for: {minutes:g} minutes were up"
    caption = f"Median and quartiles of {done} repeats of {steps} steps{capped}. {data_of(config)}"
    show_rows(folder, "train_language", speed_rows(timings, config, losses, steps, litgpt), title, caption)
    show_memory(folder, memory, f"Memory of training a Llama of {parameters:,} parameters, {settings_of(config)}")
    rates = {name: timing.median for name, timing in timings.items()}
    figure = bar_chart({"tokens/s": rates}, "tokens trained on a second")
    folder.add_figure("train_language", figure, "Tokens trained on a second", "Median of the repeats.")
    return metrics_of(timings, memory, config)


def training_config(recipe: str, overrides: list[str], steps: int) -> Config:
    """The recipe's configuration for so many batches of nothing but training, each an optimiser step.

    Raises UserError when it trains no Llama of ours, or in a precision that the sides do not share.
    """
    bare = any(text.startswith("model=") for text in overrides)
    fixed = ["limit_val_batches=0", "enable_progress_bar=false", "accumulate_grad_batches=1", "devices=1"]
    trainer = [f"trainer.{text}" for text in (*fixed, f"max_steps={steps}")]
    config = compose([f"recipe={recipe}", *(BARE if bare else ()), *overrides, *trainer])
    config = replace(config, measure={}, export={}, task=config.task | {"lr_samples": None})
    if not config.model or config.model["_target_"] != "edgetrain.models.llama.Llama":
        raise UserError(f"recipe={recipe} trains no Llama of ours; bench train_language needs model=llama")
    if precision_of(config) not in ("bf16-mixed", "32-true"):
        raise UserError(f"trainer.precision={precision_of(config)}: bench train_language knows bf16-mixed and 32-true")
    if bare and not any(text.startswith("data=") for text in overrides):
        keys = ("context", "batch_size", "vocab_size", "seed", "workers")
        config = replace(config, data={"_target_": RANDOM_TOKENS} | {key: config.data[key] for key in keys})
    return config


def initial_model(config: Config) -> Llama:
    torch.manual_seed(config.seed)
    return build(config.model)


def timed(works: dict[str, Any], config: Config, steps: int, repeats: int, minutes: float) -> dict[str, Timing]:
    """Every training's timing, by its name."""
    with ExitStack() as stack:
        paused = {name: stack.enter_context(Paused(work, steps, tokens_of(config))) for name, work in works.items()}
        contenders = [Contender(name, run) for name, run in paused.items()]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        timings = measure(contenders, repeats, WARMUP, device, minutes=minutes)
    return {timing.name: timing for timing in timings}


def tokens_of(config: Config) -> int:
    """Of one step."""
    return config.data["batch_size"] * config.data["context"]


def settings_of(config: Config) -> str:
    job = config.job
    also = ["activation checkpointing"] * job["activation_checkpointing"] + ["torch.compile"] * job["compile"]
    return ", ".join([precision_of(config), *also])


def data_of(config: Config) -> str:
    return "Random tokens." if config.data["_target_"] == RANDOM_TOKENS else ""


def speed_rows(
    timings: dict[str, Timing], config: Config, losses: dict[str, list[Tensor]], steps: int, litgpt: str | None
) -> list[Row]:
    rows = timing_rows(list(timings.values()), timings[PEER], "tokens")
    for row in rows:
        row["loss in the last repeat"] = fmean(loss.item() for loss in losses[row["contender"]][-steps:])
        row["MFU"] = model_flops_utilisation(timings[row["contender"]], config)
    return rows if litgpt is not None else [*rows, {"contender": LITGPT, "tokens/s": NOT_RUN}]


def model_flops_utilisation(timing: Timing, config: Config) -> float | str:
    """Share of the device's peak, or that it was not run: there is no GPU whose peak is known."""
    peak = peak_flops(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if peak is None:
        return NOT_RUN
    with torch.device("meta"):
        model = build(config.model)
    return timing.median * training_flops(model, [(1, config.data["context"])]) / config.data["context"] / peak


def show_memory(folder: RunFolder, rows: list[Row], title: str) -> None:
    theirs = next(row[ABOVE] for row in rows if row["contender"] == PEER)
    for row in rows:
        both = isinstance(row[ABOVE], float) and isinstance(theirs, float)
        row[f"share of {PEER}"] = row[ABOVE] / theirs if both else ""
    caption = (
        "Each alone in a fresh process, two optimiser steps. peak: largest memory of the process; idle: when everything"
        " was imported and nothing built; held: 16 bytes a parameter (weight, gradient, two moments)."
    )
    show_rows(folder, "training_memory", rows, title, caption)


def metrics_of(timings: dict[str, Timing], memory: list[Row], config: Config) -> dict[str, Any]:
    """Rates and memory by contender, and ours against the others."""
    metrics: dict[str, Any] = {f"tokens_per_s/{name}": timing.median for name, timing in timings.items()}
    compared = {f"speedup_over_{name}": (OURS, name) for name in (PEER, LITGPT) if name in timings}
    if config.method:
        compared["rate_with_method"] = (with_method(config), OURS)
    for name, (one, other) in compared.items():
        found = ratio(timings[one], timings[other])
        print(f"{name:26} {found}")
        metrics[name] = found.median if found.quotable else str(found)
    above = {row["contender"]: row[ABOVE] for row in memory}
    metrics |= {f"memory_above_mib/{name}": size for name, size in above.items()}
    for name in (PEER, LITGPT):
        if isinstance(above[OURS], float) and isinstance(above[name], float):
            metrics[f"memory_share_of_{name}"] = above[OURS] / above[name]
    return metrics | {f"mfu/{OURS}": model_flops_utilisation(timings[OURS], config)}
