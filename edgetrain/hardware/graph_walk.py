"""From an exported graph to the rows of its operators, in the order in which they run.

Tensors are told apart by their memory, so that a view is the tensor that it is a view of.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from edgetrain.errors import UserError
from edgetrain.hardware.exported_graph import arguments_of, memory, tensors_of, without_empty, written_to
from edgetrain.hardware.formats import Format, parse_format
from edgetrain.hardware.operator_rows import Call, Operand, Row
from edgetrain.hardware.operators import OPERATORS, elementwise
from edgetrain.hardware.workload import MAC_KINDS

# Made of shapes alone, whatever else they are given.
FACTORIES = {f"{what}_like" for what in ("zeros", "ones", "full", "empty")} | {
    f"new_{what}" for what in ("zeros", "ones", "full", "empty")
}
# These change no number, in place or not.
IDENTITIES = {"detach", "squeeze", "unsqueeze", "transpose", "t", "dropout", "feature_dropout", "alpha_dropout"}
# In place, these read nothing of what they write to; the last three write a part of it, as large as this argument.
WRITERS = {"copy": "", "fill": "", "zero": "", "index_put": "values", "index_copy": "source", "scatter": "src"}


@dataclass(frozen=True)
class Held:
    """What a piece of memory holds at this point of the run: an activation, or a constant.

    stored: the weight that a constant is, or the first that it is made of; empty when it is made of none.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    constant: bool = False
    stored: str = ""

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Draft:
    """A row and where it is from; its tensors that are neither inputs nor state are named %1, %2, ..."""

    path: str
    component: str
    suffix: str
    row: Row


