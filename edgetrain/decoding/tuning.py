"""Which exit layer and draft length decode fastest: from measured layer costs and measured acceptance.

A round of self-speculative decoding (LayerSkip, arXiv 2404.16710, section 4.3) takes d + 1 passes of one token through
E layers, d of the head, and one pass of d + 1 tokens through the other layers and the head. With c_k and h_k the
seconds that a layer and the head take for k tokens, its speed-up over autoregressive decoding is

    (L c_1 + h_1) tokens(E, d) / (d (E c_1 + h_1) + E c_1 + (L - E) c_{d+1} + h_{d+1})

where tokens(E, d) is what a round yields: 1 plus the drafts that stand. A round that drafted more says what a shorter
one would have given, min(d, accepted), so each exit layer is decoded once, with the longest draft. Ours, not the
paper's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from edgetrain.decoding.self_speculative import SelfSpeculation
from edgetrain.errors import UserError
from edgetrain.models.llama import Llama

LONGEST_DRAFT = 8
REPEATS = 30  # timed passes a number of tokens


@dataclass(frozen=True)
class Costs:
    """Seconds of one layer and of the head for k = 1, 2, .. tokens."""

    layer: list[float]
    head: list[float]

    def speedup(self, layers: int, exit_layer: int, draft_length: int, tokens: float) -> float:
        """The formula above; tokens: what a round yields on average."""
        single = layers * self.layer[0] + self.head[0]
        draft = draft_length * (exit_layer * self.layer[0] + self.head[0]) + exit_layer * self.layer[0]
        verify = (layers - exit_layer) * self.layer[draft_length] + self.head[draft_length]
        return single * tokens / (draft + verify)


@dataclass(frozen=True)
class Choice:
    """speedup: predicted; below 1, autoregressive decoding is the faster way."""

    exit_layer: int
    draft_length: int
    speedup: float


def tune(model: Llama, prompts: Tensor, new_tokens: int, exit_layer: int | None = None) -> Choice:
    """The fastest exit layer (or the given one's fastest draft length) on int64 prompts [count, n].

    Raises UserError when the model has a single layer, or the request does not fit it.
    """
    if model.layers < 2:
        raise UserError("draft=auto needs a model of at least 2 layers: some draft, the others verify")
    exits = [exit_layer] if exit_layer is not None else list(range(1, model.layers))
    accepted = {each: accepted_a_round(model, prompts, new_tokens, each) for each in exits}
    return best_choice(model.layers, measure_costs(model, prompts.shape[1] + new_tokens // 2), accepted)


def best_choice(layers: int, costs: Costs, accepted: dict[int, list[int]]) -> Choice:
    """accepted: for each exit layer, how many drafts stood in each round of LONGEST_DRAFT."""
    choices = []
    for exit_layer, length in product(accepted, range(1, LONGEST_DRAFT + 1)):
        tokens = 1 + fmean(min(length, count) for count in accepted[exit_layer])
        choices.append(Choice(exit_layer, length, costs.speedup(layers, exit_layer, length, tokens)))
    return max(choices, key=lambda choice: choice.speedup)


def accepted_a_round(model: Llama, prompts: Tensor, new_tokens: int, exit_layer: int) -> list[int]:
    """Drafts that stood in each full round of greedy decoding; a round that the budget cut says nothing."""
    counts = []
    for prompt in prompts:
        decoding = SelfSpeculation(model, prompt, new_tokens, exit_layer=exit_layer, draft_length=LONGEST_DRAFT)
        run = 0
        for position, _ in enumerate(decoding, start=1):
            if decoding.trace[-1][1] == "drafted":
                run += 1
                continue
            if position - run + LONGEST_DRAFT <= new_tokens:
                counts.append(run)
            run = 0
    return counts or [0]


@torch.inference_mode()
def measure_costs(model: Llama, position: int) -> Costs:
    """Median seconds of a layer and of the head for 1 to LONGEST_DRAFT + 1 tokens that follow `position` others."""
    position = min(position, model.context - LONGEST_DRAFT - 1)
    cache = model.new_cache()
    layer, head = [], []
    for count in range(1, LONGEST_DRAFT + 2):
        x = model.embed(torch.zeros(1, count, dtype=torch.int64, device=model.lm_head.weight.device))
        layer.append(seconds(lambda x=x: model.run_layers(x, 0, model.layers, cache, position), x) / model.layers)
        head.append(seconds(lambda x=x: model.head(x), x))
    return Costs(layer, head)


def seconds(work: Callable[[], Tensor], like: Tensor) -> float:
    """The median over REPEATS, after one that is not counted."""
    return median([timed(work, like.is_cuda) for _ in range(REPEATS + 1)][1:])


def timed(work: Callable[[], Any], wait: bool = False) -> float:
    """Seconds of one call; wait: for the GPU too."""
    started = time.perf_counter()
    work()
    if wait:
        torch.cuda.synchronize()
    return time.perf_counter() - started
