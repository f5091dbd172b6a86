"""A network in whole numbers: the list of operations that a microcontroller runs, and the same list run in PyTorch.

What is evaluated here is what the C target computes, to the bit (Lai & Suda 2018, arXiv 1806.07846: evaluate with the
operators that are deployed). Two schemes share the list. int8 is TensorFlow Lite's (Jacob et al. 2018, arXiv
1712.05877): a scale for each output channel of a weight, a scale and a zero point for each activation, sums rescaled by
a fixed-point multiplier. q7 is the first CMSIS-NN's (arXiv 1801.06601): powers of two, no zero point, sums shifted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.ops import int8, q7

NUMBERS_AT_ONCE = 2**18  # of the largest value: their sums, of 64 bits, stay in a core's cache


@dataclass(frozen=True)
class Value:
    """A tensor of int8 between two operations: number k stands for (k - zero_point) * scale.

    shape: height, width, channels, in memory in this order; a vector is (1, 1, n).
    """

    name: str
    shape: tuple[int, int, int]
    scale: float
    zero_point: int

    @property
    def bytes(self) -> int:
        height, width, channels = self.shape
        return height * width * channels


@dataclass(frozen=True)
class Multipliers:
    """Rescaling of int8: sum * multiplier * 2^(shift - 31), rounded twice (`ops.int8.requantize`).

    multiplier, shift: int32 [out channels]; a positive shift goes left.
    """

    multiplier: Tensor
    shift: Tensor


@dataclass(frozen=True)
class RightShift:
    """Rescaling of q7: (sum + half) >> bits, half = 2^(bits - 1), no half for 0 bits (`ops.q7.requantize`)."""

    bits: int


Rescale = Multipliers | RightShift


@dataclass(frozen=True, kw_only=True)
class Operation:
    """name: the module's path in the network, made unique; inputs, output: names of values; low, high: the output is
    clipped to them, by saturation or a ReLU."""

    name: str
    inputs: tuple[str, ...]
    output: str
    low: int = -128
    high: int = 127


@dataclass(frozen=True, kw_only=True)
class Window(Operation):
    """What slides. padding: rows above and columns left that are not there; below and right follow from the shapes."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Convolution(Window):
    """weight: int8 [out, kernel height, kernel width, in]; bias: int32 [out], in the format of the sums.

    out = zero point + rescale(bias + sum of (x - zero point of x) * w), clipped; what is padded adds nothing.
    """

    weight: Tensor
    bias: Tensor
    rescale: Rescale


@dataclass(frozen=True, kw_only=True)
class Depthwise(Window):
    """A kernel for every channel by itself. weight: int8 [kernel height, kernel width, channels]; bias: int32."""

    weight: Tensor
    bias: Tensor
    rescale: Rescale


@dataclass(frozen=True, kw_only=True)
class FullyConnected(Operation):
    """weight: int8 [out, height * width * channels of the input, in the order of memory]; bias: int32 [out]."""

    weight: Tensor
    bias: Tensor
    rescale: Rescale


@dataclass(frozen=True, kw_only=True)
class MaxPool(Window):
    """Of what is there; input and output share scale and zero point."""


@dataclass(frozen=True, kw_only=True)
class AveragePool(Window):
    """Of what is there. left_shift: None in int8, where halves go away from zero and scale and zero point stay;
    in q7 the sum is shifted left by it and divided as C divides, toward zero."""

    left_shift: int | None = None


@dataclass(frozen=True, kw_only=True)
class Add(Operation):
    """TensorFlow Lite's addition: both inputs, less their zero points, go left by 20 bits, are scaled by their
    multipliers to a common scale, added, and scaled to the output's. (multiplier, shift) of each input, of the output.
    """

    first: tuple[int, int]
    second: tuple[int, int]
    result: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Clip(Operation):
    """A ReLU that stands by itself; input and output share scale and zero point."""


@dataclass(frozen=True)
class IntegerProgram:
    """Operations in the order in which they run; each writes one value.

    scheme: int8 or q7. input_axes: the axes of the network's own input, without the batch, in the order height, width,
    channels; None for an axis that it lacks, as (0, 1, None) for features [frames, coefficients] of one channel.
    """

    scheme: str
    values: Mapping[str, Value]
    operations: tuple[Operation, ...]
    input: str
    output: str
    input_axes: tuple[int | None, int | None, int | None]


