"""Training that rounds as the 8-bit network will: fake quantisation of weights and of what layers read.

Jacob et al. 2018 (arXiv 1712.05877, section 3), Krishnamoorthi 2018 (arXiv 1806.08342, section 3.2). Notable choices:

- Each output channel of a weight has its own symmetric grid, and folding a batch norm multiplies a channel: rounding
  before folding is rounding after it. So the weight is rounded as it stands, and its batch norm trains as always.
- Ranges of activations are moving averages of each batch's smallest and largest value (Jacob, section 3.1). They are
  kept from the first step on, also while nothing is rounded yet, and lie in the checkpoint as buffers of the layers.
- Activations are rounded where a layer reads them, and at the output. Sums and averages in between are rounded in the
  deployed graph only.
- A layer keeps its module and its state-dict keys; only its class changes. Its parameter `weight` is what an optimiser
  sees, its attribute `weight` what its forward reads.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from edgetrain.checkpoint import RANGES
from edgetrain.ops.fake_quantization import fake_quantize_activation, fake_quantize_weight

MOMENTUM = 0.01  # of a batch's range in the moving average
INPUT, OUTPUT = RANGES


@dataclass
class Rounding:
    """How layers round at present. on: from the step that the user chose; bits: of weights."""

    bits: int = 8
    on: bool = False


class RoundingLayer:
    """Mixin before the class of a convolution or linear layer."""

    rounding: Rounding

    @property
    def weight(self) -> Tensor:
        weight = self._parameters["weight"]
        if not self.rounding.on or torch.compiler.is_exporting():
            return weight
        return fake_quantize_weight(weight, self.rounding.bits)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(self.rounded(x, INPUT))
        return self.rounded(y, OUTPUT) if OUTPUT in self._buffers else y

    def rounded(self, x: Tensor, name: str) -> Tensor:
        """Watch the range of x while training; round x where that is on and a range is known."""
        if torch.compiler.is_exporting():
            return x
        bounds = self._buffers[name]
        if self.training:
            seen = torch.stack(x.detach().float().aminmax())
            bounds.copy_(torch.where(bounds.isfinite(), torch.lerp(bounds, seen, MOMENTUM), seen))
        elif not bounds.isfinite().all():
            return x
        return fake_quantize_activation(x.float(), *bounds).to(x.dtype) if self.rounding.on else x


@lru_cache
def rounding_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    return type(f"Rounding{layer_class.__name__}", (RoundingLayer, layer_class), {})


def round_layers(model: nn.Module, names: Iterable[str], output: str | None, rounding: Rounding) -> None:
    """Let those layers round; `output` is the name of the one that gives the output."""
    for name in names:
        layer = model.get_submodule(name)
        layer.__class__ = rounding_class(type(layer))
        layer.rounding = rounding
        for buffer in (INPUT, OUTPUT) if name == output else (INPUT,):
            layer.register_buffer(
                buffer, torch.tensor([torch.inf, -torch.inf], device=layer._parameters["weight"].device)
            )


def learnt_ranges(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Ranges of layers' inputs by the layer's name, and of the output by ""; those that training has seen."""
    found = {}
    for name, module in model.named_modules():
        for buffer in (INPUT, OUTPUT) if isinstance(module, RoundingLayer) else ():
            bounds = module._buffers.get(buffer)
            if bounds is not None and bounds.isfinite().all():
                found["" if buffer == OUTPUT else name] = tuple(bounds.tolist())
    return found


def plain_layers(model: nn.Module) -> None:
    """Undo `round_layers`."""
    for module in model.modules():
        if isinstance(module, RoundingLayer):
            module.__class__ = type(module).__mro__[2]
            del module.rounding
            for name in (INPUT, OUTPUT):
                module._buffers.pop(name, None)
