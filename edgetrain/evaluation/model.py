"""What evaluation asks of any causal language model: its context, its exits, its logits position by position."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.models.llama import Llama
from edgetrain.ops.hidden_states import captured_hidden_states
from edgetrain.tasks.predictions import logits_of

Logits = Callable[[int, slice], Tensor]


def context_of(model: nn.Module) -> int | None:
    """The longest sequence that the model reads, in tokens; None when it does not say."""
    config = getattr(model, "config", None)
    return getattr(model, "context", None) or getattr(config, "max_position_embeddings", None)


def layers_of(model: nn.Module) -> int:
    """Layers as they run, each an exit; 0 for a model that is not arranged like Llama and cannot be left early."""
    blocks = getattr(getattr(model, "model", None), "layers", ())
    if not (len(blocks) and hasattr(model, "lm_head") and hasattr(model.model, "norm")):
        return 0
    return getattr(model, "layers", len(blocks))


def check_exit(model: nn.Module, layer: int | None, key: str) -> None:
    """Raises UserError, naming `key`, when the model cannot be left after that layer."""
    last = layers_of(model)
    if layer is not None and not 1 <= layer <= last:
        has = f"has layers 1 to {last}" if last else f"({type(model).__name__}) has no layers that can be left early"
        raise UserError(f"{key}={layer}: the model {has}")


@torch.inference_mode()
def read(model: nn.Module, tokens: Tensor, exit_layer: int | None = None) -> Logits:
    """The model's reading of int64 tokens [batch, n], as a function of row and positions to logits [positions, vocab].

    Leaving after `exit_layer` if given. Only what is asked for passes the head, where the model has one apart: all
    logits of 8 x 2,048 tokens and a vocabulary of 32,000 would be 2 GB.
    """
    if isinstance(model, Llama):
        states = model.run_layers(model.embed(tokens), 0, exit_layer or model.layers)
    elif layers_of(model):
        with captured_hidden_states(model.model.layers) as every:
            model.model(tokens)
        states = every[(exit_layer or len(every)) - 1]
    else:
        logits = logits_of(model(tokens))
        return lambda row, positions: logits[row, positions].float()
    return torch.inference_mode()(lambda row, part: model.lm_head(model.model.norm(states[row, part])).float())
