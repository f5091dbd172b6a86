"""Rounding to a few bits while numbers stay in floating point, with gradients that pass straight through.

Values land on a grid, (k - zero point) * scale for whole k, as integer arithmetic will see them. The gradient is 1
where a value is inside the grid and 0 where it was clipped (Krishnamoorthi 2018, arXiv 1806.08342, section 2.5).
"""

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-23  # of a channel of zeros


def weight_scales(weight: Tensor, bits: int = 8) -> Tensor:
    """The largest magnitude of an output channel over 2^(bits-1) - 1: [out]. Symmetric, so zero is a level."""
    return (weight.detach().flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)).clamp(min=SMALLEST_SCALE)


def fake_quantize_weight(weight: Tensor, bits: int = 8) -> Tensor:
    """weight [out, ...] on the grid of its output channel, from -(2^(bits-1) - 1) to 2^(bits-1) - 1."""
    top, scales = 2 ** (bits - 1) - 1, weight_scales(weight, bits)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -top, top)


def activation_grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point (int32) of int8 over [low, high], widened to hold zero, which is a level exactly."""
    low, high = low.detach().clamp(max=0), high.detach().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=SMALLEST_SCALE)
    return scale, (-128 - (low / scale).round()).clamp(-128, 127).int()


def fake_quantize_activation(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """x on the grid of int8 over [low, high]; values outside are clipped."""
    scale, zero_point = activation_grid(low, high)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127)
