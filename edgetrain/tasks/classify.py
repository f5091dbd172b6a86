"""Classification: one of a fixed list of labels for every input."""

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetrain.errors import UserError
from edgetrain.tasks.base import Context, Predict, Task
from edgetrain.tasks.predictions import Predictions

Batch = tuple[Tensor, Tensor]


class Classify(Task):
    """Cross-entropy in nats over batches (inputs [batch, ...], labels int64 [batch]); the model gives [batch, classes].

    The arguments are Task's.
    """

    def inputs(self, batch: Batch) -> tuple[Tensor]:
        return (batch[0],)

    def units(self, batch: Batch) -> int:
        return len(batch[0])

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        inputs, labels = batch
        logits = self.model(inputs)
        loss = F.cross_entropy(logits, labels)
        objective = self.method_losses(loss, Context(self.model, batch, labels, self.step, logits))
        if self._trainer is not None:
            self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
            if objective is not loss:
                self.log("train/objective", objective.detach(), sync_dist=True)
        return objective

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        judged = self.judged(self.model, batch)
        size = len(judged)
        self.log("validation/loss", judged.loss.mean(), prog_bar=True, batch_size=size, sync_dist=True)
        self.log("validation/accuracy", judged.right.float().mean(), prog_bar=True, batch_size=size, sync_dist=True)

    def judged(self, predict: Predict, batch: Batch) -> Predictions:
        inputs, labels = batch
        with torch.inference_mode():
            return Predictions.of_logits(predict(inputs), labels)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One input of zeros, of the shape that the model says it takes. Raises UserError when it says none."""
        shape = getattr(self.model, "input_shape", None)
        if shape is None:
            raise UserError(
                f"{type(self.model).__name__} does not say its input_shape, which task=classify traces and exports it "
                "with; give the model's class that attribute, without the batch, as in (49, 10)"
            )
        return (torch.zeros(1, *shape),)
