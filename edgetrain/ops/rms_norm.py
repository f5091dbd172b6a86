"""Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4) with its gradient written out.

torch's own is a chain of six small operations on a CPU, each with a gradient of its own; together they pass over the
states more than twice as often. Where autocast is on, the result has its type: every projection that reads it would
convert it for itself, and keep its own copy.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis: x and the result [..., dim], weight [dim]."""
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        device = x.device.type
        result_type = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()
        normal = x * scale
        ctx.save_for_backward(normal.to(result_type), scale, weight)
        return (normal * weight if result_type == x.dtype else normal.mul_(weight)).to(result_type)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        normal, scale, weight = ctx.saved_tensors
        normal = normal.to(weight.dtype)
        weight_gradient = (upstream * normal).reshape(-1, len(weight)).sum(0)
        # d normal / d x = scale * (1 - normal normal^T / dim)
        gradient = upstream * weight
        along = torch.linalg.vecdot(gradient, normal)[..., None].div_(normal.shape[-1])
        return gradient.sub_(normal * along).mul_(scale), weight_gradient, None
