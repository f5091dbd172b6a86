"""How often a model's answer is the expected one, word for word, leaving after each of some layers.

LayerSkip (Elhoushi et al. 2024, arXiv 2404.16710), section 5 and Table 6: exact match of parses by exit layer, greedy,
80 new tokens, 1,000 samples, drafts of 8 tokens. Notable choices:

- answers are compared as text, each run of white space as one space and none at the ends;
- an answer that does not end within its tokens is wrong, and so is one to a pair that does not fit the context;
- the self-speculative answers of each exit are compared, token for token, with the last exit's of the same weights.
  (In the paper's table the two are different models.)
"""

from typing import Any

import torch
from torch import Tensor

from edgetrain.decoding.acceptance import in_float32
from edgetrain.decoding.self_speculative import SelfSpeculativeStats, check_speculation
from edgetrain.decoding.static import StaticDecoder, StaticSelfSpeculation
from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.models.llama import Llama
from edgetrain.report.figures import line_chart
from edgetrain.spread import wilson_interval

BATCH = 64  # prompts decoded at once
SHOWN = 8  # answers in the report
UNFINISHED = "\0"  # no answer, as no text is


class ExactMatch:
    """The measure `exact_match`, on the test split of data with prompts and completions.

    exit_layers: layers besides the last that answer, 1 to L-1; samples: pairs, evenly spaced over the split, None takes
    all; new_tokens: most tokens of an answer; draft_length: tokens drafted a round of self-speculative decoding.
    """

    def __init__(
        self, exit_layers: list[int], samples: int | None = 1000, new_tokens: int = 80, draft_length: int = 8
    ) -> None:
        for name, value in (("samples", samples), ("new_tokens", new_tokens)):
            if value is not None and value < 1:
                raise UserError(f"measure.exact_match.{name}={value} must be at least 1")
        self.exit_layers, self.samples = sorted(set(exit_layers)), samples
        self.new_tokens, self.draft_length = new_tokens, draft_length

    def check(self, model: Any) -> None:
        """Raises UserError when the settings do not fit the model; does no work."""
        try:
            if not isinstance(model, Llama):
                raise UserError(f"decoding needs model=llama or llama_pretrained, not {type(model).__name__}")
            for exit_layer in self.exit_layers:
                check_speculation(model, exit_layer, self.draft_length)
        except UserError as error:
            raise UserError(f"measure.exact_match: {error}") from None

    def measure(self, trained: Any, folder: RunFolder) -> dict[str, float]:
        """Table and figure `exact_match`, some answers, and every exit's share with its 95% interval.

        Raises UserError for data without prompts and completions.
        """
        self.check(trained.model)
        data, model = trained.data, in_float32(trained.model.eval())
        if not hasattr(data, "pairs"):
            raise UserError(f"measure.exact_match needs data=pairs or the like; {type(data).__name__} has no pairs")
        split = data.pairs("test")
        chosen = spaced([*split.pairs, *split.too_long], self.samples)
        judged = [pair for pair in chosen if len(pair) <= data.context]
        expected = [normal(pair.completion) for pair in judged]
        device = model.lm_head.weight.device
        prompts = [torch.tensor(pair.prompt_ids.tolist(), dtype=torch.int64, device=device) for pair in judged]
        last, _ = decode(StaticDecoder(model, batch=BATCH), prompts, self.new_tokens, data.eos_id)
        rows: list[Row] = []
        for layer in [*self.exit_layers, model.layers]:
            outputs, drafting = last, {}
            if layer < model.layers:
                alone = StaticDecoder(model, exit_layer=layer, batch=BATCH)
                drafts = StaticSelfSpeculation(model, exit_layer=layer, draft_length=self.draft_length, batch=BATCH)
                outputs, _ = decode(alone, prompts, self.new_tokens, data.eos_id)
                speculated, stats = decode(drafts, prompts, self.new_tokens, data.eos_id)
                differing = sum(ours != theirs for ours, theirs in zip(speculated, last, strict=True))
                drafting = {"acceptance": stats.acceptance, "mismatches": differing}
            answers = [answer(data.tokenizer, output, data.eos_id) for output in outputs]
            share = sum(map(str.__eq__, answers, expected)) / len(chosen)
            low, high = wilson_interval(share, len(chosen))
            row = {"layer": layer, "exact_match": share, "low": low, "high": high, "n": len(chosen)}
            rows.append(
                row | {"unfinished": answers.count(UNFINISHED), "too_long": len(chosen) - len(judged)} | drafting
            )
        report(folder, rows)
        shown = [
            {"prompt": pair.prompt, "expected": wanted, "last exit": given}
            for pair, wanted, given in zip(judged[:SHOWN], expected, answers, strict=False)
        ]
        folder.add_table("exact_match_answers", shown, "Answers of the last exit", "The first few that were judged.")
        return metrics_of(rows)


