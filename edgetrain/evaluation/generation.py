"""What a model writes after many prompts, up to a stop sequence: what generative benchmarks ask for."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from edgetrain.decoding.static import StaticDecoder
from edgetrain.errors import UserError
from edgetrain.models.llama import Llama


def check_generates(model: nn.Module) -> None:
    """Raises UserError for a model that our decoding cannot run."""
    if not isinstance(model, Llama):
        raise UserError(f"decoding needs model=llama or llama_pretrained, not {type(model).__name__}")


def continuations(
    model: Llama,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    new_tokens: int,
    *,
    stop: Sequence[str] = (),
    eos_id: int | None = None,
    temperature: float = 0.0,
    generator: Generator | None = None,
    exit_layer: int | None = None,
    batch_size: int = 8,
) -> Iterator[tuple[int, str]]:
    """Index and continuation of every prompt, as each batch is done, longest prompts first.

    A text ends before the first of the `stop` strings in it, before `eos_id`, or after new_tokens tokens. Prompts of
    about equal length decode together. Raises UserError when the longest prompt leaves no room for new_tokens.
    """
    check_generates(model)
    if not prompts:
        return
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    device = model.lm_head.weight.device
    decoder = StaticDecoder(
        model,
        exit_layer=exit_layer,
        length=min(model.context, len(prompts[order[0]]) + new_tokens),
        batch=min(batch_size, len(prompts)),
    )
    for start in range(0, len(order), decoder.batch):
        group = order[start : start + decoder.batch]
        rows = [torch.tensor(prompts[index], dtype=torch.int64, device=device) for index in group]
        texts = decode(decoder, tokenizer, rows, new_tokens, stop, eos_id, temperature, generator)
        yield from zip(group, texts, strict=True)


def decode(
    decoder: StaticDecoder,
    tokenizer: Any,
    prompts: list[Tensor],
    new_tokens: int,
    stop: Sequence[str],
    eos_id: int | None,
    temperature: float,
    generator: Generator | None,
) -> list[str]:
    """One batch, which ends as soon as each of its texts has."""
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    tail = 1 + max((len(text.encode()) for text in stop), default=0)  # a token is a byte or more
    for step in decoder.chunks(prompts, new_tokens, temperature, eos_id, generator):
        for row, new in enumerate(step):
            if ended[row] or not new:
                continue
            written[row] += new
            recent = tokenizer.decode(written[row][-tail:], skip_special_tokens=True)
            ended[row] = written[row][-1] == eos_id or any(text in recent for text in stop)
        if all(ended):
            break
    return [
        cut(continued(tokenizer, prompt[-1:].tolist(), tokens, eos_id), stop)
        for prompt, tokens in zip(prompts, written, strict=True)
    ]


def continued(tokenizer: Any, before: list[int], tokens: list[int], eos_id: int | None) -> str:
    """The text that `tokens` add to `before`: a SentencePiece tokenizer drops the space at the beginning of a text."""
    if tokens and tokens[-1] == eos_id:
        tokens = tokens[:-1]
    whole = tokenizer.decode(before + tokens, skip_special_tokens=True)
    return whole[len(tokenizer.decode(before, skip_special_tokens=True)) :]


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop sequence in it."""
    return text[: min((place for part in stop if (place := text.find(part)) >= 0), default=len(text))]
