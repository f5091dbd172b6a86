"""The graph of a network as torch.export sees it, and its batch norms folded into the layers before them."""

import copy
import importlib.util
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from edgetrain.errors import UserError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
NORMS = (torch.ops.aten.batch_norm.default,)
PRODUCTS = (torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
FRONT_END = "front_end"  # the name of a submodule that stays in floating point


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notices of torch.export, torchao and ExecuTorch, which a user can do nothing about."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def check_packages() -> None:
    """Raises UserError when what quantises is not installed."""
    missing = [name for name in ("executorch", "torchao") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"quantising needs {' and '.join(missing)}, not installed here; "
            'pip install -c constraints.txt -e ".[deploy]"'
        )


def check_quantizable(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
    """Raises UserError unless the model reads one floating-point tensor and has a convolution or a linear layer."""
    name = type(model).__name__
    if len(example_inputs) != 1:
        raise UserError(f"{name} takes {len(example_inputs)} inputs; a network that is quantised takes one")
    if not example_inputs[0].is_floating_point():
        raise UserError(
            f"{name} reads whole numbers, such as tokens; a network that is quantised reads floating-point numbers "
            "(for a Llama, export=[gguf] has 8 and 4 bits)"
        )
    if not any(isinstance(module, LAYERS) for module in model.modules()):
        raise UserError(f"{name} has no convolution and no linear layer: nothing to quantise")


def capture(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """The model's graph in eval mode, for any batch. Raises UserError when it cannot be captured."""
    check_quantizable(model, example_inputs)
    pair = torch.cat([example_inputs[0][:1]] * 2)  # of 1 torch.export would make a constant
    was_training = model.training
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model.eval(), (pair,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # whatever torch.export meets in a user's network
        raise UserError(
            f"{type(model).__name__} cannot be quantised, since torch.export cannot capture it with a free batch: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    finally:
        model.train(was_training)


def graph_of(program: ExportedProgram) -> GraphModule:
    """A captured graph as a module without a mode: torch's own would refuse `train` and `eval`."""
    return without_mode(program.module(check_guards=False))


def without_mode(graph: GraphModule) -> GraphModule:
    for name in ("train", "eval"):
        graph.__dict__.pop(name, None)
    return graph


def module_path(node: Node) -> str:
    """The module that a node was captured in, by its name in the model."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def in_front_end(node: Node) -> bool:
    return FRONT_END in module_path(node).split(".")


def owner(program: ExportedProgram, node: Node) -> str:
    """The module whose parameter or buffer a node is, by its name in the model; empty when it is neither."""
    signature = program.graph_signature
    key = signature.inputs_to_parameters.get(node.name) or signature.inputs_to_buffers.get(node.name, "")
    return key.rpartition(".")[0]


def batch_norms(model: nn.Module, program: ExportedProgram) -> dict[str, str]:
    """{layer: the batch norm that alone reads its output}, by their names in the model.

    A layer that stands in several places has none, nor has a linear layer whose channels are not axis 1.
    """
    nodes = list(program.graph.nodes)
    visits = Counter(owner(program, node.args[1]) for node in nodes if node.target in PRODUCTS)
    modules = dict(model.named_modules())
    found = {}
    for node in nodes:
        if node.target not in NORMS or not isinstance(node.args[0], Node):
            continue
        before, norm = node.args[0], owner(program, node.args[3])
        if before.target not in PRODUCTS or len(before.users) > 1:
            continue
        layer = owner(program, before.args[1])
        linear_of_tokens = isinstance(modules.get(layer), nn.Linear) and before.meta["val"].ndim != 2
        if visits[layer] == 1 and isinstance(modules.get(layer), LAYERS) and norm in modules and not linear_of_tokens:
            found[layer] = norm
    return found


def norm_scale(norm: nn.Module) -> Tensor:
    """gamma / sqrt(running variance + eps) of a batch norm: [channels]."""
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else norm.weight * scale


@torch.no_grad()
def folded(model: nn.Module, norms: dict[str, str]) -> nn.Module:
    """A copy in eval mode with those batch norms folded; the same function, up to rounding.

    w' = w s and b' = beta + (b - mean) s with s = gamma / sqrt(var + eps) (Jacob et al. 2018, arXiv 1712.05877, section
    3.2). A norm leaves an Identity behind; one whose forward does more, such as an activation, a norm of no effect.
    """
    model = copy.deepcopy(model).eval()
    for name, norm_name in norms.items():
        layer, norm = model.get_submodule(name), model.get_submodule(norm_name)
        scale = norm_scale(norm.double())
        bias = 0.0 if layer.bias is None else layer.bias.double()
        shift = (0.0 if norm.bias is None else norm.bias) + (bias - norm.running_mean) * scale
        weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.ndim - 1))
        kind = layer.weight.dtype
        layer.weight = nn.Parameter(weight.to(kind), requires_grad=False)
        layer.bias = nn.Parameter(shift.to(kind), requires_grad=False)
        norm.to(kind)
        if type(norm).forward is nn.BatchNorm2d.forward:
            model.set_submodule(norm_name, nn.Identity())
            continue
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        for parameter, value in ((norm.weight, 1.0), (norm.bias, 0.0)):
            if parameter is not None:
                parameter.fill_(value)
    return model
