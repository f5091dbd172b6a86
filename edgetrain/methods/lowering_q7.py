"""The q7 scheme as an integer program: what `methods.q7.Q7Network` computes, number for number."""

import math

import torch
from torch import Tensor
from torch.fx import Node

from edgetrain.methods.lowering_layers import Layers, Weights
from edgetrain.methods.lowering_layout import Format, Frame, Pending, Stored, memory_of
from edgetrain.methods.q7 import Q7Network
from edgetrain.models.integer import AveragePool, Rescale, RightShift


class Q7Walk(Layers):
    """network: with a format for every layer and average."""

    scheme = "q7"

    def __init__(self, network: Q7Network, model: torch.nn.Module, example: Tensor) -> None:
        super().__init__(network.graph, model, example)
        self.network = network

    def power_of_two(self, name: str) -> Format:
        return Format(2.0 ** -self.network.fractions[name], 0)

    def stored(self, source: Node, node: Node) -> Stored:
        """What a first layer reads is rounded to the format that was chosen for it."""
        held = self.held.get(source.name)
        if isinstance(held, Pending) and held.own is None and source.name in self.network.fractions:
            return self.written(held, self.power_of_two(source.name))
        return super().stored(source, node)

    def fraction(self, value: str) -> int:
        return -round(math.log2(self.values[value].scale))

    def weights(self, node: Node, source: Stored) -> Weights:
        layer = self.network.layers[node.name]
        bias, bias_shift, out_shift = layer.shifts(self.fraction(source.value), self.network.fractions[node.name])

        def rescaled(form: Format) -> tuple[Tensor, Rescale]:
            return bias.int() << bias_shift, RightShift(out_shift)

        return Weights(layer.weight, rescaled, self.power_of_two(node.name))

    def average(
        self, node: Node, source: Stored, frame: Frame, kernel: tuple[int, int], stride: tuple[int, int]
    ) -> Pending:
        shift = self.network.fractions[node.name] - self.fraction(source.value)
        shape = (1, 1, frame.shape[2])

        def write(form: Format, low: float, high: float) -> str:
            fields = {"kernel": kernel, "stride": stride, "left_shift": shift}
            return self.note(AveragePool, self.name(node), (source.value,), shape, form, (low, high), **fields)

        places = memory_of(shape).reshape(self.results[node.name])
        return Pending(write, places, self.power_of_two(node.name), True)
