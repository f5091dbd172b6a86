"""Training of a small Llama: ours, with its method and without, against transformers' Trainer.

All train the same weights on the same windows in the same order, with the same batch, precision, AdamW, clipping and
learning rates; the loss of the last repeat stands beside each rate, so that a difference would be seen. Ours is what a
recipe gives: Lightning, every callback, logging. Neither side validates, saves or draws a progress bar meanwhile.
transformers' side is set as its documentation advises for speed: SDPA, fused AdamW, no cache, no reporting.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler

from edgetrain.bench.paused import Paused
from edgetrain.bench.peer import load_peer
from edgetrain.bench.results import show_rows, timing_rows
from edgetrain.bench.side_by_side import Contender, measure, ratio
from edgetrain.build import build
from edgetrain.compose import compose
from edgetrain.config import Config
from edgetrain.data.order import ResumableLoader
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.jobs.fit import Fit, fastest_precision
from edgetrain.models.huggingface import save_llama
from edgetrain.models.llama import Llama
from edgetrain.ops.cross_entropy import linear_cross_entropy
from edgetrain.report.figures import bar_chart

WARMUP = 1  # rounds that are not counted
OURS, PEER, OUR_MODEL = "edgetrain", "transformers", "transformers, our model"
Step = Callable[[], None]


def train_language(
    folder: RunFolder,
    *,
    recipe: str = "layerskip_llama",
    overrides: list[str] = (),
    steps: int = 20,
    repeats: int = 7,
) -> dict[str, Any]:
    """Tokens a second in training, against transformers' Trainer, and what the recipe's method costs.

    recipe and overrides: say model, data and settings; steps: optimiser steps a repeat.
    """
    config = training_config(recipe, list(overrides), steps * (repeats + WARMUP))
    tokens = config.data["batch_size"] * config.data["context"]
    losses: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        weights = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_llama(initial_model(config), weights)
        start = replace(config, init_from=str(weights))
        works = trainings(start, weights, folder, losses)
        paused = {name: stack.enter_context(Paused(work, steps, tokens)) for name, work in works.items()}
        contenders = [Contender(name, run) for name, run in paused.items()]
        timings = measure(contenders, repeats, WARMUP, "cuda" if torch.cuda.is_available() else "cpu")

    by_name = {timing.name: timing for timing in timings}
    rows = timing_rows(timings, by_name[PEER], "tokens")
    for row in rows:
        row["loss in the last repeat"] = fmean(loss.item() for loss in losses[row["contender"]][-steps:])
    parameters = sum(parameter.numel() for parameter in initial_model(config).parameters())
    title = f"Training a Llama of {parameters:,} parameters, {tokens:,} tokens a step, {precision_of(config)}"
    show_rows(folder, "train_language", rows, title, f"Median and quartiles of {repeats} repeats of {steps} steps.")
    rates = {timing.name: timing.median for timing in timings}
    figure = bar_chart({"tokens/s": rates}, "tokens trained on a second")
    folder.add_figure("train_language", figure, "Tokens trained on a second", "Median of the repeats.")
    compared = {"speedup_over_transformers": ratio(by_name[OURS], by_name[PEER])}
    if config.method:
        compared["rate_with_method"] = ratio(by_name[with_method(config)], by_name[OURS])
    metrics = {f"tokens_per_s/{name}": rate for name, rate in rates.items()}
    for name, found in compared.items():
        print(f"{name:26} {found}")
        metrics[name] = found.median if found.quotable else str(found)
    return metrics


def training_config(recipe: str, overrides: list[str], steps: int) -> Config:
    """The recipe's configuration for so many batches of nothing but training, each an optimiser step.

    Raises UserError when it trains no Llama of ours, or in a precision that the two sides do not share.
    """
    fixed = ["limit_val_batches=0", "enable_progress_bar=false", "accumulate_grad_batches=1", f"max_steps={steps}"]
    config = compose([f"recipe={recipe}", *overrides, *(f"trainer.{text}" for text in fixed)])
    config = replace(config, measure={}, export={})
    if not config.model or config.model["_target_"] != "edgetrain.models.llama.Llama":
        raise UserError(f"recipe={recipe} trains no Llama of ours; bench train_language needs model=llama")
    if precision_of(config) not in ("bf16-mixed", "32-true"):
        raise UserError(f"trainer.precision={precision_of(config)}: bench train_language knows bf16-mixed and 32-true")
    return config


def precision_of(config: Config) -> str:
    precision = str(config.trainer["precision"])
    return fastest_precision() if precision == "auto" else precision


def with_method(config: Config) -> str:
    """The name of our training with the recipe's methods."""
    return f"{OURS}, {' and '.join(config.method)}"


