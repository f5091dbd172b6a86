"""Integer arithmetic of TensorFlow Lite's int8 scheme: number k stands for (k - zero_point) * scale.

Jacob et al. 2018 (arXiv 1712.05877, sections 2.1 to 2.4), to the bit as TensorFlow Lite's reference kernels, TensorFlow
Lite Micro and CMSIS-NN compute it by default: a rescaled sum is rounded twice, after the product and after the shift.
Each layer gives its sums, which `requantize` brings to the output's scale and `saturate` to 8 bits.

Tensors are [batch, height, width, channels]. Sums are int64 that hold numbers of 32 bits. A padding is rows above,
rows below, columns left, columns right; negative ones are left out.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOW, HIGH = -128, 127
INT32 = -(2**31), 2**31 - 1
SUM_BITS = 20  # by which an addition's inputs go left
DIFFERENCE_BITS, SUM_OF_EXPONENTIALS_BITS = 5, 12  # whole bits of a softmax's exponents and of their exponentials' sum

THIRD, EXP_OF_AN_EIGHTH = 715827883, 1895147668  # exp(-1/8)
# exp(-1/4), exp(-1/2), exp(-1), and so on to exp(-16)
EXP_OF_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
INVERSE_START, INVERSE_SLOPE = 1515870810, -1010580540  # 48/17 and -32/17 with two whole bits

Padding = tuple[int, int, int, int]


def quantize_multiplier(scale: float) -> tuple[int, int]:
    """(multiplier, shift) with scale = multiplier * 2^(shift - 31) and 2^30 <= multiplier < 2^31; halves go up.

    A scale below 2^-32 gives (0, 0), as 0 itself does.
    """
    fraction, shift = math.frexp(scale)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift + 1
    return (multiplier, shift) if shift >= -31 else (0, 0)


def requantize(x: Tensor, multiplier: Tensor | int, shift: Tensor | int) -> Tensor:
    """x * multiplier * 2^(shift - 31) for any x of 32 bits and multiplier >= 0, rounded twice: int64.

    multiplier, shift: for all, or [channels]. A positive shift goes left first and saturates at 32 bits, where
    TensorFlow Lite leaves the result open.
    """
    shift = torch.as_tensor(shift).long()
    if (shift > 0).any():
        x = (x.long() << shift.clamp(min=0)).clamp_(*INT32)
    return rounding_divide(doubling_high_product(x, multiplier), (-shift).clamp(min=0))


def doubling_high_product(x: Tensor, y: Tensor | int) -> Tensor:
    """round(x y / 2^31), the upper half of twice the product, for x and y that are not both -2^31.

    Halves go up: gemmlowp's nudge of 1 - 2^30 before a division toward zero says the same of negative products.
    """
    return (x.long() * y).add_(2**30).bitwise_right_shift_(31)


def rounding_divide(x: Tensor, bits: Tensor | int) -> Tensor:
    """round(x / 2^bits) of int64, halves away from zero."""
    bits = torch.as_tensor(bits)
    below_zero = (x >> 63) & -(bits > 0).long()  # -1 or 0
    return below_zero.add_(x).add_(1 << bits >> 1).bitwise_right_shift_(bits)


def saturate(x: Tensor, zero_point: int = 0, low: int = LOW, high: int = HIGH) -> Tensor:
    """zero_point + x, clipped: int8."""
    return (x + zero_point).clamp_(low, high).to(torch.int8)


def largest_sum(weight: Tensor, bias: Tensor, zero_point: int) -> Tensor:
    """Bound of every output's sums, whatever the input: int64 [out]. Below 2^31 nothing overflows on the device.

    weight: int8 [out, ...].
    """
    return bias.long().abs() + weight.long().abs().flatten(1).sum(1) * _reach(zero_point)


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor, zero_point: int, stride: tuple[int, int], padding: Padding
) -> Tensor:
    """Sums of bias + (x - zero_point) * weight; what is padded adds nothing.

    weight: int8 [out, kernel height, kernel width, in]; bias: int32 [out].
    """
    return _slide(x, _channels_first(weight), bias, zero_point, stride, padding)


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, zero_point: int, stride: tuple[int, int], padding: Padding
) -> Tensor:
    """The same for a kernel for every channel: weight int8 [kernel height, kernel width, channels]."""
    weight = weight.permute(2, 0, 1).contiguous()[:, None]
    return _slide(x, weight, bias, zero_point, stride, padding, groups=len(bias))


def fully_connected(x: Tensor, weight: Tensor, bias: Tensor, zero_point: int) -> Tensor:
    """Sums [..., out] of x [..., in]; weight: int8 [out, in]; bias: int32 [out]."""
    wide = _exact(weight, zero_point)
    return F.linear(x.to(wide) - zero_point, weight.to(wide)).long().add_(bias)


def max_pool(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: Padding) -> Tensor:
    """The largest of each window, of what is there: int8."""
    maps = _channels_first(_pad(x, padding, LOW))
    return F.max_pool2d(maps.float(), kernel, stride).permute(0, 2, 3, 1).to(torch.int8)


def average_pool(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: Padding) -> Tensor:
    """The mean of each window, of what is there, halves away from zero: int8."""
    sums, counts = window_sums(x, kernel, stride, padding)
    return (sums.sign() * ((sums.abs() + counts // 2) // counts)).to(torch.int8)


def window_sums(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: Padding) -> tuple[Tensor, Tensor]:
    """int64: the sum of each window, and of how many numbers it is one, [height, width, 1]."""

    def pooled(maps: Tensor) -> Tensor:
        maps = _channels_first(_pad(maps, padding, 0)).double()
        return F.avg_pool2d(maps, kernel, stride, divisor_override=1).permute(0, 2, 3, 1).long()

    return pooled(x), pooled(x.new_ones(1, *x.shape[1:3], 1))[0]


def add_multipliers(first: float, second: float, output: float) -> tuple[tuple[int, int], ...]:
    """(multiplier, shift) of both inputs and of the output of `add`, from their scales."""
    common = 2 * max(first, second)
    return tuple(map(quantize_multiplier, (first / common, second / common, common / (2**SUM_BITS * output))))


def add(
    first: Tensor,
    second: Tensor,
    first_multiplier: tuple[int, int],
    second_multiplier: tuple[int, int],
    result_multiplier: tuple[int, int],
) -> Tensor:
    """Inputs less their zero points -> output less its own: int64. Each (multiplier, shift) as `add_multipliers` has
    it: inputs go left by SUM_BITS, and to a common scale, in which they are added."""
    sums = requantize(first.long() << SUM_BITS, *first_multiplier)
    return requantize(sums + requantize(second.long() << SUM_BITS, *second_multiplier), *result_multiplier)


def softmax_multiplier(scale: float) -> tuple[int, int, int]:
    """(multiplier, shift, diff_min) of `softmax` for logits of this scale.

    A difference from the largest goes to DIFFERENCE_BITS whole bits; below diff_min it would not fit, and counts as 0.
    """
    multiplier, shift = quantize_multiplier(min(scale * 2 ** (31 - DIFFERENCE_BITS), 2.0**31 - 1))
    return multiplier, shift, -math.floor((2**DIFFERENCE_BITS - 1) * 2 ** (31 - DIFFERENCE_BITS) / 2**shift)


def softmax(x: Tensor, multiplier: int, shift: int, diff_min: int) -> Tensor:
    """int8 [..., n] -> probabilities int8 of scale 1/256 and zero point -128; parameters of `softmax_multiplier`."""
    difference = x.long() - x.long().amax(-1, keepdim=True)
    counts = difference >= diff_min
    exponentials = _exponential(requantize(difference.clamp(min=diff_min), multiplier, shift))
    total = (rounding_divide(exponentials, SUM_OF_EXPONENTIALS_BITS) * counts).sum(-1, keepdim=True)
    _, exponent = torch.frexp(total.double())  # total = fraction * 2^exponent, fraction from 1/2 to 1
    inverse = _inverse_of_one_plus((total << 32 - exponent) - 2**31)
    product = doubling_high_product(inverse, exponentials)
    # total is from 1/2 to 1 times 2^(exponent - 31 + SUM_OF_EXPONENTIALS_BITS); the output has 8 bits behind the point
    share = rounding_divide(product, exponent - 32 + SUM_OF_EXPONENTIALS_BITS + 31 - 8)
    return torch.where(counts, saturate(share, LOW), LOW).to(torch.int8)


def _exponential(x: Tensor) -> Tensor:
    """exp(x) for x <= 0 with DIFFERENCE_BITS whole bits of 31; the result has none (gemmlowp, fixedpoint.h)."""
    fraction = 31 - DIFFERENCE_BITS
    quarter = 1 << fraction - 2
    near = (x & quarter - 1) - quarter  # from -1/4 to 0, and `rest` quarters more
    rest = near - x
    y = (near << DIFFERENCE_BITS) + (1 << 28)  # plus 1/8, in which the Taylor series is
    square = doubling_high_product(y, y)
    cube, fourth = doubling_high_product(square, y), doubling_high_product(square, square)
    higher = doubling_high_product(rounding_divide(fourth, 2) + cube, THIRD) + square
    result = doubling_high_product(y + rounding_divide(higher, 1), EXP_OF_AN_EIGHTH) + EXP_OF_AN_EIGHTH
    for power, factor in enumerate(EXP_OF_POWERS, fraction - 2):
        result = torch.where((rest & 1 << power) != 0, doubling_high_product(result, factor), result)
    return torch.where(x == 0, INT32[1], result)


def _inverse_of_one_plus(x: Tensor) -> Tensor:
    """1 / (1 + x) for x from 0 to 1, no whole bits of 31: three of Newton's steps (gemmlowp, fixedpoint.h)."""
    half = x + INT32[1] + 1 >> 1  # (1 + x) / 2; x is not negative
    y = INVERSE_START + doubling_high_product(half, INVERSE_SLOPE)  # two whole bits
    for _ in range(3):
        error = (1 << 29) - doubling_high_product(half, y)
        y = y + (doubling_high_product(y, error) << 2).clamp(*INT32)
    return (y << 1).clamp(*INT32)


