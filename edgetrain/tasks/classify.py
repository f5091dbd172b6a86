"""Classification: one of a fixed list of labels for every input."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.ops.mixing import mixed_inputs, mixed_labels
from edgetrain.tasks.base import Context, Predict, Task
from edgetrain.tasks.predictions import Predictions

Batch = tuple[Tensor, Tensor]


class Classify(Task):
    """Cross-entropy in nats over batches (inputs [batch, ...], labels int64 [batch]); the model gives [batch, classes].

    label_smoothing: share of a target that is spread over all classes. mixup, cutmix: alphas of the two ways to mix a
    training batch (`ops.mixing`), 0 for none; switch_probability: how often it is cutmix where there are both. Then
    train/loss is that against shares of labels; what is judged is never mixed or smoothed. seed: of what mixing draws,
    with the step, the batch within it and the process. settings: Task's others. Raises UserError for numbers out of
    range, and for cutmix of inputs that are no images.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: list[Any],
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        switch_probability: float = 0.5,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(model, methods, optimizer, **settings)
        for key, value in (("label_smoothing", label_smoothing), ("switch_probability", switch_probability)):
            if not 0 <= value <= 1:
                raise UserError(f"task.{key}={value} is outside 0 to 1")
        for key, value in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= value < math.inf:
                raise UserError(f"task.{key}={value} must be at least 0, which is none")
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix
        self.switch_probability, self.seed = switch_probability, seed

    def inputs(self, batch: Batch) -> tuple[Tensor]:
        return (batch[0],)

    def units(self, batch: Batch) -> int:
        return len(batch[0])

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        inputs, targets = batch
        mixing = self.mixup > 0 or self.cutmix > 0
        if mixing:
            inputs, share = self.mixed(inputs)
        logits = self.model(inputs)
        if mixing:
            targets = mixed_labels(targets, share, logits.shape[-1])
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        objective = self.method_losses(loss, Context(self.model, (inputs, targets), targets, self.step, logits))
        if self._trainer is not None:
            self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
            if objective is not loss:
                self.log("train/objective", objective.detach(), sync_dist=True)
        return objective

    def mixed(self, inputs: Tensor) -> tuple[Tensor, float]:
        """`mixed_inputs` of the batch that the step, the batch within it and the process are at."""
        if self.cutmix and inputs.ndim != 4:
            raise UserError(
                f"task.cutmix={self.cutmix} cuts images [channels, height, width], and these inputs are "
                f"{list(inputs.shape[1:])}; set task.cutmix=0"
            )
        seeds = (self.seed % 2**64, self.step, self.batch_of_step, self.global_rank)
        return mixed_inputs(inputs, self.mixup, self.cutmix, self.switch_probability, seeds)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        judged = self.judged(self.model, batch)
        size = len(judged)
        self.log("validation/loss", judged.loss.mean(), prog_bar=True, batch_size=size, sync_dist=True)
        self.log("validation/accuracy", judged.right.float().mean(), prog_bar=True, batch_size=size, sync_dist=True)

    def judged(self, predict: Predict, batch: Batch) -> Predictions:
        inputs, labels = batch
        with torch.inference_mode():
            return Predictions.of_logits(predict(inputs), labels)