def initial_model(config: Config) -> Llama:
    torch.manual_seed(config.seed)
    return build(config.model)


def trainings(
    config: Config, weights: Path, folder: RunFolder, losses: dict[str, list[Tensor]]
) -> dict[str, Callable[[Step], None]]:
    """What trains, by name; each calls its argument after every optimiser step and appends that step's loss."""

    def ours(name: str, config: Config) -> Callable[[Step], None]:
        place = RunFolder(folder.path / "trainings" / name.replace(", ", "_"))
        losses[name] = []
        return lambda step: ReportingFit(step, losses[name]).run(config, place)

    def theirs(name: str, wrap: Callable[[], nn.Module]) -> Callable[[Step], None]:
        losses[name] = []
        return lambda step: train_with_transformers(wrap(), config, folder.path / "trainings", step, losses[name])

    found = {OURS: ours(OURS, replace(config, method={}))}
    if config.method:
        found[with_method(config)] = ours(with_method(config), config)
    found[PEER] = theirs(PEER, lambda: their_model(weights))
    found[OUR_MODEL] = theirs(OUR_MODEL, lambda: LossInside(config, weights))
    return found


# Ours


class ReportingFit(Fit):
    """The job as every recipe runs it, with a callback that tells when an optimiser step is done."""

    def __init__(self, step: Step, losses: list[Tensor]) -> None:
        super().__init__()
        self.reporter = Reporter(step, losses)

    def trainer(self, config: Config, folder: RunFolder, callbacks: list[Any]) -> Any:
        return super().trainer(config, folder, [*callbacks, self.reporter])


class Reporter(Callback):
    def __init__(self, step: Step, losses: list[Tensor]) -> None:
        self.step, self.losses = step, losses

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"])
        self.step()


# Theirs


def their_model(weights: Path) -> nn.Module:
    model = load_peer(weights)
    model.config.use_cache = False
    return model


class LossInside(nn.Module):
    """Our model with the signature that transformers' Trainer calls: the loss comes out."""

    def __init__(self, config: Config, weights: Path) -> None:
        super().__init__()
        from edgetrain.models.huggingface import load_llama

        self.llama = load_llama(weights)

    def forward(self, input_ids: Tensor, shift_labels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        states = self.llama.model(input_ids)
        return {"loss": linear_cross_entropy(states.flatten(0, 1), self.llama.lm_head.weight, shift_labels.flatten())}


class InOrder(Dataset):
    """A run's training windows in its own order, under the names that transformers' models take.

    The targets are shifted already, as ours are, so that no position is computed in vain.
    """

    def __init__(self, loader: ResumableLoader) -> None:
        self.windows, self.order = loader.dataset, list(loader.sampler)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window = self.windows[self.order[index]]
        return {"input_ids": window[:-1], "labels": window[1:], "shift_labels": window[1:]}


def train_with_transformers(model: nn.Module, config: Config, place: Path, step: Step, losses: list[Tensor]) -> None:
    """Train with transformers' Trainer on the run's data, optimiser settings and learning rates."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    data = build(config.data)
    data.setup("fit")
    task = build(config.task, model=model, methods=[], optimizer=None)

    class InTurns(Trainer):
        def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
            return SequentialSampler(train_dataset or self.train_dataset)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, task.learning_rate_scale)
            return self.lr_scheduler

        def training_step(self, *arguments: Any, **settings: Any) -> Tensor:
            loss = super().training_step(*arguments, **settings)
            losses.append(loss)
            return loss

    class Reporting(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            step()

    optimizer, trainer = config.optimizer, config.trainer
    arguments = TrainingArguments(
        output_dir=str(place),
        per_device_train_batch_size=config.data["batch_size"],
        max_steps=trainer["max_steps"],
        learning_rate=optimizer["lr"],
        adam_beta1=optimizer["betas"][0],
        adam_beta2=optimizer["betas"][1],
        adam_epsilon=optimizer["eps"],
        weight_decay=optimizer["weight_decay"],
        max_grad_norm=trainer["gradient_clip_val"],
        optim="adamw_torch_fused",
        bf16=precision_of(config) == "bf16-mixed",
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=config.data["workers"],
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    InTurns(
        model=model,
        args=arguments,
        train_dataset=InOrder(data.train_dataloader()),
        data_collator=default_data_collator,
        callbacks=[Reporting()],
    ).train()
