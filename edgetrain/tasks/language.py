"""Causal language modelling: predict the next token."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.errors import UserError, listing
from edgetrain.ops.cross_entropy import linear_cross_entropy
from edgetrain.ops.hidden_states import captured_hidden_states
from edgetrain.ops.targets import flat_rows, inputs_and_targets, supervised_rows
from edgetrain.tasks.base import Context, Predict, Task
from edgetrain.tasks.predictions import Predictions, logits_of


class Language(Task):
    """Next-token cross-entropy in nats over batches of int64 tokens [batch, context + 1].

    A batch may also be [batch, 2, n], inputs and targets apart (`ops.targets`); then the loss is the mean over the
    targets that are there, batch by batch: with several devices or accumulated batches, the mean of those means.

    The model maps tokens [batch, n] to logits [batch, n, vocab]. One arranged like Llama (`model` below, `lm_head`
    on top) is trained without holding its logits in memory.

    exit_layers: layers (1 to L) whose output, read by the model's own norm and head, is judged at each validation too:
    validation/loss_exit_<layer>. settings: Task's others. Raises UserError when the model has no such layers.
    """

    unit = "tokens"
    judged_batches = 8  # thousands of tokens; enough to notice a broken artefact in seconds

    def __init__(
        self,
        model: nn.Module,
        methods: list[Any],
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        exit_layers: tuple[int, ...] = (),
        **settings: Any,
    ) -> None:
        super().__init__(model, methods, optimizer, **settings)
        backbone = getattr(model, "model", None)
        layers = len(getattr(backbone, "visits", getattr(backbone, "layers", ())))
        beyond = [layer for layer in exit_layers if not 1 <= layer <= layers]
        if beyond:
            has = f"1 to {layers}" if layers else "none that can be left early"
            raise UserError(f"task.exit_layers: there is no layer {listing(map(str, beyond))}; the model's are {has}")
        self.exit_layers = exit_layers

    def inputs(self, batch: Tensor) -> tuple[Tensor]:
        return (inputs_and_targets(batch)[0],)

    def units(self, batch: Tensor) -> int:
        rows = supervised_rows(batch)
        return batch.shape[0] * (batch.shape[1] - 1) if rows is None else len(rows)

    def language_loss(self, tokens: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
        """Mean cross-entropy of the model's last layer; rows: of the flattened targets that count, None for all."""
        if hasattr(self.model, "lm_head") and hasattr(self.model, "model"):
            states = self.model.model(tokens)
            states = getattr(states, "last_hidden_state", states)  # Hugging Face wraps it
            return linear_cross_entropy(flat_rows(states, rows), self.model.lm_head.weight, flat_rows(targets, rows))
        return F.cross_entropy(flat_rows(logits_of(self.model(tokens)), rows).float(), flat_rows(targets, rows))

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        tokens, targets = inputs_and_targets(batch)
        watched = any(getattr(method, "wants_hidden_states", False) for method in self.methods)
        with captured_hidden_states(self.model.model.layers) if watched else nullcontext([]) as states:
            last_layer_loss = self.language_loss(tokens, targets, supervised_rows(batch))
        context = Context(self.model, batch, targets, self.step, hidden_states=states)
        loss = self.method_losses(last_layer_loss, context)
        if self._trainer is not None:
            self.log("train/loss", last_layer_loss.detach(), prog_bar=True, sync_dist=True)
            if loss is not last_layer_loss:
                self.log("train/objective", loss.detach(), sync_dist=True)
        return loss

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        (tokens, targets), rows, size = inputs_and_targets(batch), supervised_rows(batch), self.units(batch)
        with captured_hidden_states(self.model.model.layers) if self.exit_layers else nullcontext([]) as states:
            loss = self.language_loss(tokens, targets, rows)
        self.log("validation/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        for layer in self.exit_layers:
            normal = self.model.model.norm(flat_rows(states[layer - 1], rows))
            exit_loss = linear_cross_entropy(normal, self.model.lm_head.weight, flat_rows(targets, rows))
            self.log(f"validation/loss_exit_{layer}", exit_loss, batch_size=size, sync_dist=True)

    def judged(self, predict: Predict, batch: Tensor) -> Predictions:
        """Every target token of `predict(tokens) -> logits`."""
        tokens, targets = inputs_and_targets(batch)
        rows = supervised_rows(batch)
        with torch.inference_mode():
            return Predictions.of_logits(flat_rows(logits_of(predict(tokens)), rows), flat_rows(targets, rows))

    def score(self, predictions: Predictions) -> dict[str, float]:
        loss = predictions.mean_loss
        return {"loss": loss, "perplexity": math.exp(loss), "accuracy": predictions.accuracy}

    def example_inputs(self) -> tuple[Tensor, ...]:
        context = getattr(self.model, "context", 32)
        return (torch.arange(min(32, context))[None],)
