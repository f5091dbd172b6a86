"""Decoding with everything allocated once: fixed cache and shapes, one compiled graph a step, several prompts at once.

`StaticDecoder` is autoregressive; `StaticSelfSpeculation` drafts and verifies in one graph a round (LayerSkip, Elhoushi
et al. 2024, arXiv 2404.16710, section 4.3). Their output is that of `autoregressive` and `self_speculative`, which are
the readable forms. Notable choices:

- drafts are drawn in the graph as argmax(logits + temperature * noise) with Gumbel noise, which is the softmax at that
  temperature, and greedy at 0: one graph for both;
- `draft_weights` drafts with a bfloat16 or int8 copy of the first layers and the head. Drafts need not be exact, since
  every one is verified by the full model's own weights; but the copy's states are not the model's, so it has a cache
  of its own and the verifier runs all layers. Without it, states and cache of the first layers are shared, as in the
  paper;
- rows of a batch accept different counts, so each has its own position; a row that has ended idles in place.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from edgetrain.decoding.autoregressive import check_exit, check_request
from edgetrain.decoding.fused import OVERSHOOT, FusedLlama, Weights
from edgetrain.decoding.sampling import accept_or_redraw, next_token, probabilities
from edgetrain.decoding.self_speculative import SelfSpeculativeStats, check_speculation
from edgetrain.errors import UserError
from edgetrain.models.llama import Llama


class StaticDecoder:
    """Autoregressive decoding of `batch` prompts at once; cache, weights and graph are kept from one call to the next.

    exit_layer: how many layers run before the head, all when None (early exit, section 4.2 of the paper); length: most
    positions, prompt and new tokens together, the model's context when None; weights: format of the products, float32
    is exact; compiled: by torch.compile, some tens of seconds at the first call. Raises UserError when length exceeds
    the context, or compiled needs a C++ compiler that is not there.
    """

    def __init__(
        self,
        model: Llama,
        *,
        exit_layer: int | None = None,
        length: int | None = None,
        batch: int = 1,
        weights: Weights = "float32",
        compiled: bool = False,
    ) -> None:
        self.length = model.context if length is None else length
        if not 2 <= self.length <= model.context:
            raise UserError(f"length={self.length} is outside 2 to {model.context}, the model's context")
        if batch < 1:
            raise UserError(f"batch={batch} must be at least 1")
        check_exit(model, exit_layer)
        self.model, self.batch = model, batch
        self.fused = FusedLlama(model, weights, exit_layer).eval()
        self.cache = self.fused.new_cache(batch, self.length + self.overshoot)
        self.run_step = in_one_graph(self.step, model) if compiled else self.step

    overshoot = 0

    def decode(
        self,
        prompts: list[Tensor],
        max_new_tokens: int | list[int],
        *,
        temperature: float = 0.0,
        eos_id: int | None = None,
        generator: Generator | None = None,
    ) -> list[list[int]]:
        """New tokens of each prompt (int64 [n], at most `batch` of them), none after `eos_id`, which is kept.

        max_new_tokens: of all prompts, or of each.
        """
        outputs: list[list[int]] = [[] for _ in prompts]
        for chunk in self.chunks(prompts, max_new_tokens, temperature, eos_id, generator):
            for output, tokens in zip(outputs, chunk, strict=True):
                output.extend(tokens)
        return outputs

    def stream(
        self,
        prompt: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        eos_id: int | None = None,
        generator: Generator | None = None,
    ) -> Iterator[int]:
        """One prompt's new tokens, each as soon as it is decided."""
        for chunk in self.chunks([prompt], max_new_tokens, temperature, eos_id, generator):
            yield from chunk[0]

    @torch.inference_mode()
    def chunks(
        self,
        prompts: list[Tensor],
        max_new_tokens: int | list[int],
        temperature: float,
        eos_id: int | None,
        generator: Generator | None,
    ) -> Iterator[list[list[int]]]:
        """What every step adds to each prompt: a list of lists, empty for a prompt that has ended."""
        ledger = Ledger(self, prompts, max_new_tokens, temperature, eos_id)
        tokens, positions = self.prefill(prompts, temperature, generator)
        yield ledger.book(tokens[:, None].tolist())
        while ledger.open:
            logits, choices = self.run_step(tokens, positions)
            tokens = choices if temperature == 0 else next_token(logits, temperature, generator)
            positions = (positions + 1).clamp(max=self.length - 1)
            yield ledger.book(tokens[:, None].tolist())

    def prefill(self, prompts: list[Tensor], temperature: float, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Read all prompts, padded at their end; each row's first new token and where it stands, int64 [batch].

        What the padding leaves in the cache lies after the row's position, and is overwritten before it is read.
        """
        device = self.fused.embedding.device
        lengths = torch.ones(self.batch, dtype=torch.int64, device=device)
        padded = torch.zeros(self.batch, max(map(len, prompts)), dtype=torch.int64, device=device)
        for row, prompt in enumerate(prompts):
            lengths[row] = len(prompt)
            padded[row, : len(prompt)] = prompt
        states = self.read(padded)
        last = states[torch.arange(self.batch, device=device), lengths - 1]
        return next_token(self.fused.head(last), temperature, generator), lengths

    def read(self, padded: Tensor) -> Tensor:
        return self.fused(padded, self.cache, padded.new_zeros(len(padded)))

    def step(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [batch, vocab] after int64 tokens [batch] at their positions, and the greedy choice."""
        states = self.fused(tokens[:, None], self.cache, positions)
        logits = self.fused.head(states[:, -1])
        return logits, logits.argmax(-1)


class StaticSelfSpeculation(StaticDecoder):
    """Self-speculative decoding: a round, d drafts and their verification, is one graph.

    exit_layer: E, the layers that draft; draft_length: d; draft_weights: None drafts with the verifier's own weights
    and shares their states (the paper's form), a format drafts with a copy in that format; the others are
    StaticDecoder's. `stats` counts the last call, its prompts together, without the first token of each, which the pass
    over the prompt gives.
    """

    def __init__(
        self,
        model: Llama,
        *,
        exit_layer: int,
        draft_length: int,
        draft_weights: Weights | None = None,
        length: int | None = None,
        batch: int = 1,
        weights: Weights = "float32",
        compiled: bool = False,
    ) -> None:
        check_speculation(model, exit_layer, draft_length)
        if draft_length >= OVERSHOOT:
            raise UserError(f"draft_length={draft_length} must be below {OVERSHOOT}")
        self.exit_layer, self.draft_length = exit_layer, draft_length
        self.overshoot = draft_length + 1
        super().__init__(model, length=length, batch=batch, weights=weights, compiled=compiled)
        self.drafter = None if draft_weights is None else FusedLlama(model, draft_weights, exit_layer).eval()
        if self.drafter is not None:
            self.draft_cache = self.drafter.new_cache(batch, self.length + self.overshoot)
        self.silence = torch.zeros(batch, draft_length, 1, device=self.fused.embedding.device)
        self.stats = SelfSpeculativeStats()

    @torch.inference_mode()
    def chunks(
        self,
        prompts: list[Tensor],
        max_new_tokens: int | list[int],
        temperature: float,
        eos_id: int | None,
        generator: Generator | None,
    ) -> Iterator[list[list[int]]]:
        ledger = Ledger(self, prompts, max_new_tokens, temperature, eos_id)
        self.stats = SelfSpeculativeStats()
        tokens, positions = self.prefill(prompts, temperature, generator)
        before = torch.stack([prompt[-1] for prompt in prompts] + [tokens[0]] * (self.batch - len(prompts)))
        yield ledger.book(tokens[:, None].tolist())
        while ledger.open:
            drafts, q, p, choices = self.run_step(before, tokens, positions, self.noise(temperature, generator))
            if temperature == 0:
                counts = (drafts == choices[:, :-1]).long().cumprod(1).sum(1)
                decided = choices
            else:
                counts, decided = self.accept(drafts, q, p, temperature, generator)
            rows = torch.arange(self.batch, device=tokens.device)
            before = torch.where(counts > 0, decided[rows, counts - 1], tokens)
            tokens = decided[rows, counts]
            positions = (positions + counts + 1).clamp(max=self.length - 1)
            left, counted = list(ledger.left), counts.tolist()
            booked = ledger.book([row[: count + 1] for row, count in zip(decided.tolist(), counted, strict=True)])
            for room, count, new in zip(left, counted, booked, strict=False):
                if room:  # the drafts that its budget had room for
                    drafted = min(self.draft_length, room - 1)
                    self.stats += SelfSpeculativeStats(1, drafted, min(count, drafted, len(new)), len(new))
            yield booked

    def noise(self, temperature: float, generator: Generator | None) -> Tensor:
        """Gumbel noise times the temperature for every draft, [batch, d, vocab]; zeros to broadcast when greedy."""
        if temperature == 0:
            return self.silence
        shape = (self.batch, self.draft_length, self.model.vocab_size)
        return -temperature * torch.empty(shape, device=self.silence.device).exponential_(generator=generator).log()

    def accept(
        self, drafts: Tensor, q: Tensor, p: Tensor, temperature: float, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The rule of speculative sampling, row by row: how many drafts stand, and drafts with the following token."""
        decided = torch.cat((drafts, drafts[:, -1:]), dim=1)
        counts = []
        for row, (tokens, draft, target) in enumerate(zip(drafts, q, p, strict=True)):
            draft, target = probabilities(draft, temperature), probabilities(target, temperature)
            count, following = accept_or_redraw(tokens, draft, target, generator)
            decided[row, count] = following[0]
            counts.append(count)
        return torch.tensor(counts, device=drafts.device), decided

    def read(self, padded: Tensor) -> Tensor:
        if self.drafter is not None:
            self.drafter(padded, self.draft_cache, padded.new_zeros(len(padded)))
        return super().read(padded)

    def step(
        self, before: Tensor, tokens: Tensor, positions: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One round after int64 tokens [batch], preceded by `before`, at their positions.

        Gives drafts [batch, d] and the logits they were drawn from [batch, d, vocab], the verifier's logits
        [batch, d + 1, vocab], and its greedy choices [batch, d + 1].
        """
        propose = self.draft_with_model if self.drafter is None else self.draft_with_copy
        drafts, q, states = propose(before, tokens, positions, noise)
        first = 0 if states is None else self.exit_layer
        if states is None:
            states = self.fused.embed(torch.cat((tokens[:, None], drafts), dim=1))
        states = self.fused.run_layers(states, first, self.fused.layers, self.cache, positions)
        p = self.fused.head(states)
        return drafts, q, p, p.argmax(-1)

    def draft_with_model(
        self, before: Tensor, tokens: Tensor, positions: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Drafts, their logits, and the states after layer E-1 of all pending positions, [batch, d + 1, dim]."""
        fused, drafts, q, states = self.fused, [], [], []
        for index in range(self.draft_length + 1):
            x = fused.embed(tokens[:, None])
            states.append(fused.run_layers(x, 0, self.exit_layer, self.cache, positions + index))
            if index < self.draft_length:
                q.append(fused.head(states[-1][:, 0]))
                tokens = (q[-1] + noise[:, index]).argmax(-1)
                drafts.append(tokens)
        return torch.stack(drafts, dim=1), torch.stack(q, dim=1), torch.cat(states, dim=1)

    def draft_with_copy(
        self, before: Tensor, tokens: Tensor, positions: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Drafts and their logits; no states, as the copy's are not the model's.

        The first step reads two tokens: after a round whose drafts all stood, the copy has not read the last of them.
        """
        pending, start = torch.stack((before, tokens), dim=1), positions - 1
        drafts, q = [], []
        for index in range(self.draft_length):
            q.append(self.drafter.head(self.drafter(pending, self.draft_cache, start)[:, -1]))
            drafts.append((q[-1] + noise[:, index]).argmax(-1))
            pending, start = drafts[-1][:, None], positions + index + 1
        return torch.stack(drafts, dim=1), torch.stack(q, dim=1), None


class Ledger:
    """What each prompt still may get: its budget and the end of its text. Raises UserError for a bad request."""

    def __init__(
        self,
        decoder: StaticDecoder,
        prompts: list[Tensor],
        max_new_tokens: int | list[int],
        temperature: float,
        eos_id: int | None,
    ) -> None:
        if not 1 <= len(prompts) <= decoder.batch:
            raise UserError(f"{len(prompts)} prompts were given to a decoder of 1 to {decoder.batch} (batch)")
        self.left = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        for prompt, left in zip(prompts, self.left, strict=True):
            check_request(decoder.model, len(prompt), left, temperature)
            if len(prompt) + left > decoder.length:
                raise UserError(
                    f"a prompt of {len(prompt)} tokens and {left} new ones exceed the decoder's "
                    f"length={decoder.length}; make it with a larger length"
                )
        self.eos_id = eos_id

    @property
    def open(self) -> bool:
        return any(self.left)

    def book(self, rows: list[list[int]]) -> list[list[int]]:
        """Of each row's new tokens those that count, up to its budget or the end of its text."""
        booked = []
        for row, left in enumerate(self.left):
            tokens = rows[row][:left]
            ended = self.eos_id in tokens
            if ended:
                tokens = tokens[: tokens.index(self.eos_id) + 1]
            self.left[row] = 0 if ended else left - len(tokens)
            booked.append(tokens)
        return booked


def in_one_graph(step: Callable[..., Any], model: Llama) -> Callable[..., Any]:
    """`step` by torch.compile, for one shape, without a break. Raises UserError where that cannot work."""
    on_cpu = model.lm_head.weight.device.type == "cpu"
    if on_cpu and not shutil.which(os.environ.get("CXX", "g++")):
        raise UserError("compiled=true needs a C++ compiler, and there is no g++; install one, or name yours in CXX")
    options = {"cpp_wrapper": True} if on_cpu else None  # calls its kernels from C++: a tenth of a step at 12 layers
    return torch.compile(step, fullgraph=True, dynamic=False, isolate_recompiles=True, options=options)
