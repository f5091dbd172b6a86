"""From a module to its table of layers, by `torch.export`: what runs, in what order, on which tensors.

- What is made of weights and constants alone is folded, as a compiler does: masks and positions are no layers, and a
  weight that is computed from others is the layer's weight. Parameters and buffers that layers read are stored numbers.
- Views and dropout are no layers: a tensor keeps its name through them, and a layer that reads a part of a tensor has
  the whole's name and the part's shape. A copy is a `move`, one that torch makes inside `reshape` too.
- An operator that works in place writes a new tensor, as devices decide that; a tensor written in part keeps its name.
- What nobody reads is left out, and so are outputs that are no tensors.
- State is an input or a buffer that the model writes, an input to which new values are joined and that comes back (a
  cache), and the hidden state that a recurrent layer is given and gives back.
- An operator that is not in `operators.OPERATORS` and keeps the number of elements counts one operation for each, with
  a warning; any other one is refused.
"""

from collections import defaultdict
from dataclasses import replace
from math import inf, prod
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from edgetrain.errors import UserError, listing
from edgetrain.hardware.exported_graph import exported
from edgetrain.hardware.formats import parse_format
from edgetrain.hardware.graph_walk import Draft, GraphWalk
from edgetrain.hardware.operator_rows import Operand
from edgetrain.hardware.workload import MAC_KINDS, Activation, Layer, LayerFacts, Operands, Workload


def trace(model: nn.Module, example_inputs: tuple[Any, ...], name: str | None = None) -> Workload:
    """The layers of `model(*example_inputs)` in evaluation mode, at these sizes.

    A model with `components(*example_inputs)`, a mapping of names to (module, inputs), is traced one component after
    the other; weights that they share count once, and a tensor that several are given has one name. A module with
    `layer_facts()` says more of its own layers than shapes do (`LayerFacts`). name: the class's when None.
    Raises UserError for a model that torch.export does not take, for an operator that cannot be costed, and for facts
    that are wrong.
    """
    if not isinstance(example_inputs, tuple):
        raise UserError("trace: example_inputs must be a tuple, of the arguments of the model's forward")
    name = name or type(model).__name__
    walk = GraphWalk(model, name)
    components = getattr(model, "components", None)
    parts = components(*example_inputs) if callable(components) else {"": (model, example_inputs)}
    for component, (module, inputs) in parts.items():
        leaves, structure = tree_flatten(inputs)
        device = next((parameter.device for parameter in module.parameters()), None)
        there = [
            leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]  # views of one no more
        program = exported(module, tree_unflatten(there, structure), name)
        walk.add(program, module, leaves, component)
    return workload_of(walk, model)


def workload_of(walk: GraphWalk, model: nn.Module) -> Workload:
    """The walk's rows under their last names, with what the model's modules say of them."""
    drafts, needed = alive(walk)
    suffixes: dict[str, set[str]] = defaultdict(set)
    for draft in drafts:
        suffixes[draft.path].add(draft.suffix)
    tensors: dict[str, str] = {}  # last names, by the walk's
    layers = []
    for draft in drafts:
        alone = draft.path and len(suffixes[draft.path]) == 1
        name = walk.unique(draft.path if alone else ".".join(filter(None, (draft.path, draft.suffix))))
        for index, operand in enumerate(draft.row.writes):
            if operand.name.startswith("%") and operand.name not in tensors:
                tensors[operand.name] = walk.unique(f"{name}.{index}") if index else name
        layers.append(layer_of(draft, name, tensors, needed, walk.states))
    with_facts(layers, [draft.path for draft in drafts], model, walk.name)
    seen = {tensor.name for layer in layers for tensor in (*layer.inputs, *layer.outputs)}
    sides = [[tensors.get(name, name) for name in side] for side in (walk.inputs, walk.outputs)]
    inputs, outputs = (tuple(name for name in side if name in seen) for side in sides)
    return Workload(walk.name, tuple(layers), inputs, outputs)


def alive(walk: GraphWalk) -> tuple[list[Draft], set[str]]:
    """The rows that outputs or state depend on, and the tensors that are read or given back."""
    needed = {*walk.outputs, *walk.states}
    drafts = []
    for draft in reversed(walk.drafts):
        if any(operand.name in needed for operand in draft.row.writes):
            needed.update(operand.name for operand in draft.row.reads if operand and not operand.constant)
            drafts.append(draft)
    return drafts[::-1], needed


def layer_of(draft: Draft, name: str, tensors: dict[str, str], needed: set[str], states: set[str]) -> Layer:
    """A row as a layer. Of several outputs those stay that somebody reads."""

    def activation(operand: Operand) -> Activation:
        shape = operand.shape if prod(operand.shape) == operand.elements else (operand.elements,)
        return Activation(tensors.get(operand.name, operand.name), shape, operand.format, operand.name in states)

    row = draft.row
    reads = [operand for operand in row.reads if operand]
    parts = {(operand.name, operand.start, operand.shape): operand for operand in reads if not operand.constant}
    inputs = tuple(map(activation, parts.values()))
    outputs = tuple(activation(operand) for operand in row.writes if operand.name in needed)
    weights = [operand for operand in reads if operand.stored]
    biases = [operand for operand in row.biases if operand and operand.stored]
    named = [*weights, *biases]
    return Layer(
        name,
        row.kind,
        row.loops,
        inputs,
        outputs,
        row.macs,
        row.operations,
        sum(operand.elements for operand in weights) if row.weights is None else row.weights,
        sum(operand.elements for operand in biases),
        named[0].stored if named else "",
        named[0].format if named else (inputs or outputs)[-1].format,
        component=draft.component,
    )


def with_facts(layers: list[Layer], paths: list[str], model: nn.Module, name: str) -> None:
    """Change the layers of modules that have `layer_facts()`, those of the modules in them too, in place."""
    for path, module in model.named_modules():
        if not hasattr(module, "layer_facts"):
            continue
        own = [
            index
            for index, (layer, place) in enumerate(zip(layers, paths, strict=True))
            if f"{place}.".startswith(f"{path}." if path else "") and (layer.kind in MAC_KINDS or layer.weights)
        ]
        facts = checked(module.layer_facts(), f"{name}, module '{path}'")
        single = [key for key in ("weights", "macs", "operands") if key in facts]
        if not own or (single and len({layers[index].weight_name for index in own}) > 1):
            raise UserError(
                f"{name}, module '{path}': layer_facts() gives {listing(facts)}, and the module makes {len(own)} "
                "layers with weights; weights, macs and operands belong to the module that makes one layer"
            )
        for index in own:
            layers[index] = replace(layers[index], **facts)


def checked(facts: Any, place: str) -> dict[str, Any]:
    """Facts as fields of a layer. Raises UserError for an unknown key and for a value that cannot be."""
    if not isinstance(facts, dict) or set(facts) - set(LayerFacts.__annotations__):
        raise UserError(f"{place}: layer_facts() must give a dict with some of {listing(LayerFacts.__annotations__)}")
    fields = dict(facts)
    numbers = {"density": (0.0, 1.0), "rank": (1, inf), "weights": (0, inf), "macs": (0, inf)}
    for key, (least, most) in numbers.items():
        value = fields.get(key, least)
        if not isinstance(value, int if key != "density" else (int, float)) or not least <= value <= most:
            raise UserError(f"{place}: layer_facts() gives {key}={value!r}, which must be from {least} to {most}")
    if "weight_format" in fields:
        fields["weight_format"] = parse_format(fields["weight_format"])
    if "operands" in fields:
        fields["operands"] = Operands(*fields["operands"])
    return fields
