"""Our models in EleutherAI's lm-evaluation-harness: what its tasks may ask of a causal language model.

Same numbers as its own class for Hugging Face models (HFLM) gives for the exported weights: tokenisation, truncation
from the left, windows and stop sequences follow its conventions. Notable choices:

- requests are sorted by length and padded on the right, which a causal model does not see;
- requests with the same input run once: the choices of one token, as yes and no, cost one forward;
- only the continuation's positions pass the head;
- generation is `StaticDecoder`'s: a cache that is allocated once, several prompts at once.
"""

from collections import defaultdict
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from edgetrain.errors import UserError, listing
from edgetrain.evaluation.generation import check_generates, continuations
from edgetrain.evaluation.model import check_exit, context_of, read

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # texts, tokens of the context, of the continuation

DEFAULT_NEW_TOKENS = 256  # the harness's own, where a task names no number
GENERATION = {"until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature"}  # what a task may ask for


class HarnessModel(TemplateLM):
    """model: any causal language model of ours, or a Hugging Face one; exit_layer: leave after that layer.

    batch_size: sequences read, or texts written, together. Raises UserError when there is no such layer.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, exit_layer: int | None = None, batch_size: int = 8) -> None:
        super().__init__()
        check_exit(model, exit_layer, "exit_layer")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.exit_layer, self.batch_size = exit_layer, batch_size
        self.max_length = context_of(model)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        begins = string.startswith(self.tokenizer.decode(self.prefix_token_id) or "\0")
        if add_special_tokens is None and begins:
            add_special_tokens = False  # it has its begin-of-text token
        return self.tokenizer.encode(
            string, **({} if add_special_tokens is None else {"add_special_tokens": add_special_tokens})
        )

    def _loglikelihood_tokens(self, requests: list[Request], **_: Any) -> list[tuple[float, bool]]:
        """Of each request's continuation the log-probability in nats, and whether greedy decoding would give it."""
        asked: dict[tuple[int, ...], list[int]] = defaultdict(list)  # input: requests that read it
        for index, (_texts, context, continuation) in enumerate(requests):
            asked[tuple((context + continuation)[-(self.max_length + 1) : -1])].append(index)
        inputs = sorted(asked, key=len, reverse=True)
        device = next(self.model.parameters()).device
        answers: list[Any] = [None] * len(requests)
        starts = range(0, len(inputs), self.batch_size)
        for start in track(starts, "log-likelihoods", console=Console(stderr=True), disable=len(starts) < 2):
            group = inputs[start : start + self.batch_size]
            tokens = pad_sequence([torch.tensor(ids, device=device) for ids in group], batch_first=True)
            logits = read(self.model, tokens, self.exit_layer)
            for row, ids in enumerate(group):
                longest = min(len(ids), max(len(requests[index][2]) for index in asked[ids]))
                scores = logits(row, slice(len(ids) - longest, len(ids))).log_softmax(-1)  # [longest, vocab]
                for index in asked[ids]:
                    continuation = torch.tensor(requests[index][2][-longest:], device=device)
                    part = scores[longest - len(continuation) :]
                    chosen = part.gather(1, continuation[:, None])
                    answers[index] = (chosen.sum().item(), bool((part.argmax(-1) == continuation).all()))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of each whole text the log-probability in nats, in windows of the model's context that share one token."""
        windows: list[Request] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            cuts = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, cuts):
                windows.append((None, context, continuation))
                owners.append(index)
        totals = [0.0] * len(requests)
        for index, (score, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[index] += score
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Each request's continuation, up to its stop sequences or the end of text; greedy unless the task samples."""
        check_generates(self.model)
        groups: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[repr(sorted(request.args[1].items()))].append(index)
        texts = [""] * len(requests)
        for indices in groups.values():
            settings = requests[indices[0]].args[1]
            new_tokens, temperature, stop = self.generation(settings)
            room = self.max_length - new_tokens
            prompts = [self.tok_encode(requests[index].args[0])[-room:] for index in indices]
            written = continuations(
                self.model,
                self.tokenizer,
                prompts,
                new_tokens,
                stop=stop,
                eos_id=self.eot_token_id,
                temperature=temperature,
                generator=torch.Generator(next(self.model.parameters()).device).manual_seed(0),
                exit_layer=self.exit_layer,
                batch_size=self.batch_size,
            )
            for place, text in track(written, "generations", total=len(prompts), console=Console(stderr=True)):
                texts[indices[place]] = text
        return texts

    def generation(self, settings: dict[str, Any]) -> tuple[int, float, list[str]]:
        """Most new tokens, temperature and stop sequences of a task's generation_kwargs.

        Raises UserError for kinds of decoding that we do not have, and for more tokens than the context holds.
        """
        strange = settings.keys() - GENERATION
        if strange:
            raise UserError(
                f"a task asks for generation_kwargs {listing(sorted(strange))}, which our decoding does not have; "
                f"it has {listing(sorted(GENERATION))}"
            )
        new_tokens = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or DEFAULT_NEW_TOKENS)
        if new_tokens >= self.max_length:
            raise UserError(
                f"a task asks for {new_tokens} new tokens, which leave no room for a prompt in the model's context of "
                f"{self.max_length}; set max_gen_toks in the task's generation_kwargs"
            )
        until = settings.get("until") or []
        sampled = settings.get("do_sample", settings.get("temperature", 0) > 0)
        temperature = float(settings.get("temperature") or 1.0) if sampled else 0.0
        return new_tokens, temperature, [until] if isinstance(until, str) else list(until)
