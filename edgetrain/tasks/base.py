"""What every task shares: its methods' moments, its optimiser, and the step that they all agree on."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torchmetrics import MeanMetric

from edgetrain.errors import UserError
from edgetrain.tasks.predictions import Predictions
from edgetrain.tasks.sharding import shard

Predict = Callable[..., Any]


@dataclass
class Context:
    """What a method's `loss` may look at. hidden_states: x_1..x_L, when some method says `wants_hidden_states`."""

    model: nn.Module
    batch: Any
    targets: Tensor
    step: int
    output: Any = None
    hidden_states: list[Tensor] = field(default_factory=list)


class Task(lightning.LightningModule):
    """A LightningModule around a plain model. Subclasses say `training_step`, `validation_step` and `judged`.

    model: the plain module; methods: objects with the moments of DESIGN's Method, in order; optimizer: called with
    parameter groups. The learning rate warms up linearly over warmup_steps and then falls along `schedule` to
    min_lr_ratio of its peak at total_steps (optimiser steps); `stairs` are three, equally long, each lower by the same
    factor. lr_samples: the samples an optimiser step that the optimiser's learning rate is meant for; a Trainer whose
    steps have more or fewer gets it in proportion (Goyal et al. 2017, arXiv 1706.02677, section 2.1); None: it stands.

    Also works without a Trainer: call `training_step`, step an optimiser from `configure_optimizers`, then
    `after_step(step + 1)`.
    """

    unit = "samples"  # what throughput counts
    judged_batches: int | None = None  # of held-out data, that an exported artefact is judged on; None: all

    def __init__(
        self,
        model: nn.Module,
        methods: list[Any],
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        total_steps: int,
        warmup_steps: int = 0,
        min_lr_ratio: float = 0.1,
        schedule: Literal["cosine", "linear", "constant", "stairs"] = "cosine",
        lr_samples: int | None = None,
    ) -> None:
        super().__init__()
        if lr_samples is not None and lr_samples < 1:
            raise UserError(f"task.lr_samples={lr_samples} must be at least 1, or null")
        self.model, self.methods, self.optimizer = model, methods, optimizer
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.min_lr_ratio, self.schedule, self.lr_samples = min_lr_ratio, schedule, lr_samples
        self.step = 0  # optimiser steps done; the one clock that curricula read, with a Trainer or without

    def units(self, batch: Any) -> int:
        """How many of `unit` a batch trains on."""
        return len(batch)

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """What the model is called with for a batch."""
        raise NotImplementedError

    def judged(self, predict: Predict, batch: Any) -> Predictions:
        """What any callable of the model's signature says of a batch, item by item."""
        raise NotImplementedError

    def predictions(self, predict: Predict, data: Iterable[Any]) -> Predictions:
        """The same of every batch of `data`, in order."""
        return Predictions.joined([self.judged(predict, batch) for batch in data])

    def evaluate(self, predict: Predict, data: Iterable[Any]) -> dict[str, float]:
        """Metrics of any callable of the model's signature on batches of `data`, however many."""
        loss, accuracy = MeanMetric(), MeanMetric()
        for batch in data:
            judged = self.judged(predict, batch)
            loss.update(judged.loss)
            accuracy.update(judged.right.float())
        return self.score(loss.compute().item(), accuracy.compute().item())

    def score(self, loss: float, accuracy: float) -> dict[str, float]:
        """Metrics from the mean loss (nats an item) and the share of items that are right."""
        return {"loss": loss, "accuracy": accuracy}

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Inputs for tracing and export, batch 1."""
        raise NotImplementedError

    def method_losses(self, loss: Tensor, context: Context) -> Tensor:
        for method in self.methods:
            if hasattr(method, "loss"):
                loss = method.loss(loss, context)
        return loss

    def after_step(self, step: int) -> None:
        """Tell every method that `step` optimiser steps are done."""
        self.step = step
        for method in self.methods:
            if hasattr(method, "after_step"):
                method.after_step(self.model, step)

    def configure_model(self) -> None:
        """Shard where trainer.strategy says so."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self, self.device_mesh["data_parallel"], self.trainer.precision)

    def on_train_start(self) -> None:
        self.after_step(self.trainer.global_step)  # not 0 when resuming

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step != self.step:  # unchanged while gradients accumulate
            self.after_step(self.trainer.global_step)
            self.zero_grad()  # Lightning would hold them through the next forward pass, beside its activations

    def learning_rate_scale(self, step: int) -> float:
        """The factor on the peak learning rate at an optimiser step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        if self.schedule == "stairs":
            return self.min_lr_ratio ** (min(2, int(3 * progress)) / 2)
        fall = 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1 - progress
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * fall

    def peak_scale(self) -> float:
        """The factor on the optimiser's learning rate that lr_samples asks for; 1 without a Trainer."""
        if self.lr_samples is None or self._trainer is None:
            return 1.0
        batch = self.trainer.datamodule.batch_size
        return batch * self.trainer.world_size * self.trainer.accumulate_grad_batches / self.lr_samples

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning clips, a fused optimiser's gradients in bf16-mixed too.

        Lightning refuses those in every mixed precision, but only fp16 has scaled gradients, which a fused optimiser
        unscales after clipping. Raises UserError for those.
        """
        precision = self.trainer.precision_plugin
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if not (gradient_clip_val and fused and isinstance(precision, MixedPrecision)):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif precision.scaler is None:
            Precision.clip_gradients(
                precision, optimizer, gradient_clip_val, GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            )
        else:
            raise UserError(
                f"trainer.precision={precision.precision} scales gradients, and those of a fused optimiser cannot be "
                "clipped; set optimizer.fused=false, or trainer.gradient_clip_val=null"
            )

    def configure_optimizers(self) -> dict[str, Any]:
        """Weight decay on matrices only; norms and biases go without."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [parameter for parameter in trained if parameter.ndim >= 2]},
            {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = self.optimizer([group for group in groups if group["params"]])
        for group in optimizer.param_groups:
            group["lr"] *= self.peak_scale()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
