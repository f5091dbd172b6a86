"""Perplexity of held-out text at a stated context, by exit layer if asked.

The convention of MobileLLM's published numbers (eval.py of facebookresearch/MobileLLM, taken from AWQ, Lin et al. 2024,
arXiv 2306.00978): the text is one stream of tokens, cut into windows of `context` tokens that do not overlap. In a
window every token but the first is predicted from those before it, so context - 1 of them count; what remains at the
end of the text is left out. Other conventions (overlapping windows, a stride, one document at a time) give other
numbers.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.data.source import text_splits
from edgetrain.decoding.exits import judge_exits
from edgetrain.errors import UserError, listing
from edgetrain.evaluation.model import check_exit, context_of, layers_of
from edgetrain.folder import Row, RunFolder
from edgetrain.report.figures import line_chart
from edgetrain.tasks.predictions import logits_of

TOKENS = 4096  # read in one forward, but at least one window


class Perplexity:
    """The measure `perplexity`.

    context: tokens a window, the model's own context when None; exit_layers: layers (1 to L) judged besides the last,
    or "all" of them; path, column, split: another text set than the run's test split, read with the run's tokenizer;
    join: what its documents are joined with.
    """

    def __init__(
        self,
        context: int | None = None,
        exit_layers: tuple[int, ...] | Literal["all"] = (),
        path: str | None = None,
        column: str = "text",
        split: str = "test",
        join: str = "\n\n",
    ) -> None:
        if context is not None and context < 2:
            raise UserError(f"measure.perplexity.context={context} must be at least 2, or null for the model's")
        self.context, self.exit_layers = context, exit_layers
        self.path, self.column, self.split, self.join = path, column, split, join

    def check(self, model: nn.Module) -> None:
        """Raises UserError when the settings do not fit the model; does no work."""
        longest = context_of(model)
        if self.context is not None and longest is not None and self.context > longest:
            raise UserError(
                f"measure.perplexity.context={self.context} is longer than the model's context of {longest}; "
                f"set it to {longest} or less, or to null"
            )
        if self.context is None and longest is None:
            raise UserError("measure.perplexity.context=null: the model names no context of its own; give a number")
        for layer in () if self.exit_layers == "all" else self.exit_layers:
            check_exit(model, layer, "measure.perplexity.exit_layers")
        if self.exit_layers == "all":
            check_exit(model, 1, "measure.perplexity.exit_layers")

    def measure(self, trained: Any, folder: RunFolder) -> dict[str, float]:
        """Table `perplexity`, with exits a figure too. perplexity/token, perplexity/loss, perplexity/exit_<k>, ..."""
        model = trained.model.eval()
        self.check(model)
        context = self.context or context_of(model)
        stream, text_bytes, name = self.text(trained.data)
        if len(stream) < context:
            raise UserError(
                f"measure.perplexity: {name} has {len(stream)} tokens, fewer than one window of context={context}; "
                "give more text or a smaller context"
            )
        windows = stream[: len(stream) // context * context].view(-1, context)
        last = layers_of(model)
        chosen = range(1, last + 1) if self.exit_layers == "all" else sorted({*self.exit_layers, last})
        losses = window_losses(model, windows, list(chosen))
        rows = perplexity_rows(losses, text_bytes / len(stream))
        counted = windows.shape[0] * (context - 1)
        caption = (
            f"{name}: {len(windows)} windows of {context} tokens that do not overlap, {counted} tokens predicted. "
            "perplexity is a token's; bits_per_byte does not depend on the tokenizer."
        )
        folder.add_table("perplexity", rows, "Perplexity", caption)
        if len(rows) > 1:
            points = [(row["layer"], row["perplexity"]) for row in rows]
            chart = line_chart({"perplexity": points}, "exit after layer", "perplexity (per token)", markers=True)
            folder.add_figure("perplexity", chart, "Perplexity at every exit", caption)
        metrics = {
            "token": rows[-1]["perplexity"],
            "loss": rows[-1]["loss"],
            "bits_per_byte": rows[-1]["bits_per_byte"],
        }
        metrics |= {"context": context, "tokens": counted}
        metrics |= {f"exit_{row['layer']}": row["perplexity"] for row in rows[:-1]}
        return {f"perplexity/{name}": value for name, value in metrics.items()}

    def text(self, data: Any) -> tuple[Tensor, int, str]:
        """Tokens int64 [n], how many bytes of UTF-8 they stand for, and what the text is called."""
        if self.path is None:
            if "test" not in getattr(data, "streams", {}):
                raise UserError(
                    f"measure.perplexity reads running text, and {type(data).__name__} has none; name a text set with "
                    "measure.perplexity.path"
                )
            stream = torch.from_numpy(data.streams["test"][:].astype("int64"))
            return stream, data.facts()["test"]["bytes"], "the test split"
        try:
            splits = text_splits(self.path, self.column)
        except UserError as error:
            raise UserError(str(error).replace("data.", "measure.perplexity.")) from error
        if self.split not in splits:
            raise UserError(
                f"measure.perplexity.split={self.split} is not in {self.path}, whose splits are {listing(splits)}"
            )
        text = self.join.join(splits[self.split]["text"])
        return torch.tensor(data.tokenizer.encode(text)), len(text.encode()), f"{self.path} ({self.split})"


@torch.inference_mode()
def window_losses(model: nn.Module, windows: Tensor, layers: list[int]) -> dict[int, float]:
    """Mean loss in nats of the predicted tokens of int64 windows [n, context] at each of those exits.

    A model that has no exits is read whole, and `layers` names the last.
    """
    device = next(model.parameters()).device
    totals = torch.zeros(len(layers), dtype=torch.float64)
    for part in windows.split(max(1, TOKENS // windows.shape[1])):
        part = part.to(device)
        inputs, targets = part[:, :-1], part[:, 1:].flatten()
        if layers == [0]:
            totals += F.cross_entropy(logits_of(model(inputs)).flatten(0, 1).float(), targets, reduction="sum").item()
        else:
            totals += judge_exits(model, inputs, targets, layers=layers)[0]
    return dict(zip(layers, (totals / windows[:, 1:].numel()).tolist(), strict=True))


def perplexity_rows(losses: dict[int, float], bytes_per_token: float) -> list[Row]:
    """layer, loss (nats a token), perplexity (a token) and bits_per_byte, a row an exit."""
    return [
        {
            "layer": layer,
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),  # beyond lies infinity
            "bits_per_byte": loss / math.log(2) / bytes_per_token,
        }
        for layer, loss in losses.items()
    ]
