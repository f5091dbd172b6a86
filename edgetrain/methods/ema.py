"""A moving average of the weights over training, which is what is judged, measured and exported.

    a_t = d_t a_(t-1) + (1 - d_t) w_t,   d_t = min(decay, 1 - t^(-2/3)) while it warms up (t: optimiser steps done)

Polyak and Juditsky 1992; the warm-up is timm's (`ModelEmaV3`, warmup_gamma 1, warmup_power 2/3), which lets the average
forget the first steps. Notable choices:

- Floating-point buffers, as a batch norm's running mean, are averaged as the weights are; counts are copied.
- The average has 32 bits where weights have 16, which could not hold its small steps.
- Validation during training sees the average too; the weights that train are put back before anything is saved.
- Checkpoints hold both: training goes on from the one, and `init_from` and whatever reads a run take the other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from edgetrain.checkpoint import AVERAGED, RANGES
from edgetrain.errors import UserError

WARMUP_POWER = 2 / 3


class EMA:
    """decay: what the average keeps of itself in a step, 0 to 1; warm_up: less of it in the first steps.

    Without a Trainer: `after_step(model, t)` after each optimiser step t = 1, 2, ..., and `finish(model)` at the end.
    Raises UserError for a decay out of range, and for weights that are spread over processes.
    """

    def __init__(self, decay: float = 0.9999, warm_up: bool = True) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"method.ema.decay={decay} is outside 0 to 1; 0.9999 averages about the last 10,000 steps")
        self.decay, self.warm_up = decay, warm_up
        self.step = 0
        self.average: dict[str, Tensor] = {}  # by state-dict key

    def decay_at(self, step: int) -> float:
        """d_t: 0 at the first step of a warm-up, which copies."""
        return min(self.decay, 1 - step**-WARMUP_POWER) if self.warm_up else self.decay

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        """Take the weights after `step` optimiser steps into the average; the first call begins it."""
        current = averaged_tensors(model)
        if not self.average:
            self.average = {name: wide(tensor).clone() for name, tensor in current.items()}
            self.step = step
            return
        if step <= self.step:  # a run that goes on tells where it is before it trains
            return
        self.step = step
        for name, tensor in current.items():
            self.average[name] = self.average[name].to(tensor.device)
        moving = [name for name, tensor in self.average.items() if moves(name, tensor)]
        for name in self.average.keys() - set(moving):
            self.average[name].copy_(current[name])
        targets = [wide(current[name]) for name in moving]
        torch._foreach_lerp_([self.average[name] for name in moving], targets, 1 - self.decay_at(step))

    @contextmanager
    def judged_weights(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model holds the average."""
        current = averaged_tensors(model) if self.average else {}
        with torch.inference_mode(False):  # where Lightning validates; the copies go back into what trains
            before = {name: tensor.detach().clone() for name, tensor in current.items()}
        try:
            self.put(self.average, current)
            yield
        finally:
            self.put(before, current)

    def finish(self, model: nn.Module, context: Any = None) -> nn.Module:
        """The model with the average for its weights. What that changes in its outputs is not bounded."""
        self.put(self.average, averaged_tensors(model))
        return model

    @staticmethod
    def put(values: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for name, value in values.items():
                tensors[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Plain containers; the average is what a run ships."""
        return {"step": self.step, AVERAGED: self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.average = state["step"], dict(state[AVERAGED])


def averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and kept buffers, by state-dict key, each once."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise UserError("method.ema averages whole weights; leave out trainer.strategy=fsdp2, or the method")
    kept = model.state_dict(keep_vars=True)
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return found | {name: buffer for name, buffer in model.named_buffers() if name in kept}


def moves(name: str, tensor: Tensor) -> bool:
    """Counts do not, nor ranges of quantisation, which begin at infinity and are moving averages themselves."""
    return tensor.is_floating_point() and name.rpartition(".")[2] not in RANGES


def wide(tensor: Tensor) -> Tensor:
    """In at least 32 bits."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
