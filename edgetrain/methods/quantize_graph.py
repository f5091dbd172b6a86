"""Eight bits on the graph of a network: quantize and dequantize operators where ExecuTorch's XNNPACK computes in int8.

Weights are symmetric with one scale an output channel, activations have one scale and zero point a tensor (Jacob et al.
2018, arXiv 1712.05877, section 2; Krishnamoorthi 2018, arXiv 1806.08342, section 3). What XNNPACK has no int8 operator
for stays in floating point between a dequantize and a quantize, and so does a submodule named `front_end`.
"""

import dataclasses
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgetrain.errors import UserError
from edgetrain.methods.calibration import Calibration
from edgetrain.methods.quantize_capture import PRODUCTS, capture, in_front_end, module_path, quiet, without_mode
from edgetrain.models.quantized import QuantizedModel, Scheme
from edgetrain.ops.fake_quantization import SMALLEST_SCALE

Ranges = dict[str, tuple[float, float]]

INT32 = 2.0**31 - 128  # the largest that float32 has of its numbers
SHAPES_ONLY = (
    torch.ops.aten.flatten.using_ints,
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten.permute.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.squeeze.default,
    torch.ops.aten.squeeze.dim,
    torch.ops.aten.unsqueeze.default,
)


RESIZES = (  # of a segmentation network's logits, after its last layer: in floating point, and of 8-bit values a mean
    torch.ops.aten.upsample_bilinear2d.vec,
    torch.ops.aten.upsample_nearest2d.vec,
)


def quantized(
    float_model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    calibration: Calibration,
    bits: int = 8,
    ranges: Ranges | None = None,
) -> QuantizedModel:
    """The network in 8 bits. float_model: its batch norms folded; bits: of weights, 2 to 8, stored in 8.

    ranges: smallest and largest value of the input of some layers, by name, instead of what calibration sees there; ""
    is the output's. A range that an average shares with what it averages is always calibration's. Raises UserError
    when the network cannot be captured, or gives values that are not finite.
    """
    program = capture(float_model, example_inputs)
    with quiet(), torch.no_grad():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        graph = prepare_pt2e(program.module(check_guards=False), quantizer(bits))
        for batch in calibration.batches():
            Observing(graph).run(batch)
        set_ranges(graph, ranges or {})
        graph = without_mode(convert_pt2e(graph))
    round_biases(graph)
    graph.requires_grad_(False)
    scheme = Scheme("int8", output_scale(graph, float_model), layer_facts(graph, bits), calibration.facts)
    return QuantizedModel(float_model, graph, scheme)


def quantizer(bits: int) -> Any:
    """XNNPACK's. Ranges of activations are those of least squared error, found in a histogram.

    Its own floor of 2^-12 for a scale would round small folded weights away.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver

    top = 2 ** (bits - 1) - 1
    config = get_symmetric_quantization_config(is_per_channel=True, weight_qmin=-top, weight_qmax=top)
    observers = {
        "input_activation": HistogramObserver,
        "output_activation": HistogramObserver,
        "weight": PerChannelMinMaxObserver,
    }
    for name, observer in observers.items():
        spec = dataclasses.replace(
            getattr(config, name), observer_or_fake_quant_ctr=observer.with_args(eps=SMALLEST_SCALE)
        )
        config = dataclasses.replace(config, **{name: spec})
    return XNNPACKQuantizer().set_global(config).set_filter_function(lambda node: not in_front_end(node))


class Observing(torch.fx.Interpreter):
    """Runs a graph with observers. Raises UserError for a value that is not finite, of which there is no range."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # it would become part of the sentence

    def run_node(self, node: Node) -> Any:
        if node.op == "call_module" and not torch.isfinite(self.env[node.args[0]]).all():
            where = module_path(node.args[0]) or node.args[0].target
            raise UserError(f"{where} has values that are not finite, of which no range can be read; was it trained?")
        return super().run_node(node)


def set_ranges(graph: GraphModule, ranges: Ranges) -> None:
    """Put ranges where the observers are whose values they are the ranges of."""
    from torchao.quantization.pt2e import MinMaxObserver

    observers = dict(graph.named_modules(remove_duplicate=False))
    places = [(module_path(node), node.args[0]) for node in graph.graph.nodes if node.target in PRODUCTS]
    for name, node in [*places, ("", graph.graph.find_nodes(op="output")[0].args[0][0])]:
        old = observers.get(node.target) if node.op == "call_module" else None
        if name not in ranges or old is None or averages(node, observers):
            continue
        limits = {"quant_min": old.quant_min, "quant_max": old.quant_max, "eps": SMALLEST_SCALE}
        observer = MinMaxObserver(old.dtype, old.qscheme, **limits)
        observer.min_val, observer.max_val = map(torch.tensor, ranges[name])
        for target, other in observers.items():
            if other is old:
                graph.set_submodule(target, observer)


