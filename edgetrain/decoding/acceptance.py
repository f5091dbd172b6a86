"""Self-speculative against autoregressive decoding of the same weights: acceptance, speed, and equality of output.

LayerSkip (Elhoushi et al. 2024, arXiv 2404.16710), section 4.3 and Table 3. Notable choices:

- the weights are float32, so that outputs can be compared token for token;
- all ways of decoding are timed prompt by prompt, so that what slows the machine slows all of them;
- a speed-up stands beside the bound that layer passes give (`layer_pass_bound`);
- a row whose output repeats itself is marked collapsed, since repetition is easy to draft.
"""

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Generator, Tensor

from edgetrain.decoding.acceptance_report import report_rows, report_sample
from edgetrain.decoding.autoregressive import check_request, generate
from edgetrain.decoding.degeneration import distinct_n, longest_repeated_span
from edgetrain.decoding.exits import judge_exits
from edgetrain.decoding.self_speculative import (
    SelfSpeculation,
    SelfSpeculativeStats,
    Source,
    check_speculation,
    layer_pass_bound,
)
from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.models.llama import Llama

SAMPLED_SHARE, FEWEST_SAMPLED = 4, 8  # at temperature 1, every fourth of the prompts, but not fewer than eight
RESAMPLES = 2000  # of the bootstrap


