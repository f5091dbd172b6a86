"""What every task shares: its methods' moments, its optimiser, and the step that they all agree on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.tasks.optimisation import Schedule, parameter_groups
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
    factor; `poly` is mmseg's, with `power` and a warm-up that begins at warmup_ratio (tasks/optimisation.py).
    lr_samples: the samples an optimiser step that the optimiser's learning rate is meant for; a Trainer whose
    steps have more or fewer gets it in proportion (Goyal et al. 2017, arXiv 1706.02677, section 2.1); None: it stands.
    no_decay, lr_multipliers: which parameters go without weight decay, and which have another learning rate, by
    fragments of their names in the model; by default only matrices decay, and all have the same rate.

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
        schedule: Literal["cosine", "linear", "constant", "stairs", "poly"] = "cosine",
        lr_samples: int | None = None,
        power: float = 1.0,
        warmup_ratio: float | None = None,
        no_decay: list[str] | None = None,
        lr_multipliers: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if lr_samples is not None and lr_samples < 1:
            raise UserError(f"task.lr_samples={lr_samples} must be at least 1, or null")
        self.model, self.methods, self.optimizer = model, methods, optimizer
        self.total_steps, self.lr_samples = total_steps, lr_samples
        self.schedule = Schedule(schedule, total_steps, warmup_steps, min_lr_ratio, power, warmup_ratio)
        self.no_decay, self.lr_multipliers = no_decay, lr_multipliers
        self.step = 0  # optimiser steps done; the one clock that curricula read, with a Trainer or without
        self.batch_of_step = 0  # batches done since then, where gradients accumulate over several

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
        parts = [self.judged(predict, batch) for batch in data]
        if not parts:
            raise UserError("there is no batch to judge the model on; make data.batch_size smaller, or give more data")
        return parts[0].joined(parts)

    def evaluate(self, predict: Predict, data: Iterable[Any]) -> dict[str, float]:
        """Metrics of any callable of the model's signature on batches of `data`, however many."""
        return self.score(self.predictions(predict, data))

    def score(self, predictions: Predictions) -> dict[str, float]:
        """Metrics of everything that was judged."""
        return {"loss": predictions.mean_loss, "accuracy": predictions.accuracy}

    def same_answers(
        self, found: Predictions, expected: Predictions, outputs: list[Tensor], expected_outputs: list[Tensor]
    ) -> Tensor:
        """Of a batch, which answers of two models are the same, flat. outputs: the logits of every call of a model."""
        return found.same(expected)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Inputs for tracing and export, batch 1: zeros, of the shape that the model says it takes.

        Raises UserError when it says none.
        """
        shape = getattr(self.model, "input_shape", None)
        if shape is None:
            raise UserError(
                f"{type(self.model).__name__} does not say its input_shape, which task={type(self).__name__.lower()} "
                "traces and exports it with; give the model's class that attribute, without the batch, as in (49, 10)"
            )
        return (torch.zeros(1, *shape),)

    def method_losses(self, loss: Tensor, context: Context) -> Tensor:
        for method in self.methods:
            if hasattr(method, "loss"):
                loss = method.loss(loss, context)
        return loss

    def after_step(self, step: int) -> None:
        """Tell every method that `step` optimiser steps are done."""
        self.step, self.batch_of_step = step, 0
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
        else:
            self.batch_of_step += 1

    def learning_rate_scale(self, step: int) -> float:
        """The factor on the peak learning rate at an optimiser step."""
        return self.schedule(step)

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
        """One group of parameters for each weight decay and learning rate that names and shapes ask for."""
        named = [(name.removeprefix("model."), parameter) for name, parameter in self.named_parameters()]
        groups = parameter_groups(named, self.no_decay, self.lr_multipliers)
        optimizer = self.optimizer([group.settings() for group in groups])
        for group, settings in zip(groups, optimizer.param_groups, strict=True):
            settings["lr"] *= self.peak_scale() * group.multiplier
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
