"""`generate run=... prompt=...`: text in the terminal as it is decided."""

import sys
import time
from collections.abc import Iterable
from typing import Any, get_args

import torch
from torch import Tensor

from edgetrain.decoding.autoregressive import check_request, generate
from edgetrain.decoding.fused import Weights
from edgetrain.decoding.self_speculative import SelfSpeculation, check_speculation
from edgetrain.decoding.static import StaticDecoder, StaticSelfSpeculation
from edgetrain.decoding.tuning import tune
from edgetrain.errors import UserError, nearest
from edgetrain.models.llama import Llama

TUNING_PROMPTS, TUNING_TOKENS = 4, 64  # held-out prompts that draft=auto decodes; tokens, read and written together
Options = dict[str, str | None]


def stream(trained: Any, prompt: str | None, **options: str | None) -> None:
    """Decode after `prompt` and print at once what is decided; a line of figures follows on standard error.

    options, as typed: tokens (most new ones, default 128 or what the context leaves), temperature (default 0),
    exit_layer, draft (tokens drafted a round, or auto), seed, weights and draft_weights (float32, bfloat16, int8),
    compiled. exit_layer alone exits early; with draft it drafts and the other layers verify. draft=auto measures which
    draft length, and without exit_layer which of those too, is the fastest. A format, or compiled=true, decodes with
    fixed shapes (`static`).
    Raises UserError for a missing prompt, a value that is not what it should be, or a model or request that does not
    fit.
    """
    if not prompt:
        raise UserError("say what to continue: prompt='def main'")
    model = trained.model
    if not isinstance(model, Llama):
        raise UserError(f"generate decodes our Llama; this run trained a {type(model).__name__}")
    device = next(model.parameters()).device
    ids = torch.tensor(trained.data.tokenizer.encode(prompt), dtype=torch.int64, device=device)
    room = max(1, model.context - len(ids))
    count = number(options, "tokens", int, min(128, room))
    request = {
        "temperature": number(options, "temperature", float, 0.0),
        "eos_id": trained.data.eos_id,
        "generator": torch.Generator(device).manual_seed(number(options, "seed", int, 0)),
    }
    check_request(model, len(ids), count, request["temperature"])
    settings = static_settings(options)  # before draft=auto measures for half a minute
    exit_layer, draft = drafting(trained, options)
    if settings:
        decoder = static_decoder(model, len(ids) + count, exit_layer, draft, settings)
        tokens: Iterable[int] = decoder.stream(ids, count, **request)
    elif draft is None:
        tokens = decoder = generate(model, ids, count, **request, exit_layer=exit_layer)
    else:
        tokens = decoder = SelfSpeculation(model, ids, count, **request, exit_layer=exit_layer, draft_length=draft)
    started = time.perf_counter()
    count = show(trained.data.tokenizer, prompt, ids, tokens)
    seconds = time.perf_counter() - started
    accepted = f", {decoder.stats.acceptance:.0%} of drafts accepted" if draft is not None else ""
    print(f"{count} tokens, {count / seconds:.0f} tokens/s{accepted}", file=sys.stderr)


def show(tokenizer: Any, prompt: str, ids: Tensor, tokens: Iterable[int]) -> int:
    """Print the prompt, and the text of each token as it comes; returns how many came."""
    print(prompt, end="", flush=True)
    written = ids.tolist()
    shown = tokenizer.decode(written, skip_special_tokens=True)
    for token in tokens:
        written.append(token)
        text = tokenizer.decode(written, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character may take several tokens
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()
    return len(written) - len(ids)


def drafting(trained: Any, options: Options) -> tuple[int | None, int | None]:
    """Exit layer and draft length, each None where there is none; draft=auto is measured here, and said."""
    exit_layer, model = number(options, "exit_layer", int), trained.model
    if options.get("draft") != "auto":
        draft = number(options, "draft", int)
        if draft is not None and exit_layer is None:
            raise UserError("draft=D needs exit_layer=E, the layers that draft; or draft=auto")
        return exit_layer, draft
    if exit_layer is not None:
        check_speculation(model, exit_layer, draft_length=1)
    half = min(TUNING_TOKENS, model.context // 2)
    prompts = trained.data.prompts(TUNING_PROMPTS, half, continuation=half)[0].to(model.lm_head.weight.device)
    choice = tune(model, prompts, half, exit_layer)
    found = f"exit_layer={choice.exit_layer} draft={choice.draft_length}, {choice.speedup:.2f} times as fast as without"
    if choice.speedup <= 1:
        print(f"draft=auto: not worth it; the best is {found}", file=sys.stderr)
        return None, None
    print(f"draft=auto: {found}, predicted from {TUNING_PROMPTS} held-out prompts", file=sys.stderr)
    return choice.exit_layer, choice.draft_length


def static_settings(options: Options) -> dict[str, Any]:
    """Arguments of the static decoders; empty when none of their options was typed."""
    settings: dict[str, Any] = {}
    for name in ("weights", "draft_weights"):
        value = options.get(name)
        if value is not None:
            if value not in get_args(Weights):
                formats = ", ".join(get_args(Weights))
                raise UserError(f"{name}={value} is no format{nearest(value, get_args(Weights))}; formats: {formats}")
            settings[name] = value
    compiled = options.get("compiled")
    if compiled not in (None, "true", "false"):
        raise UserError(f"compiled={compiled} is neither true nor false")
    return settings | ({"compiled": True} if compiled == "true" else {})


def static_decoder(
    model: Llama, length: int, exit_layer: int | None, draft: int | None, settings: dict[str, Any]
) -> StaticDecoder:
    if draft is not None:
        return StaticSelfSpeculation(model, exit_layer=exit_layer, draft_length=draft, length=length, **settings)
    if "draft_weights" in settings:
        raise UserError("draft_weights= needs exit_layer=E and draft=D: which layers draft, and how many tokens")
    if exit_layer is not None:
        raise UserError(
            f"exit_layer={exit_layer} without draft=D exits early, which takes neither weights= nor compiled="
        )
    return StaticDecoder(model, length=length, **settings)


def number(options: Options, name: str, kind: type, default: Any = None) -> Any:
    text = options.get(name)
    if text is None:
        return default
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{name}={text} is not {'a whole number' if kind is int else 'a number'}") from None
