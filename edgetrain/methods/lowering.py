"""From a quantised network to the operations that a microcontroller runs."""

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgetrain.methods.calibration import Calibration
from edgetrain.methods.lowering_int8 import Int8Walk
from edgetrain.methods.lowering_q7 import Q7Walk
from edgetrain.methods.lowering_walk import Walk
from edgetrain.methods.q7 import Q7Network, sweep
from edgetrain.methods.quantize_capture import (
    FRONT_END,
    NORMS,
    batch_norms,
    capture,
    check_packages,
    folded,
    graph_of,
    module_path,
)
from edgetrain.methods.quantize_graph import quantized
from edgetrain.models.integer import Clip, IntegerNetwork, IntegerProgram, Operation
from edgetrain.models.quantized import QuantizedModel, Scheme

CHECKED = 4  # random samples that stand for calibration before training


def lower(model: QuantizedModel, example_inputs: tuple[Tensor, ...]) -> IntegerNetwork:
    """The same network in whole numbers; q7 to the bit, int8 up to how a sum is rounded to 8 bits.

    Raises UserError for what C has no kernel for, naming operator and module, and for sums that 32 bits cannot hold.
    """
    walk = walk_of(model, example_inputs)
    program = with_clips_fused(walk.program())
    front_end = None
    if walk.entry.op != "placeholder":
        path = module_path(walk.entry).split(".")
        front_end = model.float_model.get_submodule(".".join(path[: path.index(FRONT_END) + 1]))
    return IntegerNetwork(program, tuple(example_inputs[0].shape[1:]), front_end).eval()


def check_lowering(model: nn.Module, example_inputs: tuple[Tensor, ...], scheme: str = "int8") -> IntegerProgram:
    """The program before training: its shapes are the final ones, its numbers are not. scheme: int8 or q7.

    Raises UserError for a network that `lower` could not take.
    """
    check_packages()
    shape = example_inputs[0].shape[1:]
    samples = torch.randn(CHECKED, *shape, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        plain = folded(model, batch_norms(model, capture(model, example_inputs)))
        graph = graph_of(capture(plain, example_inputs))
        Int8Walk(graph, plain, example_inputs[0]).check_operators(NORMS)  # what is left of them, PT2E folds
        if scheme == "q7":
            network = Q7Network(graph)
            sweep(network, samples)
            made = QuantizedModel(plain, network, Scheme("q7", 1.0))
        else:
            made = quantized(plain, example_inputs, Calibration(samples, {}))
        return with_clips_fused(walk_of(made, example_inputs).program())


def walk_of(model: QuantizedModel, example_inputs: tuple[Tensor, ...]) -> Walk:
    if model.scheme.name == "q7":
        return Q7Walk(model.graph, model.float_model, example_inputs[0])
    return Int8Walk(model.graph, model.float_model, example_inputs[0])


def with_clips_fused(program: IntegerProgram) -> IntegerProgram:
    """Where a Clip alone reads an operation, that clips: the two share a format, so the numbers are the same."""
    readers = Counter([*(name for each in program.operations for name in each.inputs), program.output])
    operations: list[Operation] = []
    renamed: dict[str, str] = {}
    for operation in program.operations:
        inputs = tuple(renamed.get(name, name) for name in operation.inputs)
        before = next((place for place, each in enumerate(operations) if each.output == inputs[0]), None)
        if isinstance(operation, Clip) and before is not None and readers[operation.inputs[0]] == 1:
            clipped = operations[before]
            low, high = max(clipped.low, operation.low), min(clipped.high, operation.high)
            operations[before] = replace(clipped, low=low, high=high)
            renamed[operation.output] = clipped.output
        else:
            operations.append(replace(operation, inputs=inputs))
    values = {name: value for name, value in program.values.items() if name not in renamed}
    output = renamed.get(program.output, program.output)
    return replace(program, operations=tuple(operations), values=values, output=output)
