"""The scheme of the first CMSIS-NN on a trained network: 8 bits, powers of two, one format a tensor, no zero points.

Lai, Suda & Chandra 2018 (arXiv 1801.06601, section 3), and the quantisation guide released with Hello Edge (Zhang et
al. 2017, arXiv 1711.07128):

1. Batch norms are folded. Weights and biases of a layer get the most fractional bits that hold their largest value.
2. The formats of activations are swept one by one from the input to the output: up to that place the network runs in
   whole numbers, after it in floating point with the rounded weights, on the calibration samples. From the format that
   holds the largest value seen up to SWEPT bits finer, which clips the largest values, the one is kept whose output is
   nearest to the float network's in squares (the guide asks for the best accuracy, which needs labels and is coarser).
3. A layer's sums must be shifted right by 1 or more, biases left by 0 or more: formats that break that are coarser.

It holds feed-forward networks: convolutions, linear layers, ReLU, average and max pooling, and what only moves numbers.
"""

from collections.abc import Iterable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgetrain.errors import UserError
from edgetrain.methods.calibration import draw
from edgetrain.methods.quantize_capture import (
    PRODUCTS,
    batch_norms,
    capture,
    folded,
    graph_of,
    in_front_end,
    module_path,
)
from edgetrain.models.quantized import QuantizedModel, Scheme
from edgetrain.ops import q7

SWEPT = 3  # bits finer than what holds the largest value
aten = torch.ops.aten
RELUS = (aten.relu.default, aten.relu_.default)
AVERAGES = (aten.adaptive_avg_pool2d.default, aten.mean.dim)
MOVES = (  # the same numbers in another shape
    *(aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int),
    *(aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.slice.Tensor, aten.select.int),
    *(
        aten.movedim.int,
        aten.unflatten.int,
        aten.contiguous.default,
        aten.clone.default,
        aten.dropout.default,
        aten.pad.default,
    ),
    *(aten.constant_pad_nd.default, aten.alias.default),
)


class Fixed(NamedTuple):
    """Whole numbers, int8, with so many fractional bits."""

    numbers: Tensor
    fraction: int

    def value(self) -> Tensor:
        return self.numbers.float() * 2.0**-self.fraction


Value = Fixed | Tensor


