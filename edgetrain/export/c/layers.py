"""The operations of an integer program as the constants and structs of kernels.h."""

from collections.abc import Mapping

from edgetrain.export.c.literals import array, comment, filled
from edgetrain.models.integer import (
    Add,
    AveragePool,
    Clip,
    Convolution,
    Depthwise,
    FullyConnected,
    IntegerProgram,
    MaxPool,
    Multipliers,
    Operation,
    Value,
    Window,
)

KINDS: dict[type[Operation], str] = {
    Convolution: "convolution",
    Depthwise: "depthwise",
    FullyConnected: "fully_connected",
    MaxPool: "max_pool",
    AveragePool: "average_pool",
    Add: "add",
    Clip: "clip",
}
Weighted = Convolution | Depthwise | FullyConnected
WITH_SCRATCH = (Convolution, Depthwise, FullyConnected, AveragePool)
Members = Mapping[str, int | str]


def constants(program: IntegerProgram, operation: Operation, name: str, index: int) -> str:
    """Weights of an operation and its struct. name: the model's; index: of the operation in the program."""
    inputs, made = [program.values[each] for each in operation.inputs], program.values[operation.output]
    head = comment(f"{operation.name}: {KINDS[type(operation)]}, {shape_of(inputs[0])} to {shape_of(made)}")
    arrays: dict[str, str] = {}
    match operation:
        case Convolution() | Depthwise() | FullyConnected():
            arrays = arrays_of(operation, name, index)
            lines = layer(operation, inputs[0], made, {key: f"{name}_{key}_{index}" for key in arrays})
        case MaxPool() | AveragePool():
            lines = pool(operation, inputs[0], made)
        case Add():
            lines = add(operation, *inputs, made)
        case _:
            return f"{head}\n"
    body = "\n".join(filled(f".{key} = {value}" for key, value in line.items()) for line in lines)
    struct = f"static const struct edgetrain_{kind_of(operation)} {struct_name(operation, name, index)}"
    return f"{head}\n{''.join(arrays.values())}{struct} = {{\n{body}\n}};\n"


def kind_of(operation: Operation) -> str:
    """Which struct of kernels.h describes it."""
    return "add" if isinstance(operation, Add) else "pool" if isinstance(operation, MaxPool | AveragePool) else "layer"


def struct_name(operation: Operation, name: str, index: int) -> str:
    return f"{name}_{kind_of(operation)}_{index}"


def arrays_of(operation: Weighted, name: str, index: int) -> dict[str, str]:
    arrays = {"weight": ("int8_t", operation.weight), "bias": ("int32_t", operation.bias)}
    if isinstance(operation.rescale, Multipliers):
        arrays["multiplier"] = ("int32_t", operation.rescale.multiplier)
        arrays["shift"] = ("int32_t", operation.rescale.shift)
    return {
        key: array(kind, f"{name}_{key}_{index}", values.flatten().tolist()) for key, (kind, values) in arrays.items()
    }


def layer(operation: Weighted, given: Value, made: Value, names: Mapping[str, str]) -> list[Members]:
    """names: of its arrays."""
    whole = isinstance(operation, FullyConnected)
    given_shape, made_shape = ((1, 1, each.bytes) if whole else each.shape for each in (given, made))
    return [
        {key: names[key] for key in ("weight", "bias")},
        {
            "rescale.multiplier": names.get("multiplier", "NULL"),
            "rescale.shift": names.get("shift", "NULL"),
            "rescale.right_shift": 0 if isinstance(operation.rescale, Multipliers) else operation.rescale.bits,
            "rescale.offset": made.zero_point,
            "rescale.low": operation.low,
            "rescale.high": operation.high,
        },
        {"input_offset": -given.zero_point},
        dict(zip(("in_height", "in_width", "in_channels"), given_shape, strict=True)),
        dict(zip(("out_height", "out_width", "out_channels"), made_shape, strict=True)),
        window(operation),
    ]


def pool(operation: MaxPool | AveragePool, given: Value, made: Value) -> list[Members]:
    left_shift = operation.left_shift if isinstance(operation, AveragePool) else None
    return [
        dict(zip(("in_height", "in_width", "channels"), given.shape, strict=True)),
        dict(zip(("out_height", "out_width"), made.shape[:2], strict=True)),
        window(operation),
        {"left_shift": -1 if left_shift is None else left_shift, "low": operation.low, "high": operation.high},
    ]


def add(operation: Add, first: Value, second: Value, made: Value) -> list[Members]:
    return [
        {"size": made.bytes},
        scaling("first_", -first.zero_point, operation.first),
        scaling("second_", -second.zero_point, operation.second),
        scaling("", made.zero_point, operation.result),
        {"low": operation.low, "high": operation.high},
    ]


def window(operation: Operation) -> Members:
    """Kernel, stride and padding; a fully connected layer has a window of one."""
    sizes = ((1, 1), (1, 1), (0, 0))
    if isinstance(operation, Window):
        sizes = (operation.kernel, operation.stride, operation.padding)
    names = ("kernel_height", "kernel_width", "stride_height", "stride_width", "pad_top", "pad_left")
    return dict(zip(names, (number for pair in sizes for number in pair), strict=True))


def scaling(prefix: str, offset: int, rescale: tuple[int, int]) -> Members:
    multiplier, shift = rescale
    return {f"{prefix}offset": offset, f"{prefix}multiplier": multiplier, f"{prefix}shift": shift}


def shape_of(value: Value) -> str:
    return " x ".join(map(str, value.shape))
