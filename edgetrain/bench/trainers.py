"""The contenders of the training bench: ours, transformers' Trainer with its model and with ours, and litgpt.

All train the same weights on the same windows in the same order, with the same batch, precision, AdamW, clipping and
learning rates, and the same job.activation_checkpointing and job.compile. Ours is what a recipe gives: Lightning, every
callback, logging. None validates, saves or draws a progress bar meanwhile. transformers' side is set as its
documentation advises for speed: SDPA, fused AdamW, no cache, no reporting.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler

from edgetrain.bench.litgpt import litgpt_model, train_with_litgpt
from edgetrain.bench.peer import load_peer
from edgetrain.build import build
from edgetrain.config import Config
from edgetrain.data.order import ResumableLoader
from edgetrain.folder import RunFolder
from edgetrain.jobs.fit import Fit, fastest_precision
from edgetrain.models.huggingface import load_llama
from edgetrain.ops.blocks import blocks, prepared
from edgetrain.ops.cross_entropy import linear_cross_entropy

OURS, PEER, OUR_MODEL, LITGPT = "edgetrain", "transformers", "transformers, our model", "litgpt"
Step = Callable[[], None]


def precision_of(config: Config) -> str:
    precision = str(config.trainer["precision"])
    return fastest_precision() if precision == "auto" else precision


def with_method(config: Config) -> str:
    """The name of our training with the recipe's methods."""
    return f"{OURS}, {' and '.join(config.method)}"


def trainings(
    config: Config, weights: Path, place: Path, losses: dict[str, list[Tensor]], litgpt: str | None = None
) -> dict[str, Callable[[Step], None]]:
    """What trains, by name; each calls its argument after every optimiser step and appends that step's loss.

    config: with `init_from`; weights: the same as a Hugging Face folder; place: for what training writes; litgpt: a
    checkout of it.
    """

    def ours(name: str, config: Config) -> Callable[[Step], None]:
        losses[name] = []
        folder = RunFolder(place / name.replace(", ", "_"))
        return lambda step: ReportingFit(config, step, losses[name]).run(config, folder)

    def theirs(name: str, wrap: Callable[[], nn.Module]) -> Callable[[Step], None]:
        losses[name] = []
        return lambda step: train_with_transformers(wrap(), config, place, step, losses[name])

    found = {OURS: ours(OURS, replace(config, method={}))}
    if config.method:
        found[with_method(config)] = ours(with_method(config), config)
    found[PEER] = theirs(PEER, lambda: their_model(weights))
    found[OUR_MODEL] = theirs(OUR_MODEL, lambda: LossInside(weights))
    if litgpt is not None:
        losses[LITGPT] = []
        found[LITGPT] = lambda step: train_with_litgpt(
            litgpt_model(litgpt, weights), config, precision_of(config), step, losses[LITGPT]
        )
    return found


# Ours


class ReportingFit(Fit):
    """The job as every recipe runs it, with a callback that tells when an optimiser step is done."""

    def __init__(self, config: Config, step: Step, losses: list[Tensor]) -> None:
        super().__init__(**{key: value for key, value in config.job.items() if key != "_target_"})
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

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.llama = load_llama(weights)

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        for block in blocks(self.llama):
            block.__class__ = prepared(type(block), compiled=False, recomputed=True)

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
        activation_checkpointing=config.job["activation_checkpointing"],
        torch_compile=config.job["compile"],
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
