"""One token at a time, with all layers or, as early-exit inference does, with the first few.

Early exit: LayerSkip (Elhoushi et al. 2024, arXiv 2404.16710), section 4.2.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from edgetrain.decoding.sampling import next_token
from edgetrain.errors import UserError
from edgetrain.models.llama import Llama


def generate(
    model: Llama,
    prompt: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    eos_id: int | None = None,
    generator: Generator | None = None,
    exit_layer: int | None = None,
) -> Iterator[int]:
    """Token ids, each as soon as it is decided; at most `max_new_tokens`, and none after `eos_id`, which is yielded.

    prompt: int64 [n] on the model's device; temperature: 0 is greedy; generator: of the random draws, on the same
    device; exit_layer: how many layers run before the head, all when None. Raises UserError at the call when the
    request does not fit the model.
    """
    check_request(model, len(prompt), max_new_tokens, temperature)
    check_exit(model, exit_layer)
    return _tokens(model, prompt, max_new_tokens, temperature, eos_id, generator, exit_layer or model.layers)


@torch.inference_mode()  # on a generator function, torch leaves the mode at every yield
def _tokens(
    model: Llama,
    prompt: Tensor,
    max_new_tokens: int,
    temperature: float,
    eos_id: int | None,
    generator: Generator | None,
    layers: int,
) -> Iterator[int]:
    cache = model.new_cache(length=len(prompt) + max_new_tokens - 1)  # the last token is never read
    pending, position = prompt[None], 0  # [1, n] tokens to read, and where they stand
    for _ in range(max_new_tokens):
        states = model.run_layers(model.embed(pending), 0, layers, cache, position)
        position += pending.shape[1]
        pending = next_token(model.head(states[:, -1]), temperature, generator)[None]
        token = pending.item()
        yield token
        if token == eos_id:
            return


def check_exit(model: Llama, exit_layer: int | None) -> None:
    """Raises UserError when the model has no such layer; None is its last."""
    if exit_layer is not None and not 1 <= exit_layer <= model.layers:
        raise UserError(f"exit_layer={exit_layer} is outside 1 to {model.layers}, the model's layers")


def check_request(model: Llama, length: int, max_new_tokens: int, temperature: float) -> None:
    """Raises UserError when the prompt is empty, or `length` tokens of it and the new ones do not fit the context."""
    context = model.context
    if length < 1:
        raise UserError("the prompt is empty; give at least one token")
    if max_new_tokens < 1:
        raise UserError(f"{max_new_tokens} new tokens were asked for; ask for at least 1")
    if not temperature >= 0:
        raise UserError(f"temperature={temperature} is below 0; 0 is greedy, 1 the model's own distribution")
    if length >= context:
        raise UserError(
            f"the prompt has {length} tokens, which leaves no room in the model's context of {context}; shorten it"
        )
    if length + max_new_tokens > context:
        raise UserError(
            f"a prompt of {length} tokens and {max_new_tokens} new ones are {length + max_new_tokens}, more than the "
            f"model's context of {context}; ask for at most {context - length} new tokens, or shorten the prompt"
        )
