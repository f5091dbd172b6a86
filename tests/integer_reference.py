"""Networks in whole numbers, number by number in Python's own integers, from TensorFlow Lite's definitions."""

import math
from collections.abc import Callable, Iterator

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
    Rescale,
    Value,
)

INT32 = -(2**31), 2**31 - 1
Maps = list[list[list[int]]]  # height, width, channels


def divide(x: int, y: int) -> int:
    """As C divides, toward zero."""
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def clip(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


def high_product(x: int, y: int) -> int:
    """SaturatingRoundingDoublingHighMul."""
    nudge = 2**30 if x * y >= 0 else 1 - 2**30
    return INT32[1] if x == y == INT32[0] else divide(x * y + nudge, 2**31)


def divide_by_power(x: int, bits: int) -> int:
    """RoundingDivideByPOT."""
    mask = 2**bits - 1
    return (x >> bits) + ((x & mask) > (mask >> 1) + (x < 0))


def multiply(x: int, multiplier: int, shift: int) -> int:
    """MultiplyByQuantizedMultiplier, rounded twice; what goes left saturates."""
    return divide_by_power(high_product(clip(x << max(shift, 0), *INT32), multiplier), max(-shift, 0))


def run(program: IntegerProgram, x: Maps) -> dict[str, Maps]:
    """Every value of one input."""
    values = {program.input: x}
    for operation in program.operations:
        given, output = (program.values[name] for name in (operation.inputs[0], operation.output))
        number = _number(program, operation, [values[name] for name in operation.inputs], given, output)
        height, width, channels = output.shape
        values[operation.output] = [
            [
                [clip(number(row, column, channel), operation.low, operation.high) for channel in range(channels)]
                for column in range(width)
            ]
            for row in range(height)
        ]
    return values


def _number(
    program: IntegerProgram, operation: Operation, inputs: list[Maps], given: Value, output: Value
) -> Callable[[int, int, int], int]:
    """The output at a row, column and channel, before it is clipped."""
    x, channels, start = inputs[0], range(given.shape[2]), given.zero_point

    def window(row: int, column: int) -> Iterator[tuple[int, int, int, int]]:
        """The places of a kernel that stand on the map: row and column of the kernel, of the map."""
        for down in range(operation.kernel[0]):
            for along in range(operation.kernel[1]):
                y = row * operation.stride[0] - operation.padding[0] + down
                z = column * operation.stride[1] - operation.padding[1] + along
                if 0 <= y < given.shape[0] and 0 <= z < given.shape[1]:
                    yield down, along, y, z

    match operation:
        case Convolution(weight=weight, bias=bias, rescale=rescale):
            weight = weight.tolist()
            return lambda row, column, to: (
                output.zero_point
                + _rescale(
                    rescale,
                    int(bias[to])
                    + sum(
                        (x[y][z][c] - start) * weight[to][d][a][c]
                        for d, a, y, z in window(row, column)
                        for c in channels
                    ),
                    to,
                )
            )
        case Depthwise(weight=weight, bias=bias, rescale=rescale):
            weight = weight.tolist()
            return lambda row, column, to: (
                output.zero_point
                + _rescale(
                    rescale,
                    int(bias[to]) + sum((x[y][z][to] - start) * weight[d][a][to] for d, a, y, z in window(row, column)),
                    to,
                )
            )
        case FullyConnected(weight=weight, bias=bias, rescale=rescale):
            flat = [number for row in x for column in row for number in column]
            return lambda row, column, to: (
                output.zero_point
                + _rescale(
                    rescale,
                    int(bias[to]) + sum((k - start) * w for k, w in zip(flat, weight[to].tolist(), strict=True)),
                    to,
                )
            )
        case MaxPool():
            return lambda row, column, c: max(x[y][z][c] for _, _, y, z in window(row, column))
        case AveragePool(left_shift=left_shift):
            return lambda row, column, c: _average([x[y][z][c] for _, _, y, z in window(row, column)], left_shift)
        case Add():
            other, offset = inputs[1], program.values[operation.inputs[1]].zero_point
            return lambda row, column, c: (
                output.zero_point
                + multiply(
                    multiply((x[row][column][c] - start) << 20, *operation.first)
                    + multiply((other[row][column][c] - offset) << 20, *operation.second),
                    *operation.result,
                )
            )
        case Clip():
            return lambda row, column, c: x[row][column][c]
    raise TypeError(type(operation))


def _rescale(rescale: Rescale, total: int, channel: int) -> int:
    if isinstance(rescale, Multipliers):
        return multiply(total, int(rescale.multiplier[channel]), int(rescale.shift[channel]))
    half = 2 ** (rescale.bits - 1) if rescale.bits else 0
    return math.floor((total + half) / 2**rescale.bits)


def _average(numbers: list[int], left_shift: int | None) -> int:
    total, count = sum(numbers), len(numbers)
    if left_shift is not None:
        return divide(total << left_shift, count)
    return divide(total + count // 2, count) if total > 0 else divide(total - count // 2, count)
