"""Integer arithmetic of the first CMSIS-NN: 8-bit numbers with a power-of-two scale and no zero point.

Lai, Suda & Chandra 2018 (arXiv 1801.06601, section 3; kernels of CMSIS 5.4.0). A whole number k with n fractional bits
stands for k 2^-n. A layer has two shifts: its bias goes left by `bias_shift` to the format of the sums, and the sums go
right by `out_shift` to the format of the output. With inputs of a, weights of w, biases of b and outputs of o
fractional bits, bias_shift = a + w - b and out_shift = a + w - o.

Tensors hold whole numbers in any integer type; what comes back is int8, in PyTorch's order of axes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOW, HIGH = -128, 127
EXACT_TERMS = 2**24 // LOW**2  # products of two numbers of 8 bits whose sum float32 holds for certain: 1,024


def fraction_bits(largest: float, bits: int = 8) -> int:
    """Most fractional bits with which a magnitude of `largest` fits: bits - 1 - ceil(log2 largest).

    A power of two itself saturates by one step, as in the paper's quantisation guide. 0 gets bits - 1.
    """
    return bits - 1 - math.ceil(math.log2(largest)) if largest > 0 else bits - 1


def saturate(x: Tensor) -> Tensor:
    """Whole numbers clipped to [-128, 127], as int8."""
    return x.clamp(LOW, HIGH).to(torch.int8)


def quantize(x: Tensor, fraction: int) -> Tensor:
    """round(x 2^fraction), saturated: int8."""
    return saturate((x * 2.0**fraction).round())


def requantize(sums: Tensor, bias: Tensor, bias_shift: int, out_shift: int) -> Tensor:
    """((bias << bias_shift) + half + sums) >> out_shift, saturated, where half = 2^(out_shift - 1) rounds half up.

    sums and bias: int32, of shapes that broadcast. out_shift 0 has no half.
    """
    half = 1 << out_shift >> 1
    return saturate(((bias << bias_shift) + half + sums) >> out_shift)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    bias_shift: int,
    out_shift: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    groups: int = 1,
) -> Tensor:
    """x [batch, in, height, width], weight [out, in / groups, height, width], bias [out]; groups = in is depthwise.

    padding: zeros left, right, above, below.
    """
    wide = _exact(weight[0].numel())
    sums = F.conv2d(F.pad(x.to(wide), padding), weight.to(wide), stride=stride, groups=groups)
    return requantize(sums.int(), bias.int()[:, None, None], bias_shift, out_shift)


def fully_connected(x: Tensor, weight: Tensor, bias: Tensor, bias_shift: int, out_shift: int) -> Tensor:
    """x [..., in], weight [out, in], bias [out]."""
    wide = _exact(weight.shape[1])
    return requantize(F.linear(x.to(wide), weight.to(wide)).int(), bias.int(), bias_shift, out_shift)


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def average_pool(x: Tensor, shift: int) -> Tensor:
    """The mean over height and width times 2^shift, rounded toward zero as C divides: [batch, channels]."""
    return average(x.int().sum((-2, -1), dtype=torch.int32), x.shape[-2] * x.shape[-1], shift)


def average(sums: Tensor, counts: Tensor | int, shift: int) -> Tensor:
    """(sums << shift) / counts, rounded toward zero as C divides, saturated."""
    return saturate(torch.div(sums << shift, counts, rounding_mode="trunc"))


def _exact(terms: int) -> torch.dtype:
    """The fastest type that holds a sum of so many products to the unit."""
    return torch.float32 if terms <= EXACT_TERMS else torch.float64
