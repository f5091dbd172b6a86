"""A trained network together with its quantised form, which is what is judged and shipped."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Scheme:
    """How a network was quantised.

    name: int8 (weights per channel and symmetric, activations per tensor with a zero point) or q7 (powers of two);
    output_scale: value of one step of the output, one LSB; layers: for each layer its name, bits, scales and zero
    points, as plain values; calibration: data set, split, samples, seed and the sha256 of their indices.
    """

    name: str
    output_scale: float
    layers: list[dict[str, Any]] = field(default_factory=list)
    calibration: Mapping[str, Any] = field(default_factory=dict)


class QuantizedModel(nn.Module):
    """`forward` is the deployed arithmetic. float_model: the trained network it stands for, in float32.

    graph: its emulation in PyTorch; for int8 a graph with quantize and dequantize operators, as torch.export takes it.
    """

    def __init__(self, float_model: nn.Module, graph: nn.Module, scheme: Scheme) -> None:
        super().__init__()
        self.float_model, self.graph, self.scheme = float_model, graph, scheme
        self.input_shape = getattr(float_model, "input_shape", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x)


def float_network(model: nn.Module) -> nn.Module:
    """The network in floating point: of a quantised model the one that it stands for, else the model itself."""
    return model.float_model if isinstance(model, QuantizedModel) else model
