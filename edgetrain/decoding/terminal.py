"""`generate run=... prompt=...`: text in the terminal as it is decided."""

import sys
import time
from typing import Any

import torch

from edgetrain.decoding.autoregressive import generate
from edgetrain.decoding.self_speculative import SelfSpeculation
from edgetrain.errors import UserError
from edgetrain.models.llama import Llama


def stream(trained: Any, prompt: str | None, **options: str | None) -> None:
    """Decode after `prompt` and print at once what is decided; a line of figures follows on standard error.

    options, as typed: tokens (most new ones, default 128 or what the context leaves), temperature (default 0),
    exit_layer, draft (tokens drafted a round), seed. exit_layer alone exits early; with draft it drafts and the other
    layers verify.
    Raises UserError for a missing prompt, a value that is not a number, or a model or request that does not fit.
    """
    if not prompt:
        raise UserError("say what to continue: prompt='def main'")
    model = trained.model
    if not isinstance(model, Llama):
        raise UserError(f"generate decodes our Llama; this run trained a {type(model).__name__}")
    exit_layer, draft = number(options, "exit_layer", int), number(options, "draft", int)
    if draft is not None and exit_layer is None:
        raise UserError("draft=D needs exit_layer=E: the layers that draft")
    device = next(model.parameters()).device
    ids = torch.tensor(trained.data.tokenizer.encode(prompt), dtype=torch.int64, device=device)
    room = max(1, model.context - len(ids))
    request = {
        "max_new_tokens": number(options, "tokens", int, min(128, room)),
        "temperature": number(options, "temperature", float, 0.0),
        "eos_id": trained.data.eos_id,
        "generator": torch.Generator(device).manual_seed(number(options, "seed", int, 0)),
    }
    if draft is None:
        tokens = generate(model, ids, **request, exit_layer=exit_layer)
    else:
        tokens = SelfSpeculation(model, ids, **request, exit_layer=exit_layer, draft_length=draft)
    print(prompt, end="", flush=True)
    started, count, written = time.perf_counter(), 0, ids.tolist()
    shown = trained.data.tokenizer.decode(written, skip_special_tokens=True)
    for token in tokens:
        count += 1
        written.append(token)
        text = trained.data.tokenizer.decode(written, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character may take several tokens
            print(text[len(shown) :], end="", flush=True)
            shown = text
    seconds = time.perf_counter() - started
    print()
    rounds = f", {tokens.stats.acceptance:.0%} of drafts accepted" if draft is not None else ""
    print(f"{count} tokens, {count / seconds:.0f} tokens/s{rounds}", file=sys.stderr)


def number(options: dict[str, str | None], name: str, kind: type, default: Any = None) -> Any:
    text = options.get(name)
    if text is None:
        return default
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{name}={text} is not {'a whole number' if kind is int else 'a number'}") from None
