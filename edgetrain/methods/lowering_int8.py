"""The int8 scheme as an integer program: quantize and dequantize operators become whole numbers and multipliers.

A layer's sums have the scale of its input times that of its weights, and go to the output's by a multiplier (Jacob et
al. 2018, arXiv 1712.05877, section 2.2). An average whose output has another scale than its input, which the pooling of
CMSIS-NN cannot give, is a depthwise convolution with equal weights.
"""

import math
from operator import attrgetter

import torch
from torch import Tensor
from torch.fx import Node

from edgetrain.methods.lowering_layers import Layers, Weights
from edgetrain.methods.lowering_layout import Format, Frame, Pending, Shape, Stored, memory_of
from edgetrain.methods.lowering_operators import ADDITIONS, AVERAGE_POOLS, operator, pool_arguments
from edgetrain.models.integer import Add, AveragePool, Depthwise, Multipliers, Rescale
from edgetrain.ops.int8 import add_multipliers, quantize_multiplier

QUANTIZE, DEQUANTIZE, WEIGHT = "quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel"
TOP, LARGEST = 127, 2**31 - 1  # of 8 bits and of 32
ONE = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0)}  # the window that is one number


class Int8Walk(Layers):
    """Of a graph that `methods.quantize_graph.quantized` made."""

    scheme = "int8"
    known = (*Layers.known, *AVERAGE_POOLS, *ADDITIONS)
    roundings = (QUANTIZE, DEQUANTIZE)

    def visit(self, node: Node) -> Stored | Pending:
        if operator(node) == QUANTIZE:
            return self.quantize(node)
        if operator(node) == DEQUANTIZE:
            return self.stored(node.args[0], node)
        if node.target in ADDITIONS:
            return self.add(node)
        if node.target in AVERAGE_POOLS:
            return self.average_pool(node)
        return super().visit(node)

    def quantize(self, node: Node) -> Stored:
        held, form = self.held[node.args[0].name], Format(float(node.args[1]), int(node.args[2]))
        if isinstance(held, Pending):
            if not held.fixed or held.own == form:
                return self.written(held, form)
            held = self.written(held, held.own)
        return held if self.format(held.value) == form else self.rescaled(held, form)

    def weights(self, node: Node, source: Stored) -> Weights:
        """Raises UserError for a layer that was left in floating point."""
        dequantized = node.args[1]
        if operator(dequantized) != WEIGHT:
            raise self.impossible(
                node,
                "its weight was left in floating point, as of a layer that stands in two places; give each its own",
            )
        weight, scales = (attrgetter(arg.target)(self.graph) for arg in dequantized.args[:2])
        given = self.format(source.value)
        step = scales * given.scale  # float32, as the biases were rounded
        bias = torch.zeros(len(weight), dtype=torch.float64)
        if len(node.args) > 2 and node.args[2] is not None:
            bias = (attrgetter(node.args[2].target)(self.graph).double() / step.double()).round()
            # A channel whose weights are about 0 has tiny steps; its sums have to stay within 32 bits.
            room = LARGEST - weight.flatten(1).double().abs().sum(1) * (128 + abs(given.zero_point))
            bias = bias.clamp(-room, room)

        def rescaled(form: Format) -> tuple[Tensor, Rescale]:
            return bias.int(), multipliers(scales.double() * given.scale / form.scale)

        return Weights(weight, rescaled)

    def average_pool(self, node: Node) -> Pending:
        source = self.stored(node.args[0], node)
        frame = self.frame(node, source)
        kernel, stride, padding, _, count_padding, divisor = pool_arguments(node)
        kernel, stride, padding = frame.pair(kernel, 1), frame.pair(stride, 1), frame.pair(padding, 0)
        shape = self.output_shape(node, frame)
        read = [(out - 1) * step + width for out, step, width in zip(shape, stride, kernel, strict=False)]
        beyond = [  # rows below and columns right that the last window reads
            end - near - size for end, near, size in zip(read, padding, frame.shape, strict=False)
        ]
        whole = padding == (0, 0) and max(beyond) <= 0
        counted = count_padding and all(far <= near for far, near in zip(beyond, padding, strict=True))
        if frame.padded:
            raise self.impossible(node, "what it averages is padded by another operator; pad in the pool itself")
        return self.averaged(
            node,
            source,
            shape,
            {"kernel": kernel, "stride": stride, "padding": padding},
            divisor is None and (whole or not count_padding or padding == (0, 0)),
            divisor or (math.prod(kernel) if whole or counted else None),
        )

    def average(
        self, node: Node, source: Stored, frame: Frame, kernel: tuple[int, int], stride: tuple[int, int]
    ) -> Pending:
        window = {"kernel": kernel, "stride": stride, "padding": (0, 0)}
        height, width = (size // step for size, step in zip(frame.shape, stride, strict=False))
        return self.averaged(node, source, (height, width, frame.shape[2]), window, True, math.prod(kernel))

    def averaged(
        self,
        node: Node,
        source: Stored,
        shape: Shape,
        window: dict[str, tuple[int, int]],
        there: bool,
        divisor: int | None,
    ) -> Pending:
        """there: a window is divided by what of it is there; divisor: the number that divides all, None for none."""
        if not there and divisor is None:
            raise self.impossible(
                node, "it divides windows at the border by different numbers; leave padding out of it"
            )
        given = self.format(source.value)

        def write(form: Format, low: float, high: float) -> str:
            if there and form == given:
                return self.note(AveragePool, self.name(node), (source.value,), shape, form, (low, high), **window)
            return self.scaled_sum(self.name(node), source, shape, window, divisor, form, (low, high))

        places = memory_of(shape).reshape(self.results[node.name])
        return Pending(write, places, given, fixed=divisor is None)

    def rescaled(self, held: Stored, form: Format) -> Stored:
        """The same reals in another format."""
        name, shape = f"{held.value}.rescale", self.values[held.value].shape
        return Stored(self.scaled_sum(name, held, shape, ONE, 1, form, (-torch.inf, torch.inf)), self.in_memory(held))

    def clipped(self, name: str, held: Stored, form: Format, bounds: tuple[float, float]) -> str:
        if form == self.format(held.value):
            return super().clipped(name, held, form, bounds)
        return self.scaled_sum(name, held, self.values[held.value].shape, ONE, 1, form, bounds)

    def scaled_sum(
        self,
        name: str,
        source: Stored,
        shape: Shape,
        window: dict[str, tuple[int, int]],
        divisor: int,
        form: Format,
        bounds: tuple[float, float],
    ) -> str:
        """The sum of a window divided by a number, in any format: a depthwise convolution.

        The larger its sums, the less is lost when they are rounded the first time; so its weights are the largest.
        """
        channels = shape[2]
        scale = self.format(source.value).scale / (TOP * divisor * form.scale)
        return self.note(
            Depthwise,
            name,
            (source.value,),
            shape,
            form,
            bounds,
            weight=torch.full((*window["kernel"], channels), TOP, dtype=torch.int8),
            bias=torch.zeros(channels, dtype=torch.int32),
            rescale=multipliers(torch.full((channels,), scale, dtype=torch.float64)),
            **window,
        )

    def add(self, node: Node) -> Pending:
        if node.kwargs.get("alpha", 1) != 1:
            raise self.impossible(node, "it adds a multiple; scale that in the layer before")
        first, second = (self.stored(arg, node) for arg in node.args[:2])
        places = self.in_memory(first)
        shape = self.values[first.value].shape
        same = torch.equal(places, self.in_memory(second)) if places.shape == second.places.shape else False
        if not same or self.values[second.value].bytes != self.values[first.value].bytes:
            raise self.impossible(node, "its two inputs are not of one shape and one order in memory")

        def write(form: Format, low: float, high: float) -> str:
            scales = (self.format(each.value).scale for each in (first, second))
            left, right, result = add_multipliers(*scales, form.scale)
            fields = {"first": left, "second": right, "result": result}
            return self.note(Add, self.name(node), (first.value, second.value), shape, form, (low, high), **fields)

        return Pending(write, places)


def multipliers(scales: Tensor) -> Multipliers:
    """Of each channel. scales: float64 [channels]."""
    pairs = torch.tensor([quantize_multiplier(scale) for scale in scales.tolist()], dtype=torch.int32)
    return Multipliers(pairs[:, 0].contiguous(), pairs[:, 1].contiguous())
