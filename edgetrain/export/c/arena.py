"""The static arena: where each tensor of an integer program stands, for our own kernels and for CMSIS-NN's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetrain.errors import UserError
from edgetrain.hardware.activation_memory import ActivationMemory, plan
from edgetrain.hardware.cmsis_nn import dsp_scratch, helium_scratch
from edgetrain.hardware.formats import INT8
from edgetrain.hardware.workload import Activation, Layer, Loops, Workload
from edgetrain.models.integer import (
    Add,
    AveragePool,
    Convolution,
    Depthwise,
    FullyConnected,
    IntegerProgram,
    MaxPool,
    Multipliers,
    Operation,
    Value,
)

ALIGNMENT = 16  # bytes; a Helium register
LARGEST = 2**31 - 1  # offsets are int32_t
OWN, CMSIS_NN = "own", "cmsis_nn"


@dataclass(frozen=True)
class Arena:
    """A plan. offsets: of each value, by its name; scratch: (offset, bytes) of each operation that needs some.

    live: bytes that live while an operation runs, scratch included. lower_bound: the most that lives at once.
    """

    bytes: int
    lower_bound: int
    offsets: Mapping[str, int]
    scratch: Mapping[str, tuple[int, int]]
    live: Mapping[str, int]

    @property
    def peak_layer(self) -> str:
        """The first operation during which most lives."""
        return max(self.live, key=self.live.__getitem__)

    def facts(self) -> dict[str, Any]:
        return {
            "bytes": self.bytes,
            "lower_bound_bytes": self.lower_bound,
            "peak_layer": self.peak_layer,
            "live_bytes": dict(self.live),
            "offsets": dict(self.offsets),
            "scratch": {name: {"offset": offset, "bytes": size} for name, (offset, size) in self.scratch.items()},
        }


def arenas(program: IntegerProgram) -> dict[str, Arena]:
    """The plan for our kernels, `own`, and the one for CMSIS-NN's, `cmsis_nn`.

    Our pools, additions and clips write over their input where they are the last to read it; CMSIS-NN does not promise
    to. Raises UserError for an arena beyond 2 GiB.
    """
    table = workload(program)
    return {
        OWN: planned(table, plan(table, True, by_operation(program, own_scratch), ALIGNMENT)),
        CMSIS_NN: planned(table, plan(table, False, by_operation(program, cmsis_nn_scratch), ALIGNMENT)),
    }


def planned(table: Workload, memory: ActivationMemory) -> Arena:
    names = [layer.name for layer in table]
    if memory.arena_bytes > LARGEST:
        raise UserError(
            f"export.c: activations need an arena of {memory.arena_bytes:,} bytes, most at "
            f"'{names[memory.peak_layer]}', more than the 2 GiB that 32-bit offsets reach; use a smaller network"
        )
    places = {placement.tensor.name: (placement.offset, placement.tensor.bytes) for placement in memory.placements}
    scratch = {name: places.pop(f"{name} scratch") for name in names if f"{name} scratch" in places}
    offsets = {name: offset for name, (offset, _) in places.items()}
    return Arena(memory.arena_bytes, memory.peak, offsets, scratch, dict(zip(names, memory.live, strict=True)))


def workload(program: IntegerProgram) -> Workload:
    """The program as the table of layers that the planner and every device read."""
    layers = tuple(layer_of(operation, program.values) for operation in program.operations)
    return Workload("integer program", layers, (program.input,), (program.output,))


def layer_of(operation: Operation, values: Mapping[str, Value]) -> Layer:
    given, made = values[operation.inputs[0]], values[operation.output]
    height, width, channels = made.shape
    in_channels = given.shape[2]
    weight = getattr(operation, "weight", None)
    sizes = {"out_channels": channels, "out_height": height, "out_width": width}
    if hasattr(operation, "kernel"):
        sizes |= dict(zip(("kernel_height", "kernel_width"), operation.kernel, strict=True))
        sizes |= dict(zip(("stride_height", "stride_width"), operation.stride, strict=True))
    match operation:
        case Convolution():
            kind, loops = "conv", Loops(in_channels=in_channels, **sizes)
        case Depthwise():
            kind, loops = "depthwise", Loops(groups=channels, in_channels=channels, **sizes)
        case FullyConnected():
            kind, loops = "linear", Loops(in_channels=given.bytes, **sizes)
        case MaxPool() | AveragePool():
            kind, loops = "pool", Loops(groups=channels, in_channels=channels, **sizes)
        case _:
            kind, loops = "elementwise", Loops(**sizes)
    return Layer(
        operation.name,
        kind,
        loops,
        tuple(activation(values[name]) for name in operation.inputs),
        (activation(made),),
        macs=0 if weight is None else loops.macs,
        operations=made.bytes * (2 if isinstance(operation, Add) else 1) if weight is None else 2 * loops.macs,
        weights=0 if weight is None else weight.numel(),
        biases=0 if weight is None else channels,
        weight_format=INT8,
    )


def activation(value: Value) -> Activation:
    return Activation(value.name, value.shape, INT8)


def by_operation(program: IntegerProgram, scratch: Callable[[Operation, Layer], int]) -> Callable[[Layer], int]:
    operations = {operation.name: operation for operation in program.operations}
    return lambda layer: scratch(operations[layer.name], layer)


def own_scratch(operation: Operation, layer: Layer) -> int:
    """Bytes that kernels.c needs: two columns of int16 on cores with DSP instructions, four of int8 with Helium."""
    return im2col(layer) if isinstance(operation, Convolution) else 0


def cmsis_nn_scratch(operation: Operation, layer: Layer) -> int:
    """Bytes that CMSIS-NN asks for on any core: `hardware.cmsis_nn`, and what it leaves out there."""
    needed = max(dsp_scratch(layer), helium_scratch(layer))
    if isinstance(operation, Convolution):
        fast = operation.kernel == (1, 1) and operation.padding == (0, 0) and isinstance(operation.rescale, Multipliers)
        return needed if fast else max(needed, im2col(layer))  # q7 is computed by our own
    if isinstance(operation, Depthwise):  # nor is one of 3 x 3 that is padded by 2
        return max(needed, 2 * layer.loops.kernel_height * layer.loops.kernel_width * layer.loops.in_channels)
    return 4 * layer.loops.in_channels if isinstance(operation, AveragePool) else needed


def im2col(layer: Layer) -> int:
    loops = layer.loops
    return 4 * -(-loops.kernel_height * loops.kernel_width * loops.in_channels // 16) * 16