def decode(
    decoder: StaticDecoder, prompts: list[Tensor], new_tokens: int, eos_id: int
) -> tuple[list[list[int]], SelfSpeculativeStats]:
    """Greedy new tokens of every prompt, and what was drafted for them.

    A prompt has room for `new_tokens`, or for fewer where the context ends; never for fewer because of its neighbours.
    """
    outputs: list[list[int]] = [[] for _ in prompts]
    stats = SelfSpeculativeStats()
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), decoder.batch):
        chunk = [prompts[index] for index in order[start : start + decoder.batch]]
        room = [min(new_tokens, decoder.length - len(prompt)) for prompt in chunk]
        decoded = decoder.decode(chunk, room, eos_id=eos_id)
        for index, output in zip(order[start:], decoded, strict=False):
            outputs[index] = output
        stats += getattr(decoder, "stats", SelfSpeculativeStats())
    return outputs, stats


def answer(tokenizer: Any, output: list[int], eos_id: int) -> str:
    """The text of an output, normal; UNFINISHED where it has no end."""
    return normal(tokenizer.decode(output[:-1])) if output[-1] == eos_id else UNFINISHED


def normal(text: str) -> str:
    """Each run of white space as one space, none at the ends."""
    return " ".join(text.split())


def spaced(items: list[Any], count: int | None) -> list[Any]:
    """At most `count` of the items, evenly spaced over them."""
    count = len(items) if count is None else min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def report(folder: RunFolder, rows: list[Row]) -> None:
    caption = (
        "Greedy answers to held-out prompts that are the expected text, with the 95% interval (Wilson) of their share "
        "of n. unfinished, too_long: wrong because they had no end within their tokens, or did not fit the context. "
        "acceptance: of self-speculative drafts of this exit; mismatches: answers that drafting with it changed."
    )
    folder.add_table("exact_match", rows, "Exact match at every exit", caption)
    figure = line_chart(
        {"exact match": [(row["layer"], row["exact_match"]) for row in rows]},
        "exit after layer",
        "exact match (share of answers)",
        markers=True,
        bands={"exact match": [(row["low"], row["high"]) for row in rows]},
    )
    folder.add_figure("exact_match", figure, "Exact match at every exit", "The band is the 95% interval.")


def metrics_of(rows: list[Row]) -> dict[str, float]:
    """exact_match/exit_<layer> and exact_match/last, each with _low and _high; acceptances; mismatches of all exits."""
    metrics: dict[str, float] = {"exact_match/n": rows[-1]["n"], "exact_match/too_long": rows[-1]["too_long"]}
    for row in rows:
        name = "exact_match/last" if row is rows[-1] else f"exact_match/exit_{row['layer']}"
        metrics |= {name: row["exact_match"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
        if "acceptance" in row:
            metrics[f"exact_match/acceptance_{row['layer']}"] = row["acceptance"]
    metrics["exact_match/mismatches"] = sum(row.get("mismatches", 0) for row in rows)
    return metrics
