"""Symmetric integer quantisation by the largest magnitude (min-max), and products of what it gives.

A row x becomes whole numbers k = round(x / s) with the one scale s = max |x| / (2^(bits-1) - 1), so that x is about s k
and 0 stays 0. Tensors hold the whole numbers as floats: sums of int8 products are exact in float32 up to 2^24.
"""

import torch
from torch import Tensor

EXACT_TERMS = 2**24 // 127**2  # products of two int8 numbers whose sum float32 holds for certain: 1,040


def quantize_rows(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Whole numbers [..., n], within +-(2^(bits-1) - 1), and the scale of each row [..., 1], both in x's type.

    A row of zeros has the smallest scale that is not 0.
    """
    largest = 2 ** (bits - 1) - 1
    scales = (x.abs().amax(-1, keepdim=True) / largest).clamp(min=torch.finfo(x.dtype).tiny)
    return (x / scales).round_().clamp_(-largest, largest), scales


def quantized_linear(x: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b with each row of x (a token) quantised to 8 bits as it comes; W already is.

    x [..., in]; weight [out, in], whole numbers; weight_scales [out, 1]. The sum over `in` is that of integer
    arithmetic: to the bit up to EXACT_TERMS inputs, rounded to float32 beyond. The result has x's type.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    levels, scales = quantize_rows(x.to(wide))
    out = (levels @ weight.T.to(wide)) * scales * weight_scales[:, 0].to(wide)
    return (out if bias is None else out + bias).to(x.dtype)