def _slide(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    zero_point: int,
    stride: tuple[int, int],
    padding: Padding,
    groups: int = 1,
) -> Tensor:
    """weight: as torch has it."""
    wide = _exact(weight, zero_point)
    maps = _channels_first(_pad(x.to(wide) - zero_point, padding, 0))
    with torch.backends.nnpack.flags(enabled=False):  # its transforms round
        sums = F.conv2d(maps, weight.to(wide), stride=stride, groups=groups)
    return sums.permute(0, 2, 3, 1).long().add_(bias)


def _channels_first(x: Tensor) -> Tensor:
    """A view [batch, channels, height, width]. One channel gets strides that name no other order: where it could as
    well be the last axis, oneDNN (PyTorch 2.13) reads beyond the maps of a convolution that leaves columns over."""
    return x.permute(0, 3, 1, 2) if x.shape[3] > 1 else x.reshape(len(x), 1, *x.shape[1:3])


def _pad(x: Tensor, padding: Padding, value: int) -> Tensor:
    above, below, left, right = padding
    return F.pad(x, (0, 0, left, right, above, below), value=value) if any(padding) else x


def _reach(zero_point: int) -> int:
    """The largest |x - zero_point|."""
    return max(HIGH - zero_point, zero_point - LOW)


def _exact(weight: Tensor, zero_point: int) -> torch.dtype:
    """The fastest type that holds every sum, in whatever order it is added, to the unit."""
    largest = largest_sum(weight, torch.zeros(1), zero_point).max().item()
    return torch.float32 if largest <= 2**24 else torch.float64
