"""How well every layer would do as the last one: loss, accuracy and agreement at each exit, in one pass.

LayerSkip (Elhoushi et al. 2024, arXiv 2404.16710), section 4.2 and Table 1. An exit is the layer's output through the
model's own final norm and head. Works for our Llama and for modules of Hugging Face that are arranged like it.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.ops.hidden_states import captured_hidden_states
from edgetrain.ops.targets import flat_rows, inputs_and_targets, supervised_rows
from edgetrain.report.figures import line_chart

ROWS = 1024  # tokens whose logits are in memory at once


class Exits:
    """The measure `exits`, teacher-forced on held-out text. batches: how many test batches are read; None reads all."""

    def __init__(self, batches: int | None = None) -> None:
        if batches is not None and batches < 1:
            raise UserError(f"measure.exits.batches={batches} must be at least 1, or null for all")
        self.batches = batches

    def check(self, model: nn.Module) -> None:
        """Raises UserError when the model has no layers that tokens could leave after."""
        body = getattr(model, "model", None)
        if not (hasattr(model, "lm_head") and hasattr(body, "layers") and hasattr(body, "norm")):
            raise UserError(
                f"measure.exits needs a language model with layers, a norm and a head, as model=llama has; "
                f"{type(model).__name__} has none to leave after"
            )

    def measure(self, trained: Any, folder: RunFolder) -> dict[str, float]:
        """Table `exits` and two figures. exits/loss_<k>: nats a token when leaving after k layers."""
        self.check(trained.model)
        rows = exit_rows(trained.model.eval(), islice(trained.data.test_dataloader(), self.batches))
        caption = "Held-out text. agreement: share of tokens where this exit predicts what the last layer predicts."
        folder.add_table("exits", rows, "Exits", caption)
        losses = [(row["layer"], row["loss"]) for row in rows]
        agreements = [(row["layer"], row["agreement"]) for row in rows]
        folder.add_figure(
            "exits_loss",
            line_chart({"loss": losses}, "exit after layer", "loss (nats per token)", markers=True),
            "Loss at every exit",
            "Held-out loss when the model's head reads the output of each layer.",
        )
        folder.add_figure(
            "exits_agreement",
            line_chart({"agreement": agreements}, "exit after layer", "agreement (share of tokens)", markers=True),
            "Agreement of every exit with the last layer",
            "Share of held-out tokens where an exit's most probable token is the last layer's.",
        )
        middle = rows[max(1, len(rows) // 2) - 1]
        return {
            "exits/loss_last": rows[-1]["loss"],
            "exits/loss_middle": middle["loss"],
            "exits/agreement_middle": middle["agreement"],
            **{f"exits/loss_{row['layer']}": row["loss"] for row in rows},
        }


def exit_rows(model: nn.Module, batches: Iterable[Tensor]) -> list[Row]:
    """layer (1 to L), loss (nats a token), perplexity, accuracy and agreement over a task's batches (`ops.targets`).

    Raises UserError when there is no batch.
    """
    device = next(model.parameters()).device
    tokens, losses, correct, agreeing = 0, 0.0, 0, 0  # the last three become [layers]
    for batch in batches:
        batch = batch.to(device)
        (inputs, targets), rows = inputs_and_targets(batch), supervised_rows(batch)
        targets = flat_rows(targets, rows)
        batch_losses, predictions = judge_exits(model, inputs, targets, rows)
        tokens += len(targets)
        losses = losses + batch_losses
        correct = correct + (predictions == targets).sum(1)
        agreeing = agreeing + (predictions == predictions[-1]).sum(1)
    if not tokens:
        raise UserError("measure.exits found no test batch; give more text or a smaller data.context")
    return [
        {
            "layer": layer,
            "loss": loss / tokens,
            "perplexity": math.exp(min(loss / tokens, 700.0)),  # beyond lies infinity
            "accuracy": right / tokens,
            "agreement": same / tokens,
        }
        for layer, loss, right, same in zip(
            range(1, len(losses) + 1), losses.tolist(), correct.tolist(), agreeing.tolist(), strict=True
        )
    ]


@torch.inference_mode()
def judge_exits(
    model: nn.Module,
    tokens: Tensor,
    targets: Tensor,
    asked: Tensor | None = None,
    layers: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Summed loss of every exit in nats, float64 [layers], and its predictions, int64 [layers, targets].

    tokens: int64 [batch, n]; targets: int64 [batch * n], or only those of the rows `asked`; layers: only these exits,
    1 to L. One forward; logits are formed for ROWS tokens at a time.
    """
    with captured_hidden_states(model.model.layers) as states:
        model.model(tokens)
    if layers is not None:
        states = [states[layer - 1] for layer in layers]
    losses = torch.zeros(len(states), dtype=torch.float64)
    predictions = targets.new_empty(len(states), len(targets))
    for index, state in enumerate(states):
        rows = flat_rows(state, asked)
        for start in range(0, len(targets), ROWS):
            part = slice(start, start + ROWS)
            logits = model.lm_head(model.model.norm(rows[part])).float()
            losses[index] += F.cross_entropy(logits, targets[part], reduction="sum").item()
            predictions[index, part] = logits.argmax(-1)
    return losses, predictions
