"""Semantic segmentation: a class for every pixel."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from edgetrain.errors import UserError
from edgetrain.ops.hard_examples import HardExamples
from edgetrain.ops.resized_cross_entropy import resized_cross_entropy
from edgetrain.tasks.base import Context, Predict, Task
from edgetrain.tasks.mask_inference import MaskInference, check_maps
from edgetrain.tasks.mask_predictions import MaskPredictions, check_labels
from edgetrain.tasks.predictions import logits_of

Batch = tuple[Tensor, Tensor]


class Segment(Task):
    """Cross-entropy in nats a counted pixel over batches (images [n, channels, h, w], labels int64 [n, H, W]).

    The model gives logits [n, classes, height, width] of any height and width, which are resized to the labels'. One
    with `forward_all` is trained on what that gives: the logits of its head, not resized yet, and those of an auxiliary
    head where there is one, whose loss is multiplied by auxiliary_weight. Methods see the first of these.

    ignore_index: the label of pixels that do not count. class_weights: a factor on the loss of each class, while
    training; None: all alike. hard_examples: {threshold, min_kept}, train on the hardest pixels alone (HardExamples);
    None: on all. mode, window, stride, scales, flip: how the masks of evaluation are predicted. whole: the image at
    once; slide: by windows [height, width] every `stride` [rows, columns], logits averaged where they overlap; scales,
    flip: probabilities averaged over the image at these scales, and over it and its mirror image. The other arguments
    are Task's.

    What is judged is always the plain cross-entropy, without weights and of all counted pixels; validation/mean_iou is
    that of the whole validation split. Raises UserError for settings out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: list[Any],
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        total_steps: int,
        ignore_index: int = 255,
        class_weights: list[float] | None = None,
        hard_examples: dict[str, float] | None = None,
        mode: Literal["whole", "slide"] = "whole",
        window: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(model, methods, optimizer, total_steps, **settings)
        self.ignore_index = ignore_index
        self.inference = MaskInference(mode, window, stride, scales, flip)
        self.hard_examples = None if hard_examples is None else mining(hard_examples)
        check_weights(class_weights, getattr(model, "num_classes", None))
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.validated: ValidationSums | None = None

    def inputs(self, batch: Batch) -> tuple[Tensor]:
        return (batch[0],)

    def units(self, batch: Batch) -> int:
        return len(batch[0])

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        images, labels = batch
        logits, *auxiliary = self.training_logits(images)
        loss = self.pixel_loss(logits, images, labels)
        for each in auxiliary:
            loss = loss + self.model.auxiliary_weight * self.pixel_loss(each, images, labels)
        objective = self.method_losses(loss, Context(self.model, batch, labels, self.step, logits))
        if self._trainer is not None:
            self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
            if objective is not loss:
                self.log("train/objective", objective.detach(), sync_dist=True)
        return objective

    def training_logits(self, images: Tensor) -> list[Tensor]:
        """Of the head, and of the auxiliary head where there is one."""
        try:
            if hasattr(self.model, "forward_all"):
                return self.model.forward_all(images)
            return [logits_of(self.model(images))]
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"a batch of images {list(images.shape)} leaves a batch norm of the model a single value a channel, of "
                "which there is no variance; make data.batch_size or data.size larger"
            ) from error

    def pixel_loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Of one head, for training."""
        check_maps(logits, images)
        if self.class_weights is not None:
            check_length(len(self.class_weights), logits.shape[1])
        if labels.device.type == "cpu":  # elsewhere it would wait for the device at every step; data checks its files
            check_labels(labels, logits.shape[1], self.ignore_index)
        return resized_cross_entropy(logits, labels, self.ignore_index, self.class_weights, self.hard_examples)

    def on_validation_epoch_start(self) -> None:
        self.validated = None

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        judged = self.judged(self.model, batch)
        if self.validated is None:
            self.validated = ValidationSums(judged.confusion.shape[1]).to(batch[0].device)
        self.validated.update(judged)

    def on_validation_epoch_end(self) -> None:
        if self.validated is None:  # no batch
            return
        confusion, loss = self.validated.compute()
        summed = MaskPredictions(confusion[None].cpu(), loss[None].cpu(), torch.zeros(1, dtype=torch.int64))
        for name, value in self.score(summed).items():
            self.log(f"validation/{name}", value, prog_bar=name != "accuracy", sync_dist=True)

    def judged(self, predict: Predict, batch: Batch) -> MaskPredictions:
        images, labels = batch
        with torch.inference_mode():
            logits = self.inference.logits(predict, images, labels.shape[1:])
            return MaskPredictions.of_logits(logits, labels, self.ignore_index)

    def same_answers(
        self,
        found: MaskPredictions,
        expected: MaskPredictions,
        outputs: list[Tensor],
        expected_outputs: list[Tensor],
    ) -> Tensor:
        """Pixels of the outputs: of a whole mask rounding alone changes some."""
        pairs = zip(outputs, expected_outputs, strict=True)
        return torch.cat([(one.argmax(1) == other.argmax(1)).flatten() for one, other in pairs])

    def score(self, predictions: MaskPredictions) -> dict[str, float]:
        """loss in nats a counted pixel, accuracy of the pixels, mean_iou. Raises UserError when no pixel counts."""
        if not predictions.confusion.sum():
            raise UserError(
                f"every label is data.ignore_index={self.ignore_index}: there is no pixel to judge the model on; check "
                "the data's label mapping"
            )
        return {"loss": predictions.mean_loss, "accuracy": predictions.accuracy, "mean_iou": predictions.mean_iou}

    def called_with(self, batch: Batch) -> set[tuple[int, ...]]:
        """Shapes, without the batch, of what judging a batch calls the model with."""
        shapes = set()

        def predict(images: Tensor) -> Tensor:
            shapes.add(tuple(images.shape[1:]))
            return images.new_zeros(len(images), 1, *images.shape[2:])

        self.inference.logits(predict, batch[0], batch[0].shape[2:])
        return shapes


class ValidationSums(Metric):
    """The validation split as one image: its confusion matrix and its nats, summed over batches and processes."""

    full_state_update = False

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("nats", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, judged: MaskPredictions) -> None:
        self.confusion += judged.confusion.sum(0).to(self.confusion.device)
        self.nats += (judged.loss * judged.pixels).sum().to(self.nats.device)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Confusion int64 [classes, classes], and nats a counted pixel."""
        return self.confusion, self.nats / self.confusion.sum().clamp(min=1)


def mining(settings: dict[str, float]) -> HardExamples:
    """Raises UserError for other keys than its fields."""
    unknown = set(settings) - {"threshold", "min_kept"}
    if unknown:
        raise UserError(f"task.hard_examples.{min(unknown)} is not known; there are threshold and min_kept")
    return HardExamples(**settings)


def check_weights(weights: list[float] | None, classes: int | None) -> None:
    """Raises UserError for weights that are not one a class, or no factors."""
    if weights is None:
        return
    if classes is not None:
        check_length(len(weights), classes)
    wrong = [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]
    if wrong or not any(weights):
        shown = wrong[0] if wrong else weights
        raise UserError(f"task.class_weights holds {shown}; each must be a number of at least 0, and not all be 0")


def check_length(weights: int, classes: int) -> None:
    if weights != classes:
        raise UserError(f"task.class_weights has {weights} numbers, but the model has {classes} classes; give one each")
