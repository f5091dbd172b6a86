"""Causal attention for training in bfloat16 on a CPU: torch's flash kernel forward, its gradient in blocks of rows.

The flash kernel's own backward pass makes many products too small for a CPU's matrix unit. Here the scores of a block
of queries with all keys before them are computed once more and normalised whole (Dao et al. 2022, arXiv 2205.14135,
appendix B.2, without its inner loop over keys), so that a row of blocks is five large products. No more than one block
of scores is ever in memory.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

ROWS = 128  # queries of a block: fewer make the products small, more waste work above the diagonal
SCORES = 2**21  # scores of a block; with more, its three buffers leave the cache


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, every position seeing itself and those before it.

    q and the result [batch, heads, n, head_dim]; k, v [batch, kv_heads, n, head_dim], each for heads/kv_heads heads.
    """
    return _CausalAttention.apply(q, k, v)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        batch, heads, n, _ = q.shape
        gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        rows = min(ROWS, n)
        samples = max(1, min(batch, SCORES // (heads * rows * n)))
        buffers = [q.new_empty(samples * heads * rows * n) for _ in range(3)]
        for start in range(0, batch, samples):
            part = slice(start, start + samples)
            _gradient([x[part] for x in (q, k, v, upstream)], [x[part] for x in gradients], rows, buffers)
        return gradients


def _gradient(inputs: list[Tensor], gradients: list[Tensor], rows: int, buffers: list[Tensor]) -> None:
    """Fill the gradients of q, k and v; `buffers` have room for one block's scores each.

    With P = softmax(S): dV = P^T dO, dP = dO V^T, dS = P * (dP - sum(P * dP)), dQ = dS K, dK = dS^T Q.
    """
    q, k, v, upstream = inputs
    batch, kv_heads, n, width = k.shape
    group = q.shape[1] // kv_heads
    scale = width**-0.5
    q, upstream, q_gradient = (x.unflatten(1, (kv_heads, group)) for x in (q, upstream, gradients[0]))
    k, v = (x.reshape(batch * kv_heads, n, width) for x in (k, v))
    k_sum, v_sum = torch.zeros(2, *k.shape, dtype=torch.promote_types(k.dtype, torch.float32))
    above = k.new_full((rows, rows), -math.inf).triu(1)
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        count = stop - start
        # All query heads of a key head are rows of one product.
        queries = (q[:, :, :, start:stop] * scale).reshape(batch * kv_heads, group * count, width)
        above_queries = upstream[:, :, :, start:stop].reshape(queries.shape)
        keys, values = k[:, :stop], v[:, :stop]
        size = queries.shape[:2].numel() * stop
        scores, softmax, softmax_gradient = (buffer[:size].view(*queries.shape[:2], stop) for buffer in buffers)
        torch.bmm(queries, keys.mT, out=scores)
        scores.view(-1, group, count, stop)[..., start:] += above[:count, :count]
        torch.ops.aten._softmax.out(scores, -1, False, out=softmax)
        v_sum[:, :stop] += softmax.mT @ above_queries
        torch.bmm(above_queries, values.mT, out=softmax_gradient)
        torch.ops.aten._softmax_backward_data.out(softmax_gradient, softmax, -1, scores.dtype, grad_input=scores)
        q_gradient[:, :, :, start:stop] = (scores @ keys * scale).view(batch, kv_heads, group, count, width)
        k_sum[:, :stop] += scores.mT @ queries
    gradients[1].copy_(k_sum.view(gradients[1].shape))
    gradients[2].copy_(v_sum.view(gradients[2].shape))
