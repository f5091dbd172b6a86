"""LayerSkip training: layer dropout that grows with depth, and one early-exit loss shared by all layers.

Elhoushi et al. 2024, "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding" (arXiv 2404.16710),
section 4.1. Equation numbers below are the paper's. Notable choices:

- Dropped samples are taken out of the batch, so they cost nothing; kept ones are scattered back (eq. 1, no rescaling).
- Everything that depends on progress is a pure function of the global step, and each layer's draw is seeded by
  (seed, step, layer, call): a resumed run, and every rank of a distributed one, draws the same numbers.
- The paper does not say whether the last layer is always on under the rotational curriculum. Here it is by default
  (`train_last_layer`), since otherwise R = L-1 would train the true output once in R steps.
- Works on any model with `model.layers`, `model.norm` and `lm_head` in Hugging Face's arrangement. A layer keeps its
  module and its state-dict keys; only its class gains a forward that drops samples.
"""

import math
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.module_tracker import ModuleTracker

from edgetrain.errors import UserError
from edgetrain.ops.cross_entropy import linear_cross_entropy, weight_type
from edgetrain.ops.targets import flat_rows, supervised_rows

Curriculum = Literal["rotational", "gradual", "none"]

TRACKER = ModuleTracker()  # knows whether a backward pass is running


def depth_scale(layer: int, layers: int) -> float:
    """D(l) of eq. 3: 0 at the first layer, 1 at the last."""
    return math.expm1(layer * math.log(2) / (layers - 1)) if layers > 1 else 0.0


def time_scale(step: int, total_steps: int, schedule: Literal["constant", "exponential"]) -> float:
    """S(t) of eq. 4: 1 for continual training and finetuning, exponential from 0 to 1 for training from scratch."""
    if schedule == "constant" or total_steps <= 1:
        return 1.0
    return math.expm1(min(step, total_steps - 1) * math.log(2) / (total_steps - 1))


def exit_scales(layers: int, e_scale: float) -> list[float]:
    """e(l) of eq. 6: e_scale * (0 + 1 + .. + l), and for the last layer L-1 + e_scale * (0 + .. + L-2)."""
    scales = [e_scale * layer * (layer + 1) / 2 for layer in range(layers)]
    scales[-1] = layers - 1 + e_scale * (layers - 2) * (layers - 1) / 2 if layers > 1 else 1.0
    return scales


def active_exits(
    step: int, layers: int, curriculum: Curriculum, rotation: int, total_steps: int, train_last_layer: bool
) -> list[bool]:
    """C(t, l): which exits are supervised at this step.

    rotational: every `rotation`-th layer, moving on by one each step; gradual: from the last layer downwards, one
    more every total_steps/(2 layers) steps, so that all are on at half time; none: all, always.
    """
    if curriculum == "rotational":
        active = [(layer - step) % rotation == 0 for layer in range(layers)]
    elif curriculum == "gradual":
        active = [2 * layers * step >= total_steps * (layers - layer) for layer in range(layers)]
    else:
        active = [True] * layers
    active[-1] = active[-1] or train_last_layer
    return active


def exit_weights(scales: list[float], active: list[bool]) -> list[float]:
    """Normalised weights of eq. 6; they sum to 1 (all 0 when nothing that is on has a weight)."""
    raw = [scale if on else 0.0 for scale, on in zip(scales, active, strict=True)]
    total = sum(raw)
    return [weight / total for weight in raw] if total else raw


