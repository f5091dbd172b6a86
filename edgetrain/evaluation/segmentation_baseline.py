"""The trivial network that a segmentation model has to beat: as many parameters, the same training, a plain loop."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from rich.console import Console
from rich.progress import track
from torch import nn

from edgetrain.build import build, factory
from edgetrain.config import Config
from edgetrain.models.three_layer_cnn import ThreeLayerCNN

BY_NAME = ("no_decay", "lr_multipliers")  # settings of a task that name parameters


def trained_baseline(trained: Any, parameters: int, steps: int) -> ThreeLayerCNN:
    """A ThreeLayerCNN of about so many parameters after so many optimiser steps, in eval mode on the CPU.

    It has the run's seed, batches in their order, loss, optimiser, learning-rate schedule (over its own steps) and
    clipping; no methods, and float32. Where the run's optimiser step took several batches, on devices or in turn, this
    one takes as many in turn. The global random generators are left as they were.
    """
    config: Config = trained.config
    with isolate_rng():
        torch.manual_seed(config.seed)
        model = ThreeLayerCNN(
            len(trained.data.labels),
            parameters=parameters,
            input_shape=tuple(trained.task.example_inputs()[0].shape[1:]),
        )
        device = "cuda" if config.trainer.get("accelerator") != "cpu" and torch.cuda.is_available() else "cpu"
        fit(model.to(device), config, trained.data, steps)
    return model.cpu().eval()


def fit(model: nn.Module, config: Config, data: Any, steps: int) -> None:
    """Train in place."""
    task = build(task_node(model, config, steps), model=model, methods=[], optimizer=factory(config.optimizer))
    prepared = task.configure_optimizers()
    optimizer, scheduler = prepared["optimizer"], prepared["lr_scheduler"]["scheduler"]
    device = next(model.parameters()).device
    task.to(device).train()
    batches = endless(data.train_dataloader())
    together = batches_a_step(config)
    clip = config.trainer.get("gradient_clip_val")
    clip_by_norm = config.trainer.get("gradient_clip_algorithm") in (None, "norm")
    shown = config.trainer.get("enable_progress_bar", True)
    console = Console(stderr=True)
    for step in track(range(steps), f"baseline, {steps} steps", console=console, disable=not shown):
        for _ in range(together):
            batch = tuple(tensor.to(device) for tensor in next(batches))
            (task.training_step(batch, step) / together).backward()
        if clip:
            clipping = nn.utils.clip_grad_norm_ if clip_by_norm else nn.utils.clip_grad_value_
            clipping(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        task.after_step(step + 1)


def task_node(model: nn.Module, config: Config, steps: int) -> dict[str, Any]:
    """The run's task over so many steps, without names of parameters that this model does not have."""
    names = [name for name, _ in model.named_parameters()]
    node = dict(config.task) | {"total_steps": steps}
    for key in BY_NAME:
        named = node.get(key)
        if named:
            kept = [fragment for fragment in named if any(fragment in name for name in names)]
            node[key] = {fragment: named[fragment] for fragment in kept} if isinstance(named, dict) else kept
    return node


def batches_a_step(config: Config) -> int:
    """Of an optimiser step of the run: those that accumulate, on all its devices."""
    settings = [config.trainer.get(key, 1) for key in ("accumulate_grad_batches", "devices", "num_nodes")]
    together = 1
    for count in settings:
        together *= count if isinstance(count, int) and count > 0 else 1
    return together


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch; a ResumableLoader goes on with the next one by itself."""
    while True:
        yield from loader