class IntegerNetwork(nn.Module):
    """A program, called like the network that it was lowered from: floats in, dequantised logits out.

    front_end: what stays in floating point before the input is quantised; None for nothing. input_shape: of the
    network's input, without the batch. It runs on the CPU. Raises UserError for a layer whose sums may not fit 32 bits.
    """

    def __init__(
        self, program: IntegerProgram, input_shape: tuple[int, ...], front_end: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.program, self.input_shape, self.front_end = program, input_shape, front_end
        for layer in program.operations:
            if isinstance(layer, Convolution | Depthwise | FullyConnected):
                check_sums(layer, program.values[layer.inputs[0]].zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [batch, *input_shape] -> logits float32 [batch, n]."""
        return self.dequantize(self.run(self.quantize(x))[self.program.output].flatten(1))

    def dequantize(self, logits: Tensor) -> Tensor:
        """int8 [batch, n] -> float32, what the output's numbers stand for."""
        output = self.program.values[self.program.output]
        return (logits.float() - output.zero_point) * output.scale

    @torch.inference_mode()
    def quantize(self, x: Tensor) -> Tensor:
        """float32 [batch, *input_shape] -> int8 [batch, height, width, channels].

        k = round(x * (1 / scale)) + zero point, clipped: the reciprocal is taken in 64 bits and rounded to 32, the
        product and the sum are of 32 bits, halves go to the even number. So does torch's quantize_per_tensor, and C's
        nearbyintf(x * (float)(1 / scale)) + zero_point. What is not a number gives -128.
        """
        value = self.program.values[self.program.input]
        x = x if self.front_end is None else self.front_end(x)
        number = (x * (1 / value.scale)).round() + value.zero_point
        number = torch.where(number > -128, number, -128).clamp(max=127).to(torch.int8)
        axes = [axis + 1 for axis in self.program.input_axes if axis is not None]
        return number.permute(0, *axes).reshape(-1, *value.shape)

    @torch.inference_mode()
    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Every value, by name, int8 [batch, height, width, channels], from the quantised input."""
        at_once = max(1, NUMBERS_AT_ONCE // max(value.bytes for value in self.program.values.values()))
        pieces = [self.run_together(piece) for piece in x.split(at_once)]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def run_together(self, x: Tensor) -> dict[str, Tensor]:
        """The same of a batch whose sums fit in memory."""
        values = {self.program.input: x}
        for operation in self.program.operations:
            values[operation.output] = self.apply(operation, *(values[name] for name in operation.inputs))
        return values

    def apply(self, operation: Operation, x: Tensor, *others: Tensor) -> Tensor:
        """One operation's output, int8."""
        given, output = (self.program.values[name] for name in (operation.inputs[0], operation.output))
        low, high = operation.low, operation.high
        match operation:
            case Convolution() | Depthwise():
                kernel = int8.convolution if isinstance(operation, Convolution) else int8.depthwise
                padding = padding_of(operation, given, output)
                sums = kernel(x, operation.weight, operation.bias, given.zero_point, operation.stride, padding)
                return rescaled(sums, operation.rescale, output, low, high)
            case FullyConnected():
                sums = int8.fully_connected(x.flatten(1), operation.weight, operation.bias, given.zero_point)
                return rescaled(sums[:, None, None], operation.rescale, output, low, high)
            case MaxPool():
                padding = padding_of(operation, given, output)
                return int8.max_pool(x, operation.kernel, operation.stride, padding).clamp(low, high)
            case AveragePool():
                window = operation.kernel, operation.stride, padding_of(operation, given, output)
                if operation.left_shift is None:
                    return int8.average_pool(x, *window).clamp(low, high)
                return q7.average(*int8.window_sums(x, *window), operation.left_shift).clamp(low, high)
            case Add():
                second = self.program.values[operation.inputs[1]]
                numbers = x.int() - given.zero_point, others[0].int() - second.zero_point
                sums = int8.add(*numbers, operation.first, operation.second, operation.result)
                return int8.saturate(sums, output.zero_point, low, high)
            case Clip():
                return x.clamp(low, high)
        raise TypeError(f"{operation.name}: there is no {type(operation).__name__} in whole numbers")


def rescaled(sums: Tensor, rescale: Rescale, output: Value, low: int, high: int) -> Tensor:
    """int64 [batch, height, width, channels] -> int8."""
    if isinstance(rescale, Multipliers):
        return int8.saturate(int8.requantize(sums, rescale.multiplier, rescale.shift), output.zero_point, low, high)
    return q7.requantize(sums, torch.zeros(1, dtype=torch.int64), 0, rescale.bits).clamp(low, high)


def padding_of(window: Window, given: Value, output: Value) -> int8.Padding:
    """Rows above and below, columns left and right; below and right are what the last window reads over the edge."""
    sides = []
    for axis in (0, 1):
        read = (output.shape[axis] - 1) * window.stride[axis] + window.kernel[axis]
        sides += [window.padding[axis], read - window.padding[axis] - given.shape[axis]]
    above, below, left, right = sides
    return above, below, left, right


def check_sums(layer: Convolution | Depthwise | FullyConnected, zero_point: int) -> None:
    """Raises UserError where some input could overflow the 32 bits of a sum."""
    weight = layer.weight.movedim(-1, 0) if isinstance(layer, Depthwise) else layer.weight
    half = 1 << layer.rescale.bits >> 1 if isinstance(layer.rescale, RightShift) else 0
    largest = int8.largest_sum(weight, layer.bias, zero_point).max().item() + half
    if largest >= 2**31:
        raise UserError(
            f"{layer.name}: a sum can reach {largest:,}, more than 32 bits hold, for its bias is too large for the "
            f"scale of its weights; train it with a smaller bias or more weight decay"
        )