def averages(node: Node, observers: dict[str, nn.Module]) -> bool:
    """Whether other values than these share the observer of this node."""
    observed = node.args[0]
    while observed.target in SHAPES_ONLY and observed.args[0].op == "call_module":
        observed = observed.args[0].args[0]
    own = observers[node.target]
    return any(isinstance(arg, Node) and observers.get(arg.target) is own for arg in observed.args)


def round_biases(graph: GraphModule) -> None:
    """Biases as the runtimes add them: int32 in steps of input scale times weight scale (Jacob et al., section 2.4).

    Left in floating point they would differ from the runtimes' by a hundredth of an output's step, and such differences
    grow from layer to layer.
    """
    for node in graph.graph.nodes:
        if not is_rounded(node) or len(node.args) < 3 or node.args[2] is None:
            continue
        source, weight, bias = node.args[:3]
        step = attrgetter(weight.args[1].target)(graph) * source.args[1]
        whole = (attrgetter(bias.target)(graph) / step).round().clamp(-INT32, INT32)
        name = f"{node.name}_bias"
        graph.register_buffer(name, (whole * step).detach())
        with graph.graph.inserting_before(node):
            node.update_arg(2, graph.graph.get_attr(name))
    graph.graph.eliminate_dead_code()
    graph.recompile()


def is_rounded(node: Node) -> bool:
    """Whether a node is a convolution or linear layer in 8 bits."""
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    return node.target in PRODUCTS and node.args[0].target is dequantize and node.args[1].op == "call_function"


def check_output(model: nn.Module, program: ExportedProgram) -> None:
    """Raises UserError when the last operator is one that stays in floating point. program: the model's, captured."""
    graph = program.module(check_guards=False)
    with quiet(), torch.no_grad():
        xnnpack = quantizer(8)
        xnnpack.annotate(xnnpack.transform_for_annotation(graph))  # what is in 8 bits, before anything is rounded
    last = last_of(graph)
    annotation = last.meta.get("quantization_annotation")
    if annotation is None or annotation.output_qspec is None:
        raise no_form(model, last)


def last_of(graph: GraphModule) -> Node:
    """The operator that gives the output, or the one before it that it is only resized from."""
    last = graph.graph.find_nodes(op="output")[0].args[0]
    last = last[0] if isinstance(last, list | tuple) else last
    while last.target in RESIZES:  # averages of neighbours: they differ by no more steps than these
        last = last.args[0]
    return last


def no_form(model: nn.Module, last: Node) -> UserError:
    return UserError(
        f"{type(model).__name__} ends in {last.name}, which has no 8-bit form; let it end in a linear layer"
    )


def output_scale(graph: GraphModule, model: nn.Module) -> float:
    """One LSB of the output, before it is resized where it is.

    Raises UserError when the last operator is one that stays in floating point.
    """
    last = last_of(graph)
    if last.target is not torch.ops.quantized_decomposed.dequantize_per_tensor.default:
        raise no_form(model, last)
    return float(last.args[1])


def layer_facts(graph: GraphModule, bits: int) -> list[dict[str, Any]]:
    """Of each convolution and linear layer: name, operator, bits of its weights, scales, zero points."""
    rows = []
    for node in graph.graph.nodes:
        if node.target not in PRODUCTS:
            continue
        row: dict[str, Any] = {"layer": module_path(node) or node.name, "operator": node.target._opname}
        if not is_rounded(node):
            rows.append(row | {"bits": 32})
            continue
        source, weight = node.args[:2]
        scales = attrgetter(weight.args[1].target)(graph).tolist()
        row |= {"bits": bits, "weight_scales": scales, "weight_zero_point": 0}
        row |= {"input_scale": float(source.args[1]), "input_zero_point": int(source.args[2])}
        after = next(iter(node.users), None)
        while after is not None and "quantize_per_tensor" not in str(after.target):
            after = next(iter(after.users), None)
        if after is not None:
            row |= {"output_scale": float(after.args[1]), "output_zero_point": int(after.args[2])}
        rows.append(row)
    return rows