class LayerSkip:
    """The method of section 4.1, on any Llama-family model.

    p_max: dropout probability of the last layer (0 to 1); e_scale: weight of the early exits (0 to 1; 0 is the
    ordinary loss); dropout_schedule: S(t); curriculum and rotation: C(t, l) and its R; total_steps: T, the optimiser
    steps that the schedules span; seed: of the dropout draws.
    """

    wants_hidden_states = True

    def __init__(
        self,
        p_max: float,
        e_scale: float,
        total_steps: int,
        dropout_schedule: Literal["constant", "exponential"] = "constant",
        curriculum: Literal["rotational", "gradual", "none"] = "rotational",
        rotation: int = 8,
        train_last_layer: bool = True,
        seed: int = 0,
    ) -> None:
        for name, value in (("p_max", p_max), ("e_scale", e_scale)):
            if not 0 <= value <= 1:
                raise UserError(f"method.layerskip.{name}={value} is outside 0 to 1")
        if rotation < 1 or total_steps < 1:
            raise UserError(
                f"method.layerskip: rotation={rotation} and total_steps={total_steps} must both be at least 1"
            )
        self.p_max, self.e_scale, self.total_steps = p_max, e_scale, total_steps
        self.dropout_schedule, self.curriculum, self.rotation = dropout_schedule, curriculum, rotation
        self.train_last_layer, self.seed = train_last_layer, seed

    def plan(self, model: nn.Module, data: Any) -> dict[str, Any]:
        return {"layers": len(decoder_layers(model))}

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        layers = decoder_layers(model)
        if len(layers) != plan["layers"]:
            raise UserError(f"method.layerskip was planned for {plan['layers']} layers, the model has {len(layers)}")
        if self.p_max and any(visit.reuse for visit in getattr(model.model, "visits", ())):
            raise UserError(
                "method.layerskip drops samples of one visit whose keys model.share_kv=true needs in another; set "
                "model.share_kv=false, or method.layerskip.p_max=0"
            )
        for layer in layers:
            layer.__class__ = droppable(type(layer))
        self.after_step(model, 0)
        return model

    def after_step(self, model: nn.Module, step: int) -> None:
        """Set every layer's dropout probability for the training step with this number (eq. 2)."""
        layers = decoder_layers(model)
        time = time_scale(step, self.total_steps, self.dropout_schedule)
        for index, layer in enumerate(layers):
            layer.drop_probabilities = []
            layer.drop_key = [self.seed, step, index]
            layer.drop_calls, layer.drop_repeatable = 0, []
        visited = layers_as_they_run(model)
        for depth, layer in enumerate(visited):
            layer.drop_probabilities.append(time * depth_scale(depth, len(visited)) * self.p_max)

    def weights(self, step: int, layers: int) -> list[float]:
        """The loss weight of every layer at this step."""
        active = active_exits(step, layers, self.curriculum, self.rotation, self.total_steps, self.train_last_layer)
        return exit_weights(exit_scales(layers, self.e_scale), active)

    def loss(self, loss: Tensor, context: Any) -> Tensor:
        """J of eq. 5. `loss` is the last layer's; context.hidden_states holds x_1..x_L, each [batch, n, dim]."""
        states = context.hidden_states
        weights = self.weights(context.step, len(states))
        total = loss * weights[-1]
        early = [(state, weight) for state, weight in zip(states[:-1], weights[:-1], strict=True) if weight > 0]
        if not early:
            return total
        asked = supervised_rows(context.batch)
        targets = flat_rows(context.targets, asked)
        norm, head = context.model.model.norm, context.model.lm_head
        rows = torch.cat([norm(flat_rows(state, asked)) for state, _ in early])
        shares = rows.new_tensor([weight / len(targets) for _, weight in early], dtype=weight_type(rows))
        row_weights = shares.repeat_interleave(len(targets))
        return total + linear_cross_entropy(rows, head.weight, targets.repeat(len(early)), row_weights)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The residual blocks. Raises UserError for a model that is not arranged like Llama."""
    try:
        return model.model.layers
    except AttributeError:
        raise UserError(
            f"method.layerskip needs a model with `model.layers`, `model.norm` and `lm_head`, as Llama has; "
            f"{type(model).__name__} is arranged otherwise"
        ) from None


def layers_as_they_run(model: nn.Module) -> list[nn.Module]:
    """A block once for every visit (`models.block_sharing`), so that l and L count visits; else the blocks."""
    blocks = decoder_layers(model)
    visits = getattr(model.model, "visits", None)
    return list(blocks) if visits is None else [blocks[visit.block] for visit in visits]


class DroppableLayer:
    """Mixin before a decoder layer's class: in training, forward runs on the samples that are not dropped."""

    # What Hugging Face's layers are given once a sample; sliced with the batch. Ours is given nothing of that kind.
    batched_arguments = ("attention_mask", "position_ids", "position_embeddings")

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.training or not any(self.drop_probabilities):
            return super().forward(hidden_states, *args, **kwargs)
        batch, call = hidden_states.shape[0], self.drop_call()
        probability = self.drop_probabilities[call % len(self.drop_probabilities)]  # every pass makes all visits
        draw = np.random.default_rng([*self.drop_key, call]).random(batch)
        kept = torch.from_numpy((draw >= probability).nonzero()[0]).to(hidden_states.device)
        if len(kept) == batch:
            return super().forward(hidden_states, *args, **kwargs)
        if len(kept) == 0:  # all parameters have a gradient, 0, or other processes would wait for it for ever
            return hidden_states + 0.0 * sum(w.flatten()[0] for w in self.parameters() if w.requires_grad)
        kwargs |= {name: take(kwargs[name], kept, batch) for name in self.batched_arguments if name in kwargs}
        output = super().forward(hidden_states[kept], *args, **kwargs)
        return hidden_states.index_copy(0, kept, output.to(hidden_states.dtype))

    def drop_call(self) -> int:
        """The number of this forward in the step; run again in a backward pass, that of the forward it repeats.

        Activations are recomputed in reverse order, so that is the last one that was not repeated yet.
        """
        if TRACKER.is_bw:
            return self.drop_repeatable.pop()
        self.drop_repeatable.append(self.drop_calls)
        self.drop_calls += 1
        return self.drop_repeatable[-1]


def take(value: Any, kept: Tensor, batch: int) -> Any:
    """Rows `kept` of a tensor, or of each in a tuple, that has one row a sample; what broadcasts stays as it is."""
    if isinstance(value, tuple):
        return tuple(take(item, kept, batch) for item in value)
    if isinstance(value, Tensor) and batch > 1 and value.shape[0] == batch:
        return value[kept]
    return value


@lru_cache
def droppable(layer_class: type[nn.Module]) -> type[nn.Module]:
    """The layer's class with `DroppableLayer` before it; one that has it already stays, so `apply` may repeat."""
    if issubclass(layer_class, DroppableLayer):
        return layer_class
    return type(f"Droppable{layer_class.__name__}", (DroppableLayer, layer_class), {})
