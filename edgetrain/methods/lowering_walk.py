"""From a captured graph to the operations of an integer program: values, their order in memory, and what is refused."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from edgetrain.errors import UserError, listing
from edgetrain.methods.lowering_layout import (
    PADDING,
    Format,
    Frame,
    Pending,
    Shape,
    Stored,
    axes_of,
    channels_last,
    elements_in_order,
    in_order,
    trimmed,
    usual_axes,
)
from edgetrain.methods.lowering_operators import operator
from edgetrain.methods.quantize_capture import in_front_end, module_path
from edgetrain.models.integer import IntegerProgram, Operation, Value


class Results(Interpreter):
    """Runs a graph and keeps of every tensor its shape, of other results the result."""

    def of(self, x: Tensor) -> dict[str, Any]:
        self.found: dict[str, Any] = {}
        self.extra_traceback = False
        with torch.no_grad():
            self.run(x)
        return self.found

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        self.found[node.name] = result.shape if isinstance(result, Tensor) else result
        return result


class Walk:
    """Goes through a graph in its order. Raises UserError for what C has no kernel for, naming operator and module.

    graph: of the quantised network; model: the float network, for names; example: its input, of any batch.
    """

    scheme: str
    known: tuple[Any, ...]  # operators
    roundings: tuple[str, ...] = ()  # names of those that quantise, which are never part of a front end

    def __init__(self, graph: GraphModule, model: nn.Module, example: Tensor) -> None:
        self.graph, self.model = graph, model
        self.results = Results(graph).of(torch.zeros_like(example[:1]))
        self.entry = self.find_entry()
        self.entry_shape: tuple[int, ...] = tuple(self.results[self.entry.name][1:])
        self.held: dict[str, Stored | Pending] = {}
        self.values: dict[str, Value] = {}
        self.operations: list[Operation] = []
        self.input: str | None = None
        self.input_axes: Any = None
        self.input_places = torch.empty(0)  # of the input's elements, in their own order, once the axes are settled

    def program(self) -> IntegerProgram:
        self.check_operators()
        elements = torch.arange(math.prod(self.entry_shape)).view(1, *self.entry_shape)
        self.held[self.entry.name] = Pending(self.enter, elements)
        for node in self.graph.graph.nodes:
            given = [arg for arg in node.all_input_nodes if arg.name in self.held]
            if node.op != "call_function" or not given or not isinstance(self.results[node.name], torch.Size):
                continue
            held = self.visit(node)
            if isinstance(held, Pending) and held.own is not None and len(node.users) > 1:
                held = self.written(held, held.own)
            self.held[node.name] = held
        return self.finished()

    def finished(self) -> IntegerProgram:
        node = self.graph.graph.find_nodes(op="output")[0]
        last = node.args[0][0] if isinstance(node.args[0], list | tuple) else node.args[0]
        output = self.stored(last, last)
        places = self.in_memory(output)
        if places.numel() != self.values[output.value].bytes or not in_order(places):
            raise UserError(
                f"export.c gives numbers in the order of memory, and {type(self.model).__name__} puts those of its "
                "last operator in another; let it end in a linear layer"
            )
        return IntegerProgram(
            self.scheme, self.values, tuple(self.operations), self.input, output.value, self.input_axes
        )

    @abstractmethod
    def visit(self, node: Node) -> Stored | Pending:
        """What an operator that reads something of the network gives."""

    # What is named, found, refused

    def find_entry(self) -> Node:
        """What is quantised: the model's input, or what its front end makes of it."""
        nodes = self.graph.graph.nodes
        leaving = [
            node
            for node in nodes
            if self.is_front_end(node) and any(not self.is_front_end(user) for user in node.users)
        ]
        start = next(node for node in nodes if node.op == "placeholder")
        if len(leaving) > 1 or (leaving and any(not self.is_front_end(user) for user in start.users)):
            raise UserError(
                "export.c computes a front end in floating point and the network after it in whole numbers; "
                f"the network reads more than what {module_path(leaving[0])} gives"
            )
        return leaving[0] if leaving else start

    def is_front_end(self, node: Node) -> bool:
        return in_front_end(node) and operator(node) not in self.roundings

    def check_operators(self, also: tuple[Any, ...] = ()) -> None:
        """Raises UserError for operators that neither C has nor `also`, naming all of the first module with one."""
        reached, unknown = {self.entry.name}, []
        for node in self.graph.graph.nodes:
            result = self.results.get(node.name)
            if node.op != "call_function" or not any(arg.name in reached for arg in node.all_input_nodes):
                continue
            if isinstance(result, torch.Size | list | tuple):
                reached.add(node.name)
                if node.target not in (*self.known, *also) and operator(node) not in self.roundings:
                    unknown.append(node)
        if unknown:
            where = module_path(unknown[0])
            names = dict.fromkeys(operator(node) for node in unknown if module_path(node) == where)
            names = [name for name in names if name != "getitem"] or ["getitem"]  # of what an operator gives in a tuple
            raise UserError(
                f"export.c has no kernel for {listing(names, 5)} (in {self.place(unknown[0])}); it computes "
                "convolutions, linear layers, ReLU, ReLU6, pooling and additions"
            )

    def place(self, node: Node) -> str:
        path = module_path(node)
        return f"module '{path}'" if path else "the model's own forward"

    def impossible(self, node: Node, why: str) -> UserError:
        return UserError(f"export.c cannot compute {operator(node)} (in {self.place(node)}): {why}")

    def name(self, node: Node) -> str:
        """The path of a module that is one operator, else of the module and the operator."""
        path = module_path(node)
        leaf = path and not any(True for _ in self.model.get_submodule(path).children())
        return path if leaf else f"{path}.{operator(node)}".lstrip(".")

    def unique(self, base: str) -> str:
        count = 1
        while (name := base if count == 1 else f"{base}_{count}") in self.values:
            count += 1
        return name

    # Values

    def enter(self, form: Format, low: float, high: float) -> str:
        """The value that is the network's input."""
        name = "input"
        if (low, high) != (-torch.inf, torch.inf):
            raise self.impossible(self.entry, "the input is clipped before anything else; clip it in the data")
        if self.input is None:
            self.input = name
            self.values[name] = Value(name, (1, 1, math.prod(self.entry_shape)), *form)
        elif self.format(name) != form:
            raise self.impossible(self.entry, "the input is quantised in two different ways")
        return name

    def format(self, value: str) -> Format:
        return Format(self.values[value].scale, self.values[value].zero_point)

    def written(self, held: Pending, form: Format) -> Stored:
        return Stored(held.write(form, held.low, held.high), held.places)

    def stored(self, source: Any, node: Node) -> Stored:
        """What an operator reads, in memory."""
        held = self.held.get(source.name) if isinstance(source, Node) else None
        if held is None:
            raise self.impossible(node, "one of its inputs is a constant or lies outside the network")
        if isinstance(held, Stored):
            return held
        if held.own is None:
            raise self.impossible(
                node,
                f"it reads {operator(source)} before that is rounded to 8 bits; where a layer stands in two places, "
                "give each its own",
            )
        return self.written(held, held.own)

    def settle_input(self, axes: Any, node: Node) -> None:
        """Decide the order of the input in memory, once."""
        if axes is None:
            raise self.impossible(node, f"the input {list(self.entry_shape)} would have to be copied to another order")
        order = elements_in_order(self.entry_shape, axes)
        self.input_axes, self.input_places = axes, torch.empty_like(order)
        self.input_places[order] = torch.arange(len(order))
        height, width, channels = (1 if axis is None else self.entry_shape[axis] for axis in axes)
        self.values[self.input] = replace(self.values[self.input], shape=(height, width, channels))

    def in_memory(self, held: Stored) -> Tensor:
        """Places in the value's memory."""
        if held.value != self.input:
            return held.places
        if self.input_axes is None:
            self.settle_input(usual_axes(len(self.entry_shape)), self.entry)
        return torch.where(held.places == PADDING, PADDING, self.input_places[held.places])

    def frame(self, node: Node, held: Stored) -> Frame:
        """How [1, channels, ...] lies in memory; of an input whose order is open, this decides it."""
        if held.places.ndim not in (3, 4):
            raise self.impossible(node, f"it reads {list(held.places.shape[1:])}, and not channels over 1 or 2 axes")
        unsettled = held.value == self.input and self.input_axes is None
        height, width, _ = self.values[held.value].shape
        lengthwise = held.places.ndim == 3 and not unsettled and width == 1 and height > 1
        places, padding = trimmed(channels_last(held.places, lengthwise))
        if unsettled:
            self.settle_input(axes_of(places, self.entry_shape), node)
        places, _ = trimmed(channels_last(self.in_memory(held), lengthwise))
        if tuple(places.shape) != self.values[held.value].shape or not in_order(places):
            raise self.impossible(
                node, "its input would have to be copied to another order; C has height, width, channels"
            )
        padded = bool((held.places == PADDING).any())
        return Frame(self.values[held.value].shape, padding, padded, lengthwise)

    def output_shape(self, node: Node, frame: Frame) -> Shape:
        _, channels, *sizes = self.results[node.name]
        return (*frame.pair(tuple(sizes), 1), channels)

    def note(
        self,
        kind: type[Operation],
        name: str,
        inputs: Iterable[str],
        shape: Shape,
        form: Format,
        bounds: tuple[float, float],
        **fields: Any,
    ) -> str:
        """Append an operation and its value; returns the value's name, which is like `name`."""
        name = self.unique(name)
        low, high = form.limits(*bounds)
        self.values[name] = Value(name, shape, *form)
        self.operations.append(kind(name=name, inputs=tuple(inputs), output=name, low=low, high=high, **fields))
        return name
