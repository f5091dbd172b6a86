"""Layers, pools and clips as operations, in what both schemes share."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from edgetrain.methods.lowering_layout import PADDING, Format, Frame, Pending, Shape, Stored, memory_of
from edgetrain.methods.lowering_operators import (
    CLIPS,
    CONVOLUTIONS,
    GLOBAL_AVERAGES,
    MAX_POOLS,
    PADS,
    RESHAPES,
    SAME,
    aten,
    clip_bounds,
    convolution_arguments,
    padding_arguments,
    pool_arguments,
)
from edgetrain.methods.lowering_walk import Walk
from edgetrain.models.integer import Clip, Convolution, Depthwise, FullyConnected, MaxPool, Operation, Rescale


@dataclass(frozen=True)
class Weights:
    """Of a layer. weight: int8 as PyTorch has it; rescaled: bias int32 and rescaling for the format of the output;
    own: that format, where the layer decides it."""

    weight: Tensor
    rescaled: Callable[[Format], tuple[Tensor, Rescale]]
    own: Format | None = None


class Layers(Walk):
    """A walk that knows these operators. Subclasses give a layer's numbers, and averages."""

    known = (*SAME, *RESHAPES, *CLIPS, *CONVOLUTIONS, aten.linear.default, *MAX_POOLS, *GLOBAL_AVERAGES)

    def visit(self, node: Node) -> Stored | Pending:
        target = node.target
        if target in SAME:
            return self.held[node.args[0].name]
        if target in RESHAPES:
            return self.moved(node)
        if target in CLIPS:
            return self.clip(node)
        if target in CONVOLUTIONS:
            return self.convolution(node)
        if target is aten.linear.default:
            return self.linear(node)
        if target in MAX_POOLS:
            return self.max_pool(node)
        return self.global_average(node)

    @abstractmethod
    def weights(self, node: Node, source: Stored) -> Weights:
        """Of a convolution or linear layer that reads `source`."""

    @abstractmethod
    def average(
        self, node: Node, source: Stored, frame: Frame, kernel: tuple[int, int], stride: tuple[int, int]
    ) -> Pending:
        """Over windows that are wholly there."""

    def moved(self, node: Node) -> Stored | Pending:
        """The same numbers in another shape."""
        held = self.held[node.args[0].name]
        if node.target in PADS:
            pads, value = padding_arguments(node)
            if value != 0:
                raise self.impossible(node, "it pads with something else than zeros")
            return replace(held, places=F.pad(held.places, pads, value=PADDING))
        args = torch.fx.node.map_arg(node.args[1:], lambda arg: self.results[arg.name])  # such as the batch's size
        return replace(held, places=node.target(held.places, *args, **node.kwargs))

    def clip(self, node: Node) -> Pending:
        """ReLU, ReLU6, or other bounds; of a layer's sums, or by itself."""
        bounds = clip_bounds(node)
        if not bounds[0] <= 0 <= bounds[1]:
            raise self.impossible(node, "it clips to bounds that 0 is not within")
        held = self.held[node.args[0].name]
        if isinstance(held, Pending):
            return replace(held, low=max(held.low, bounds[0]), high=min(held.high, bounds[1]))
        places = self.in_memory(held)

        def write(form: Format, low: float, high: float) -> str:
            return self.clipped(self.name(node), held, form, (low, high))

        return Pending(write, places, self.format(held.value), False, *bounds)

    def clipped(self, name: str, held: Stored, form: Format, bounds: tuple[float, float]) -> str:
        """A Clip; `form` is that of what it reads."""
        return self.note(Clip, name, (held.value,), self.values[held.value].shape, form, bounds)

    def convolution(self, node: Node) -> Pending:
        source = self.stored(node.args[0], node)
        weights = self.weights(node, source)
        frame = self.frame(node, source)
        stride, padding, dilation, groups = convolution_arguments(node)
        out_channels, in_channels, *kernel = weights.weight.shape
        if set(dilation) != {1}:
            raise self.impossible(node, f"its dilation is {dilation}, and C has 1 only")
        if groups not in (1, out_channels) or (groups > 1 and in_channels > 1):
            raise self.impossible(
                node, f"it has {groups} groups of {in_channels} channels to {out_channels}; C has 1 group, or 1 of each"
            )
        kernel = frame.pair(tuple(kernel), 1)
        window = {"kernel": kernel, "stride": frame.pair(stride, 1), "padding": frame.beyond(padding)}
        weight = weights.weight.view(out_channels, in_channels, *kernel)
        if groups == 1:
            kind, weight = Convolution, weight.permute(0, 2, 3, 1)
        else:
            kind, weight = Depthwise, weight[:, 0].permute(1, 2, 0)
        shape = self.output_shape(node, frame)
        places = memory_of(shape).reshape(self.results[node.name])
        return self.layer(node, kind, source, shape, places, weights, weight.contiguous(), window)

    def linear(self, node: Node) -> Pending:
        source = self.stored(node.args[0], node)
        weights = self.weights(node, source)
        places = self.in_memory(source)
        if places.ndim != 2:
            raise self.impossible(node, f"it reads {list(places.shape[1:])}; flatten that to one axis")
        places = places[0]
        there = places != PADDING
        if len(places[there].unique()) < int(there.sum()):
            raise self.impossible(node, "it reads an element twice")
        outputs = len(weights.weight)
        weight = weights.weight.new_zeros(outputs, self.values[source.value].bytes)
        weight[:, places[there]] = weights.weight[:, there]
        return self.layer(
            node, FullyConnected, source, (1, 1, outputs), torch.arange(outputs)[None], weights, weight, {}
        )

    def layer(
        self,
        node: Node,
        kind: type[Operation],
        source: Stored,
        shape: Shape,
        places: Tensor,
        weights: Weights,
        weight: Tensor,
        window: dict[str, tuple[int, int]],
    ) -> Pending:
        def write(form: Format, low: float, high: float) -> str:
            bias, rescale = weights.rescaled(form)
            fields = {"weight": weight, "bias": bias, "rescale": rescale, **window}
            return self.note(kind, self.name(node), (source.value,), shape, form, (low, high), **fields)

        return Pending(write, places, weights.own, weights.own is not None)

    def max_pool(self, node: Node) -> Pending:
        source = self.stored(node.args[0], node)
        frame = self.frame(node, source)
        kernel, stride, padding, dilation = pool_arguments(node)[:4]
        if set(dilation) != {1} or frame.padded:
            raise self.impossible(node, "it is dilated, or padded by another operator; C pads in the pool itself")
        window = {
            "kernel": frame.pair(kernel, 1),
            "stride": frame.pair(stride, 1),
            "padding": frame.pair(padding, 0),
        }
        shape = self.output_shape(node, frame)

        def write(form: Format, low: float, high: float) -> str:
            return self.note(MaxPool, self.name(node), (source.value,), shape, form, (low, high), **window)

        return Pending(write, memory_of(shape).reshape(self.results[node.name]), self.format(source.value), True)

    def global_average(self, node: Node) -> Pending:
        """Of a mean over height and width, and of adaptive pools to a size that divides theirs."""
        source = self.stored(node.args[0], node)
        dims = source.places.ndim
        if node.target is aten.mean.dim:
            reduced = sorted(axis % dims for axis in node.args[1])
            kept = [axis for axis in range(1, dims) if axis not in reduced]
            if 0 in reduced or len(kept) != 1:
                raise self.impossible(node, "C averages over all axes but the channels")
            source = replace(source, places=source.places.movedim(kept[0], 1))
            outputs = (1,) * len(reduced)
        else:
            outputs = tuple(self.results[node.name][2:])
        frame = self.frame(node, source)
        if frame.padded:
            raise self.impossible(node, "what it averages is padded by another operator")
        sizes = tuple(source.places.shape[2:])
        if any(size % output for size, output in zip(sizes, outputs, strict=True)):
            raise self.impossible(node, f"{list(outputs)} outputs do not divide {list(sizes)} inputs")
        kernel = frame.pair(tuple(size // output for size, output in zip(sizes, outputs, strict=True)), 1)
        return self.average(node, source, frame, kernel, kernel)