@dataclass
class Decodings:
    """What one way of decoding gave on every prompt: output tokens and seconds, prompt included."""

    outputs: list[list[int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, tokens: Iterable[int]) -> None:
        started = time.perf_counter()
        self.outputs.append(list(tokens))
        self.seconds.append(time.perf_counter() - started)

    @property
    def tokens_per_s(self) -> float:
        """The median over prompts."""
        rates = [len(output) / seconds for output, seconds in zip(self.outputs, self.seconds, strict=True)]
        return quantiles(rates, [0.5])[0]


@dataclass(kw_only=True)
class Cell(Decodings):
    """One exit layer and draft length; `sampled` is at temperature 1, everything else greedy."""

    exit_layer: int
    draft_length: int
    greedy: SelfSpeculativeStats = field(default_factory=SelfSpeculativeStats)
    sampled: SelfSpeculativeStats = field(default_factory=SelfSpeculativeStats)
    traces: list[list[tuple[int, Source]]] = field(default_factory=list)

    def decode(self, model: Llama, prompt: Tensor, new_tokens: int, generator: Generator | None = None) -> None:
        """Greedy and timed, or, with a generator, at temperature 1."""
        decoding = SelfSpeculation(
            model,
            prompt,
            new_tokens,
            exit_layer=self.exit_layer,
            draft_length=self.draft_length,
            temperature=0.0 if generator is None else 1.0,
            generator=generator,
        )
        if generator is None:
            self.add(decoding)
            self.greedy += decoding.stats
            self.traces.append(decoding.trace)
        else:
            list(decoding)
            self.sampled += decoding.stats


class SelfSpeculative:
    """The measure `self_speculative`: every exit layer with every draft length on the same held-out prompts.

    exit_layers: layers that draft, 1 to L-1; draft_lengths: tokens drafted a round; prompts: how many; prompt_length,
    new_tokens: tokens (no end of text stops a decoding, so that all are equally long); seed: of the draws at
    temperature 1 and of the bootstrap.
    """

    def __init__(
        self,
        exit_layers: list[int],
        draft_lengths: list[int],
        prompts: int = 32,
        prompt_length: int = 64,
        new_tokens: int = 128,
        seed: int = 0,
    ) -> None:
        for name, value in (("exit_layers", exit_layers), ("draft_lengths", draft_lengths)):
            if not value:
                raise UserError(f"measure.self_speculative.{name} is empty; list at least one")
        if prompts < 1:
            raise UserError(f"measure.self_speculative.prompts={prompts} must be at least 1")
        self.grid = list(product(exit_layers, draft_lengths))
        self.prompts, self.prompt_length, self.new_tokens, self.seed = prompts, prompt_length, new_tokens, seed

    def check(self, model: Any) -> None:
        """Raises UserError when the settings do not fit the model; does no work."""
        try:
            if not isinstance(model, Llama):
                raise UserError(f"decoding needs model=llama or llama_pretrained, not {type(model).__name__}")
            check_request(model, self.prompt_length, self.new_tokens, temperature=0.0)
            for exit_layer, draft_length in self.grid:
                check_speculation(model, exit_layer, draft_length)
        except UserError as error:
            raise UserError(f"measure.self_speculative: {error}") from None

    def measure(self, trained: Any, folder: RunFolder) -> dict[str, float]:
        """Table and figures `self_speculative*`, a coloured sample, and metrics of the fastest row that is not grey."""
        self.check(trained.model)
        model = in_float32(trained.model.eval())
        windows = trained.data.prompts(self.prompts, self.prompt_length, continuation=self.new_tokens)
        prompts, texts = (tokens.to(model.lm_head.weight.device) for tokens in windows)
        agreement = exit_agreement(model, torch.cat([prompts, texts], dim=1))
        baseline, cells = self.decode(model, prompts)
        rows = cell_rows(model.layers, baseline, cells, texts.tolist(), agreement)
        quotable = [row for row in rows if not row["collapsed"]]
        best = max(quotable or rows, key=lambda row: row["speedup"])
        cell = cells[rows.index(best)]
        low, high = bootstrap_interval(speedups(baseline, cell), self.seed)
        setting = (
            f"{len(prompts)} held-out prompts of {self.prompt_length} tokens, {self.new_tokens} new tokens each, "
            f"float32; autoregressive decoding gives {baseline.tokens_per_s:.4g} tokens/s"
        )
        report_rows(folder, rows, setting)
        caption = f"Exit layer {cell.exit_layer}, draft length {cell.draft_length}: where the speed-up is best."
        report_sample(folder, trained.data.tokenizer, prompts[0].tolist(), cell.traces[0], caption)
        metrics = {
            "best_speedup": best["speedup"],
            "best_speedup_low": low,
            "best_speedup_high": high,
            "best_bound": best["bound"],
            "best_exit_layer": best["exit_layer"],
            "best_draft_length": best["draft_length"],
            "best_acceptance": best["acceptance"],
            "best_distinct_3": best["distinct_3"],
            "reference_distinct_3": best["reference_distinct_3"],
            "mismatches": sum(row["mismatches"] for row in rows),
            "autoregressive_tokens_per_s": baseline.tokens_per_s,
            "all_rows_grey": int(not quotable),
        }
        return {f"self_speculative/{name}": value for name, value in metrics.items()}

    def decode(self, model: Llama, prompts: Tensor) -> tuple[Decodings, list[Cell]]:
        """Every prompt by every way of decoding, with a progress bar."""
        baseline = Decodings()
        cells = [Cell(exit_layer=exit_layer, draft_length=draft_length) for exit_layer, draft_length in self.grid]
        sampled = prompts[: max(FEWEST_SAMPLED, len(prompts) // SAMPLED_SHARE)]
        generator = Generator(prompts.device).manual_seed(self.seed)
        Decodings().add(generate(model, prompts[0], self.new_tokens))  # warm caches and allocator; thrown away
        copy.deepcopy(cells[0]).decode(model, prompts[0], self.new_tokens)
        # Drawn between decodings only: a drawing thread would take time from those that are measured.
        with Progress(console=Console(stderr=True), auto_refresh=False) as progress:
            total = len(prompts) * (1 + len(cells)) + len(sampled) * len(cells)
            bar = progress.add_task("prompts x decodings", total=total)
            for prompt in prompts:
                baseline.add(generate(model, prompt, self.new_tokens))
                progress.update(bar, advance=1, refresh=True)
                for cell in cells:
                    cell.decode(model, prompt, self.new_tokens)
                    progress.update(bar, advance=1, refresh=True)
            for cell in cells:
                for prompt in sampled:
                    cell.decode(model, prompt, self.new_tokens, generator)
                    progress.update(bar, advance=1, refresh=True)
        return baseline, cells


def cell_rows(
    layers: int, baseline: Decodings, cells: list[Cell], texts: list[list[int]], agreement: list[float]
) -> list[Row]:
    """The table, a row a cell. texts: how the held-out text goes on after each prompt."""
    own = fmean(distinct_n(text) for text in texts)
    own_repeat = fmean(longest_repeated_span(text) for text in texts)
    rows = []
    for cell in cells:
        stats = cell.greedy
        low, median, high = quantiles(speedups(baseline, cell), [0.25, 0.5, 0.75])
        distinct = fmean(distinct_n(output) for output in cell.outputs)
        rows.append(
            {
                "exit_layer": cell.exit_layer,
                "draft_length": cell.draft_length,
                "acceptance": stats.acceptance,
                "tokens_per_round": stats.tokens_per_round,
                "tokens_per_s": cell.tokens_per_s,
                "speedup": median,
                "speedup_low": low,
                "speedup_high": high,
                "bound": layer_pass_bound(layers, cell.exit_layer, stats.drafted / stats.rounds, stats.acceptance),
                "mismatches": sum(a != b for a, b in zip(cell.outputs, baseline.outputs, strict=True)),
                "agreement": agreement[cell.exit_layer - 1],
                "acceptance_temperature_1": cell.sampled.acceptance,
                "distinct_3": distinct,
                "reference_distinct_3": own,
                "longest_repeat": fmean(longest_repeated_span(output) for output in cell.outputs),
                "reference_longest_repeat": own_repeat,
                "collapsed": distinct < own / 2,
            }
        )
    return rows


def in_float32(model: Llama) -> Llama:
    """The model itself when it is float32, else a copy that is."""
    return model if model.lm_head.weight.dtype == torch.float32 else copy.deepcopy(model).float()


def exit_agreement(model: Llama, windows: Tensor) -> list[float]:
    """Share of tokens of int64 [count, n + 1] where each exit predicts what the last layer does, teacher-forced."""
    predictions = [judge_exits(model, window[None, :-1], window[1:])[1] for window in windows]
    joined = torch.cat(predictions, dim=1)
    return (joined == joined[-1]).double().mean(1).tolist()


def speedups(baseline: Decodings, cell: Cell) -> list[float]:
    """Autoregressive seconds over self-speculative seconds, prompt by prompt."""
    return [slow / fast for slow, fast in zip(baseline.seconds, cell.seconds, strict=True)]


def bootstrap_interval(values: list[float], seed: int) -> list[float]:
    """95 % interval of the median: percentiles over resampled prompts (Efron 1979)."""
    generator = Generator().manual_seed(seed)
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    medians = torch.tensor(values, dtype=torch.float64)[picks].quantile(0.5, dim=1)
    return quantiles(medians.tolist(), [0.025, 0.975])


def quantiles(values: list[float], at: list[float]) -> list[float]:
    return torch.tensor(values, dtype=torch.float64).quantile(torch.tensor(at, dtype=torch.float64)).tolist()