class GraphWalk:
    """Collects the rows of the components of a model, one after the other."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name = name
        self.paths = {id(module): path for path, module in model.named_modules()}
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self.tensor_names = {id(tensor): name for name, tensor in tensors}
        self.drafts: list[Draft] = []
        self.inputs: dict[str, None] = {}  # in order
        self.outputs: dict[str, None] = {}
        self.states: set[str] = set()
        self.given: dict[int, str] = {}  # names of inputs, by the example tensor
        self.used: Counter[str] = Counter()
        self.made = 0

    def unique(self, name: str) -> str:
        """The name; at its second use with :2, and so on."""
        self.used[name] += 1
        return name if self.used[name] == 1 else self.unique(f"{name}:{self.used[name]}")

    def add(self, program: ExportedProgram, module: nn.Module, examples: list[Any], component: str) -> None:
        """Add the rows of one component: `module`, exported with these leaves of its inputs."""
        self.module, self.component = module, component
        self.held: dict[int, Held] = {}
        self.folded: Counter[str] = Counter()
        self.carried: list[tuple[str, str]] = []
        own = self._hold_inputs(program, examples)
        results = [self.held[memory(result)] for result in self._walk(program.graph_module)]
        returned = {held.name: None for held in results if not held.constant}
        self.outputs |= returned
        self.states |= {name for pair in self.carried if pair[0] in own and pair[1] in returned for name in pair}

    def _hold_inputs(self, program: ExportedProgram, examples: list[Any]) -> set[str]:
        """Name what the graph is given: weights, buffers, inputs. What the graph writes is state. Returns inputs."""
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        written = {memory(value) for node in program.graph.nodes for value in written_to(node)}
        user, own = iter(examples), set()
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            example = next(user) if spec.kind is InputKind.USER_INPUT else None
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                continue
            is_state = memory(value) in written
            if example is None:
                name = self._weight_name(spec.target)
            else:
                name = self.given.get(id(example)) or self.unique(node.name)
                self.given[id(example)] = name
                own.add(name)
            constant = example is None and not is_state
            self.held[memory(value)] = Held(
                name, self._shape(value), self._format(value), constant, name if constant else ""
            )
            if not constant:
                self.inputs[name] = None
            if is_state:
                self.states.add(name)
                self.outputs[name] = None
        return own

    def _weight_name(self, target: str) -> str:
        """A parameter's or buffer's name in the whole model, whichever component it is met in."""
        try:
            tensor: Any = attrgetter(target)(self.module)
        except AttributeError:  # a number in the code, lifted into the graph
            tensor = None
        return self.tensor_names.get(id(tensor), f"{self.component}.{target}" if self.component else target)

    def _walk(self, graph: fx.GraphModule) -> list[Tensor]:
        """Add the rows of a graph, and of the graphs in it. Returns its results."""
        results: list[Tensor] = []
        for node in graph.graph.nodes:
            if node.op == "output":
                results = list(tensors_of(fx.map_arg(node.args[0], lambda other: other.meta["val"])))
            elif node.op == "call_function" and isinstance(node.target, HigherOrderOperator):
                self._inline(graph, node)
            elif node.op == "call_function" and isinstance(node.target, OpOverload):
                self._call(node)
        return results

    def _inline(self, graph: fx.GraphModule, node: fx.Node) -> None:
        """A block under `torch.autocast` or `set_grad_enabled`, which is a graph of its own."""
        inner = [argument for argument in node.args if isinstance(argument, fx.Node) and argument.op == "get_attr"]
        if not inner or not node.target.name().startswith("wrap_with"):
            raise UserError(
                f"{self._place(node)}: the operator {node.target.name()} is not known, as it runs a graph of its own "
                "(a branch, a loop); trace the part that runs, by a wrapper module or through components()"
            )
        body = getattr(graph, str(inner[0].target))
        outer = node.args[node.args.index(inner[0]) + 1 :]
        placeholders = [other for other in body.graph.nodes if other.op == "placeholder"]
        for other, argument in zip(placeholders, outer, strict=True):
            self.held[memory(other.meta["val"])] = self.held[memory(argument.meta["val"])]
        for result, value in zip(self._walk(body), tensors_of(node.meta["val"]), strict=True):
            self.held[memory(value)] = self.held[memory(result)]

    def _call(self, node: fx.Node) -> None:
        """Add the rows of one operator, if it makes any, and note what it leaves in memory."""
        schema = node.target._schema
        written = written_to(node)
        name = schema.name.removeprefix("aten::")
        name = name.removesuffix("_") if written else name
        results = list(tensors_of(node.meta.get("val")))
        if not (results or written):
            return
        arguments = {
            key: without_empty(fx.map_arg(value, self._operand)) for key, value in arguments_of(schema, node).items()
        }
        given = Call(name, arguments, (), self._new).tensors
        if name in FACTORIES or all(operand.constant for operand in given):
            self._fold(given, [*results, *written])
            return
        sources = {memory(value) for other in node.all_input_nodes for value in tensors_of(other.meta.get("val"))}
        if not written and all(memory(value) in sources for value in results):
            return
        if name in IDENTITIES or (name == "cat" and len(given) == 1):  # the others are empty, as a cache at its start
            self.held[memory(results[0])] = next(held for held in self.held.values() if held.name == given[0].name)
            return
        if written:
            outputs = (self._write(written[0], name, arguments),)
            if name in WRITERS:
                arguments["self"] = None
        else:
            outputs = tuple(self._write(value, name, arguments) for value in results)
        self._add_rows(node, Call(name, arguments, outputs, self._new))

    def _add_rows(self, node: fx.Node, call: Call) -> None:
        """Raises UserError for an operator that is not known, and for one that has nothing to work on."""
        rows = OPERATORS[call.name](call) if call.name in OPERATORS else None
        if rows is None:
            if all(operand.elements != call.output.elements for operand in call.tensors):
                raise UserError(
                    f"{self._place(node)}: the operator {node.target} is not known, and its result has another number "
                    "of elements than what it is given, so that its cost cannot be guessed; trace the parts around it, "
                    "by wrapper modules or through components()"
                )
            warnings.warn(f"{self._place(node)}: {node.target} is counted as one operation an element", stacklevel=2)
            rows = elementwise(call)
        path = self._path(node)
        for row in rows:
            if row.kind in MAC_KINDS and not row.macs:
                raise UserError(f"{self._place(node)}: a {row.kind} layer of size zero; check the example inputs")
            self.drafts.append(Draft(path, self.component, row.suffix or call.name, row))
            self.carried += [(before.name, after.name) for before, after in row.carried]

    def _fold(self, given: Iterable[Operand], results: Iterable[Tensor]) -> None:
        """Results that are made of constants alone; they are named after the first weight among these."""
        weight = re.split(r"[:[]", next((operand.stored for operand in given if operand.stored), ""))[0]
        for value in results:
            old = self.held.get(memory(value))
            if old is None or (weight and not old.stored):
                self.folded[weight] += 1
                name = f"{weight}:{1 + self.folded[weight]}" if weight else ""
                self.held[memory(value)] = Held(name, self._shape(value), self._format(value), True, name)

    def _write(self, value: Tensor, name: str, arguments: Mapping[str, Any]) -> Operand:
        """The tensor that an operator writes: a new one, or a part of an old one, which keeps its name."""
        old = self.held.get(memory(value))
        shape = self._shape(value)
        source = arguments.get(WRITERS.get(name, ""))
        shape = source.shape if isinstance(source, Operand) else shape
        partly = old is not None and (old.name in self.states or prod(shape) < old.elements)
        if partly and not old.constant:
            return Operand(old.name, shape, old.format, prod(shape))
        whole = shape if old is None else old.shape
        new = self._new(whole, self._format(value))
        self.held[memory(value)] = Held(new.name, whole, new.format)
        return new

    def _new(self, shape: tuple[int, ...], format: Format) -> Operand:
        self.made += 1
        return Operand(f"%{self.made}", shape, format, prod(shape))

    def _operand(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        held = self.held[memory(value)]
        shape = self._shape(value)
        distinct = prod(size for size, stride in zip(shape, value.stride(), strict=True) if stride)
        elements = min(distinct, held.elements)
        stored = held.stored
        start = value.storage_offset()
        if stored and elements < held.elements:
            stored = f"{stored}[{start}:{start + elements}]"
        return Operand(held.name, shape, self._format(value), elements, held.constant, stored, start)

    def _shape(self, value: Tensor) -> tuple[int, ...]:
        if any(not isinstance(size, int) for size in value.shape):
            raise UserError(
                f"{self.name} cannot be traced: a tensor's size, {list(value.shape)}, depends on values; trace the "
                "parts with fixed sizes, by wrapper modules or through components()"
            )
        return tuple(value.shape)

    def _format(self, value: Tensor) -> Format:
        name = str(value.dtype).removeprefix("torch.")
        if value.is_complex():
            raise UserError(
                f"{self.name} cannot be traced: a tensor is {name}, which has no format on a device; trace the parts "
                "around it, by wrapper modules or through components()"
            )
        return parse_format(name.removeprefix("float8_").removesuffix("fn"))

    def _path(self, node: fx.Node) -> str:
        """The innermost module's path in the whole model."""
        stack = node.meta.get("nn_module_stack") or {}
        path = [*stack.values()][-1][0] if stack else ""
        try:
            return self.paths.get(id(self.module.get_submodule(path)), path)
        except AttributeError:
            return path

    def _place(self, node: fx.Node) -> str:
        path = self._path(node)
        return f"{self.name}, module '{path}'" if path else self.name
