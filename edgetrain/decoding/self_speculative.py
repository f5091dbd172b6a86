"""Self-speculative decoding: the first layers draft, the others verify, with one cache and unchanged output.

Elhoushi et al. 2024, LayerSkip (arXiv 2404.16710), section 4.3. A round:

- draft: the first E layers and the head propose up to d tokens, one at a time. The state after layer E-1 of every
  position is kept (the paper's exit query cache);
- verify: layers E..L-1 run once over the kept states of all pending positions. Only the last drafted token passes the
  first E layers for this step alone;
- accept: the longest prefix that the full model agrees with, then one token of the full model's own.

Notable choices: layers of draft and verifier write one KV cache, and a rejected draft is forgotten by arithmetic (the
next round overwrites its positions); the prompt passes every layer once, since the first verify reads the prompt's
states from the first draft. Above temperature 0 the acceptance rule of speculative sampling holds (`sampling`).
Batch size 1, as in the paper.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from edgetrain.decoding.autoregressive import check_request
from edgetrain.decoding.sampling import accept_or_redraw, draw, matching_prefix, probabilities
from edgetrain.errors import UserError
from edgetrain.models.llama import KVCache, Llama

Source = Literal["drafted", "corrected", "bonus"]  # drafted and accepted; in a rejected one's place; after all stood


@dataclass
class SelfSpeculativeStats:
    """Counts over one decoding; add two for both. emitted: tokens yielded, at most accepted + rounds."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0

    @property
    def acceptance(self) -> float:
        """Accepted drafts of all drafts (0 when nothing was drafted)."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_round(self) -> float:
        return self.emitted / self.rounds if self.rounds else 0.0

    def __add__(self, other: "SelfSpeculativeStats") -> "SelfSpeculativeStats":
        return SelfSpeculativeStats(
            self.rounds + other.rounds,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.emitted + other.emitted,
        )


@dataclass
class Draft:
    """One round's proposal of k tokens, each int64 [1].

    states: after layer E-1, of all pending positions, each [1, positions, dim]; probabilities: q of each token,
    [1, vocab], empty at temperature 0.
    """

    states: list[Tensor]
    tokens: list[Tensor] = field(default_factory=list)
    probabilities: list[Tensor] = field(default_factory=list)


class SelfSpeculation:
    """Iterate over it for token ids, each as soon as it is decided; `stats` and `trace` grow along.

    prompt: int64 [n] on the model's device; exit_layer: E, the layers that draft, 1 to L-1; draft_length: d, tokens
    drafted a round (fewer where the budget ends or an end of text is drafted); the others are `generate`'s, and so is
    the output: the same tokens at temperature 0, the same distribution above. Raises UserError for a request that does
    not fit the model.
    """

    def __init__(
        self,
        model: Llama,
        prompt: Tensor,
        max_new_tokens: int,
        *,
        exit_layer: int,
        draft_length: int,
        temperature: float = 0.0,
        eos_id: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        check_request(model, len(prompt), max_new_tokens, temperature)
        check_speculation(model, exit_layer, draft_length)
        self.model, self.prompt, self.max_new_tokens = model, prompt, max_new_tokens
        self.exit_layer, self.draft_length = exit_layer, draft_length
        self.temperature, self.eos_id, self.generator = temperature, eos_id, generator
        self.stats = SelfSpeculativeStats()
        self.trace: list[tuple[int, Source]] = []

    @torch.inference_mode()  # on a generator function, torch leaves the mode at every yield
    def __iter__(self) -> Iterator[int]:
        self.stats, self.trace = SelfSpeculativeStats(), []
        cache = self.model.new_cache(length=len(self.prompt) + self.max_new_tokens - 1)
        pending, position = self.prompt[None], 0  # [1, n] tokens to read; all layers have read what is before them
        while self.stats.emitted < self.max_new_tokens:
            room = self.max_new_tokens - self.stats.emitted - 1  # the verifier always adds one
            draft = self._draft(cache, pending, position, min(self.draft_length, room))
            logits = self._verify(cache, draft, position)
            count, following, decided = self._decide(draft, logits)
            self.stats.rounds += 1
            self.stats.drafted += len(draft.tokens)
            self.stats.accepted += count
            position += pending.shape[1] + count
            pending = following[None]
            for token, source in decided:
                self.stats.emitted += 1
                self.trace.append((token, source))
                yield token
                if token == self.eos_id:
                    return

    def _draft(self, cache: KVCache, pending: Tensor, position: int, count: int) -> Draft:
        """Up to `count` tokens after `pending`, which stands at `position`."""
        model, layers = self.model, self.exit_layer
        draft = Draft([model.run_layers(model.embed(pending), 0, layers, cache, position)])
        position += pending.shape[1]
        for _ in range(count):
            logits = model.head(draft.states[-1][:, -1])  # [1, vocab]
            if self.temperature == 0:
                token = logits.argmax(-1)
            else:
                draft.probabilities.append(probabilities(logits, self.temperature))
                token = draw(draft.probabilities[-1], self.generator)
            draft.tokens.append(token)
            draft.states.append(model.run_layers(model.embed(token[None]), 0, layers, cache, position))
            position += 1
            if self.eos_id is not None and token.item() == self.eos_id:
                break
        return draft

    def _verify(self, cache: KVCache, draft: Draft, position: int) -> Tensor:
        """The full model's logits before each drafted token and after the last: [k + 1, vocab]."""
        states = torch.cat(draft.states, dim=1)
        states = self.model.run_layers(states, self.exit_layer, self.model.layers, cache, position)
        return self.model.head(states[0, -(len(draft.tokens) + 1) :])

    def _decide(self, draft: Draft, logits: Tensor) -> tuple[int, Tensor, list[tuple[int, Source]]]:
        """How many drafts stand, the token that follows them (int64 [1]), and all that were decided, in order."""
        tokens = torch.cat(draft.tokens) if draft.tokens else self.prompt[:0]
        drafted = tokens.tolist()
        if self.temperature == 0:
            choices = logits.argmax(-1)
            count = matching_prefix(drafted, choices.tolist())
            following = choices[count : count + 1]
        else:
            target = probabilities(logits, self.temperature)
            q = torch.cat(draft.probabilities) if draft.probabilities else target[:0]
            count, following = accept_or_redraw(tokens, q, target, self.generator)
        own: Source = "bonus" if count == len(drafted) else "corrected"
        return count, following, [*((token, "drafted") for token in drafted[:count]), (following.item(), own)]


def check_speculation(model: Llama, exit_layer: int, draft_length: int) -> None:
    """Raises UserError when no layer is left to verify, none drafts, or nothing is drafted."""
    if not 1 <= exit_layer < model.layers:
        raise UserError(
            f"exit_layer={exit_layer} is outside 1 to {model.layers - 1}: of the model's {model.layers} layers some "
            "must draft and the others verify"
        )
    if draft_length < 1:
        raise UserError(f"draft_length={draft_length} must be at least 1 token")


def layer_pass_bound(layers: int, exit_layer: int, draft_length: float, acceptance: float) -> float:
    """The speed-up over autoregressive decoding when only passes through layers cost time.

    A round of d drafts takes d E + L passes, verifying all pending positions in one, and gives acceptance * d + 1
    tokens; so the bound exceeds 1 exactly where acceptance exceeds E/L, whatever d. Ours, not the paper's; the head is
    left out, so a large vocabulary stays further below. draft_length: the mean over rounds, where some were cut.
    """
    return (acceptance * draft_length + 1) / (draft_length * exit_layer / layers + 1)