class Q7Layer(nn.Module):
    """A convolution or linear layer's weight and bias in 8 bits, with their fractional bits."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.weight_fraction = q7.fraction_bits(weight.abs().max().item())
        self.bias_fraction = q7.fraction_bits(bias.abs().max().item())
        self.register_buffer("weight", q7.quantize(weight, self.weight_fraction))
        self.register_buffer("float_bias", bias)

    def shifts(self, given: int, wanted: int) -> tuple[Tensor, int, int]:
        """Bias int8, bias_shift >= 0 and out_shift >= 1 for an input of `given` and an output of `wanted` bits."""
        sums = given + self.weight_fraction
        fraction = min(self.bias_fraction, sums)
        return q7.quantize(self.float_bias, fraction), sums - fraction, sums - wanted

    def finest(self, given: int) -> int:
        """Most fractional bits of the output."""
        return given + self.weight_fraction - 1


class Q7Network(nn.Module):
    """A captured network in whole numbers; takes and gives the floats that those stand for.

    fractions: fractional bits of the input and of the output of every layer and average, by the node's name. A layer
    without them runs in floating point.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleDict()
        for node in graph.graph.nodes:
            if node.op == "call_function" and not in_front_end(node):
                check_operator(node)
            if node.target in PRODUCTS and not in_front_end(node):
                weight, bias = (
                    attrgetter(arg.target)(graph).detach() if isinstance(arg, Node) else None
                    for arg in (*node.args, None)[1:3]
                )
                self.layers[node.name] = Q7Layer(weight, bias)
        self.fractions: dict[str, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        values = self.run({}, self.graph.graph.nodes, x)
        return float_of(values["output"])

    def run(self, values: dict[str, Value], nodes: Iterable[Node], x: Tensor) -> dict[str, Value]:
        """`values` of the nodes before, and of these."""
        values = dict(values)
        for node in nodes:
            if node.op == "placeholder":
                values[node.name] = x
            elif node.op == "output":
                values["output"] = values[node.args[0][0].name]
            elif node.op == "get_attr":
                values[node.name] = attrgetter(node.target)(self.graph)
            else:
                values[node.name] = self.apply(node, values)
        return values

    def apply(self, node: Node, values: dict[str, Value]) -> Value:
        given = values[node.args[0].name] if isinstance(node.args[0], Node) else None
        if node.name in self.layers:
            return self.product(node, given)
        if node.target in AVERAGES and isinstance(given, Fixed) and node.name in self.fractions:
            fraction = self.fractions[node.name]
            mean = q7.average_pool(given.numbers, fraction - given.fraction)
            flat = node.target is aten.mean.dim and not (len(node.args) > 2 and node.args[2])
            return Fixed(mean if flat else mean[:, :, None, None], fraction)
        if isinstance(given, Fixed) and node.target in RELUS:
            return given._replace(numbers=q7.relu(given.numbers))
        if isinstance(given, Fixed) and node.target in MOVES:
            return given._replace(numbers=node.target(given.numbers, *node.args[1:], **node.kwargs))
        if isinstance(given, Fixed) and node.target is aten.max_pool2d.default:
            return given._replace(numbers=node.target(given.numbers.float(), *node.args[1:]).to(torch.int8))
        read = [float_of(values[arg.name]) if isinstance(arg, Node) else arg for arg in node.args]
        return node.target(*read, **node.kwargs)

    def product(self, node: Node, given: Value) -> Value:
        layer: Q7Layer = self.layers[node.name]
        if isinstance(given, Tensor) and node.args[0].name in self.fractions:
            fraction = self.fractions[node.args[0].name]
            given = Fixed(q7.quantize(given, fraction), fraction)
        if not isinstance(given, Fixed) or node.name not in self.fractions:
            weight = Fixed(layer.weight, layer.weight_fraction).value()
            return node.target(float_of(given), weight, layer.float_bias, *node.args[3:])
        bias, bias_shift, out_shift = layer.shifts(given.fraction, self.fractions[node.name])
        if node.target is aten.linear.default:
            out = q7.fully_connected(given.numbers, layer.weight, bias, bias_shift, out_shift)
        else:
            stride, padding, _, groups = convolution_arguments(node)
            sides = (padding[1], padding[1], padding[0], padding[0])
            out = q7.convolution(given.numbers, layer.weight, bias, bias_shift, out_shift, stride, sides, groups)
        return Fixed(out, self.fractions[node.name])


def check_q7(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
    """Raises UserError for a network that is not feed-forward, or that cannot be captured."""
    plain = folded(model, batch_norms(model, capture(model, example_inputs)))
    Q7Network(graph_of(capture(plain, example_inputs)))


def power_of_two(
    model: nn.Module, example_inputs: tuple[Tensor, ...], data: Any, samples: int = 256, seed: int = 0
) -> QuantizedModel:
    """The trained network in the q7 scheme; the arguments are `post_training`'s.

    Raises UserError for a network that is not feed-forward, or that cannot be captured.
    """
    float_model = folded(model, batch_norms(model, capture(model, example_inputs)))
    calibration = draw(data, samples, seed)
    network = Q7Network(graph_of(capture(float_model, example_inputs)))
    with torch.no_grad():
        sweep(network, calibration.inputs)
    output = network.graph.graph.find_nodes(op="output")[0].args[0][0]
    last = next(node for node in chain(output) if node.name in network.fractions)
    scheme = Scheme("q7", 2.0 ** -network.fractions[last.name], layer_facts(network), calibration.facts)
    return QuantizedModel(float_model, network, scheme)


def sweep(network: Q7Network, inputs: Tensor) -> None:
    """Choose every format, from the input to the output, as step 2 above."""
    nodes = list(network.graph.graph.nodes)
    exact = torch.fx.Interpreter(network.graph, garbage_collect_values=False)
    wanted = exact.run(inputs)
    largest = {node.name: value.abs().max().item() for node, value in exact.env.items() if isinstance(value, Tensor)}
    values: dict[str, Value] = {}
    done = 0
    for place, node in enumerate(nodes):
        for swept in formatted(network, node):
            values, done = network.run(values, nodes[done:place], inputs), place
            coarsest, finest = bounds(network, swept, values, largest)
            errors = {}
            for fraction in range(coarsest, finest + 1):
                network.fractions[swept.name] = fraction
                output = float_of(network.run(values, nodes[place:], inputs)["output"])
                errors[fraction] = (output - wanted).square().mean().item()
            network.fractions[swept.name] = min(errors, key=errors.get)


def formatted(network: Q7Network, node: Node) -> list[Node]:
    """The tensors whose formats are chosen when the sweep comes to a node: what a first layer reads, its own output."""
    if node.name in network.layers:
        source = node.args[0]
        first = not any(before.name in network.fractions for before in chain(source))
        return [source, node] if first else [node]
    return [node] if node.target in AVERAGES and not in_front_end(node) else []


def bounds(network: Q7Network, node: Node, values: dict[str, Value], largest: dict[str, float]) -> tuple[int, int]:
    """Coarsest and finest format that the sweep tries."""
    users = list(node.users)
    seen = users[0] if len(users) == 1 and users[0].target in RELUS else node  # what ReLU takes away may be clipped
    fits = q7.fraction_bits(largest[seen.name])
    if node.name not in network.layers and node.target not in AVERAGES:
        return fits, fits + SWEPT
    given = values.get(node.args[0].name)
    fraction = given.fraction if isinstance(given, Fixed) else network.fractions[node.args[0].name]
    if node.target in AVERAGES:
        return max(fits, fraction), max(fits + SWEPT, fraction)
    most = network.layers[node.name].finest(fraction)
    return min(fits, most), min(fits + SWEPT, most)


def chain(node: Node) -> Iterable[Node]:
    """A node and those that it comes from, backwards along first arguments."""
    while isinstance(node, Node):
        yield node
        node = node.args[0] if node.args else None


def float_of(value: Value) -> Tensor:
    return value.value() if isinstance(value, Fixed) else value


def convolution_arguments(node: Node) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
    """stride, padding, dilation and groups of a captured conv2d."""
    given = dict(zip(("stride", "padding", "dilation", "groups"), node.args[3:], strict=False)) | node.kwargs
    stride, padding, dilation = (
        tuple(given.get(name, (value, value))) for name, value in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    return stride, padding, dilation, given.get("groups", 1)


def check_operator(node: Node) -> None:
    """Raises UserError for what whole numbers with powers of two have no kernel for here."""
    known = (*PRODUCTS, *RELUS, *AVERAGES, *MOVES, aten.max_pool2d.default)
    fits = node.target in known and node.target is not aten.conv1d.default
    if node.target is aten.conv2d.default:
        fits = convolution_arguments(node)[2] == (1, 1)
    if node.target is aten.adaptive_avg_pool2d.default:
        fits = list(node.args[1]) == [1, 1]
    if node.target is aten.mean.dim:
        fits = sorted(axis % 4 for axis in node.args[1]) == [2, 3] and node.args[0].meta["val"].ndim == 4
    if not fits:
        raise UserError(
            f"method.quantize.scheme=q7 holds feed-forward networks of convolutions, linear layers, ReLU and pooling, "
            f"and {module_path(node) or 'the model'} has {node.name}; scheme=int8 holds more"
        )


def layer_facts(network: Q7Network) -> list[dict[str, Any]]:
    """Of each layer: name, operator, bits, fractional bits of its numbers, and the two shifts of CMSIS-NN."""
    nodes = {node.name: node for node in network.graph.graph.nodes}
    rows = []
    for name, layer in network.layers.items():
        node = nodes[name]
        given = next(
            network.fractions[before.name] for before in chain(node.args[0]) if before.name in network.fractions
        )
        wanted = network.fractions[name]
        _, bias_shift, out_shift = layer.shifts(given, wanted)
        rows.append(
            {
                "layer": module_path(node) or name,
                "operator": node.target._opname,
                "bits": 8,
                "weight_fraction": layer.weight_fraction,
                "bias_fraction": given + layer.weight_fraction - bias_shift,
                "input_fraction": given,
                "output_fraction": wanted,
                "bias_shift": bias_shift,
                "out_shift": out_shift,
            }
        )
    return rows
