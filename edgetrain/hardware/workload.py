"""A model as a table of layers. Tracing makes it, every device reads it.

A layer's loops are written as a convolution's (`Loops`), whatever its kind:

  conv, depthwise, grouped   themselves; a transposed one as 1x1, from each input pixel to kernel size x channels
  linear       batch, tokens as out_height, features as channels; kernel 1x1
  matmul       attention's products: heads as groups, queries as out_height; the second factor is an input, no weight
  recurrent    steps as out_height, all gates as out_channels, input and hidden features together as in_channels
  pool         channels as groups
  norm, softmax, elementwise, embedding, move     only sizes: one group, kernel 1x1

`move` copies without arithmetic (concatenation, padding, a cache's update); views are no layers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, NamedTuple, TypedDict, get_args

from edgetrain.hardware.formats import FP32, Format

Kind = Literal[
    "conv",
    "depthwise",
    "grouped",
    "linear",
    "matmul",
    "recurrent",
    "pool",
    "elementwise",
    "norm",
    "softmax",
    "embedding",
    "move",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAC_KINDS = frozenset({"conv", "depthwise", "grouped", "linear", "matmul", "recurrent"})


class Loops(NamedTuple):
    """The loop nest of a layer. Channels are those of all groups; the input is what the outputs read, with padding."""

    batch: int = 1
    groups: int = 1
    out_channels: int = 1
    in_channels: int = 1
    out_height: int = 1
    out_width: int = 1
    kernel_height: int = 1
    kernel_width: int = 1
    stride_height: int = 1
    stride_width: int = 1

    @property
    def macs(self) -> int:
        outputs = self.batch * self.out_channels * self.out_height * self.out_width
        return outputs * (self.in_channels // self.groups) * self.kernel_height * self.kernel_width

    @property
    def in_height(self) -> int:
        """Rows of the padded input that the outputs read."""
        return (self.out_height - 1) * self.stride_height + self.kernel_height

    @property
    def in_width(self) -> int:
        return (self.out_width - 1) * self.stride_width + self.kernel_width


@dataclass(frozen=True, slots=True)
class Activation:
    """A tensor that flows between layers. state: it lives on between two invocations (a cache, a hidden state).

    A layer that reads or writes a part of a tensor has the whole's name and the part's shape.
    """

    name: str
    shape: tuple[int, ...]
    format: Format = FP32
    state: bool = False

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Packed, the last byte filled up."""
        return -(-self.elements * self.format.bits // 8)


@dataclass(frozen=True, slots=True)
class Operands:
    """Integer codes of a layer: weights [out_channels, in_channels / groups, kernel_height, kernel_width] and inputs
    [batch, in_channels, height, width] with padding, both as arrays of int64."""

    weights: Any
    inputs: Any


class LayerFacts(TypedDict, total=False):
    """What a module says of its own layers in `layer_facts()`, a plain dict; a key that is left out is as traced.

    weight_format: as in "int4"; density, rank: of every layer that it makes; weights, macs: of its only one; operands:
    the arrays of `Operands`, weights and inputs.
    """

    weight_format: str
    density: float
    rank: int
    weights: int
    macs: int
    operands: tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Layer:
    """A row of the table.

    name: the module's path, made unique (`layers.0.mlp.up_proj`, `layers.0.mlp.up_proj:2` at a second visit);
    macs: multiplications with their addition; operations: two for a MAC, one for every other addition, comparison,
    multiplication or look-up; weights, biases: numbers that are stored for it; weight_name: layers of the same name
    share theirs; density: share of the weights that are not zero; rank: of a factored weight, None for a full one;
    degenerate: its kernel is larger than its input, so that it computes nothing.
    """

    name: str
    kind: Kind
    loops: Loops
    inputs: tuple[Activation, ...] = ()
    outputs: tuple[Activation, ...] = ()
    macs: int = 0
    operations: int = 0
    weights: int = 0
    biases: int = 0
    weight_name: str = ""
    weight_format: Format = FP32
    density: float = 1.0
    rank: int | None = None
    component: str = ""
    degenerate: bool = False
    operands: Operands | None = field(default=None, compare=False, repr=False)

    @property
    def input_format(self) -> Format:
        """Of the first input; of a layer of an imported table without tensors the weights' format."""
        return self.inputs[0].format if self.inputs else self.weight_format

    @property
    def output_format(self) -> Format:
        return self.outputs[0].format if self.outputs else self.input_format

    @property
    def factor_formats(self) -> tuple[Format, Format]:
        """Of the two factors of its MACs: the input and the weights, of a matmul both inputs."""
        second = self.inputs[1].format if self.kind == "matmul" and len(self.inputs) > 1 else self.weight_format
        return self.input_format, second

    @property
    def weight_bytes(self) -> int:
        """Of the weights as stored, dense; biases are counted by whoever knows how a device stores them."""
        return -(-self.weights * self.weight_format.bits // 8)


@dataclass(frozen=True)
class Workload:
    """Layers in the order in which they run. inputs, outputs: names of the activations that enter and leave."""

    name: str
    layers: tuple[Layer, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def weight_owners(self) -> tuple[Layer, ...]:
        """The layers that have weights or biases; of those that share theirs the first that stores most."""
        owners: dict[str, Layer] = {}
        for layer in self.layers:
            name = layer.weight_name or layer.name
            if layer.weights + layer.biases > (owners[name].weights + owners[name].biases if name in owners else 0):
                owners[name] = layer
        # weight[0:50] is a part of weight, where that is stored whole
        parts = {name for name in owners if "[" in name and name.partition("[")[0] in owners}
        return tuple(layer for name, layer in owners.items() if name not in parts)

    @property
    def weights(self) -> int:
        """Stored numbers, biases with them, shared ones once."""
        return sum(layer.weights + layer.biases for layer in self.weight_owners)

    @cached_property
    def activations(self) -> dict[str, Activation]:
        """Every tensor that a layer reads or writes, by name; of its parts the largest."""
        tensors: dict[str, Activation] = {}
        for layer in self.layers:
            for tensor in (*layer.inputs, *layer.outputs):
                if tensor.name not in tensors or tensor.elements > tensors[tensor.name].elements:
                    tensors[tensor.name] = tensor
        return tensors

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer.component for layer in self.layers))

    def component(self, name: str) -> "Workload":
        """The layers of one component as a workload of their own."""
        layers = tuple(layer for layer in self.layers if layer.component == name)
        names = {tensor.name for layer in layers for tensor in (*layer.inputs, *layer.outputs)}
        inputs, outputs = (tuple(other for other in side if other in names) for side in (self.inputs, self.outputs))
        return Workload(f"{self.name}.{name}" if name else self.name, layers, inputs, outputs)

    def map(self, change: Callable[[Layer], Layer]) -> "Workload":
        return replace(self, layers=tuple(change(layer) for layer in self.layers))

    def with_formats(self, weights: Format | None = None, activations: Format | None = None) -> "Workload":
        """All weights or activations in another format."""

        def changed(layer: Layer) -> Layer:
            if activations is not None:
                inputs = tuple(replace(tensor, format=activations) for tensor in layer.inputs)
                outputs = tuple(replace(tensor, format=activations) for tensor in layer.outputs)
                layer = replace(layer, inputs=inputs, outputs=outputs)
            return layer if weights is None else replace(layer, weight_format=weights)

        return self.map(changed)

    def assuming(self, format: Format) -> "Workload":
        """What is floating point in another format; what is an integer already (a quantised layer) stays."""

        def integer(tensor: Activation) -> Activation:
            return replace(tensor, format=format) if tensor.format.is_float else tensor

        def changed(layer: Layer) -> Layer:
            return replace(
                layer,
                inputs=tuple(map(integer, layer.inputs)),
                outputs=tuple(map(integer, layer.outputs)),
                weight_format=format if layer.weight_format.is_float else layer.weight_format,
            )

        return self.map(changed)
