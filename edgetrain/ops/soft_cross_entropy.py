"""Cross-entropy against another model's distribution, chunk by chunk: neither model's logits are ever held whole.

As in `cross_entropy`, the student's gradient is formed in the forward pass, while a chunk's logits are at hand.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from edgetrain.ops.cross_entropy import weight_type

CHUNK = 256  # rows of both models' logits: with some thousand classes they stay in a CPU's cache


def linear_soft_cross_entropy(
    states: Tensor,
    head: Tensor,
    teacher_states: Tensor,
    teacher_head: Tensor,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Tensor:
    """T^2 * mean over rows of -sum_c p_c log q_c, p = softmax(teacher logits / T), q = softmax(logits / T).

    states [rows, dim], head [classes, dim], and the teacher's of any other width; a float32 scalar (float64 where the
    states are). T^2 keeps the gradient's size over T (Hinton et al. 2015, arXiv 1503.02531, section 2). chunk: rows of
    logits in memory at once. The teacher gets no gradient; matrix products run in autocast's type where it is on.
    """
    return _LinearSoftCrossEntropy.apply(states, head, teacher_states, teacher_head, temperature, chunk)


class _LinearSoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        states: Tensor,
        head: Tensor,
        teacher_states: Tensor,
        teacher_head: Tensor,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        device, rows = states.device.type, states.shape[0]
        product_type = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        sum_type = weight_type(states)
        need_states, need_head = ctx.needs_input_grad[:2]
        states_gradient = torch.empty_like(states) if need_states else None
        head_gradient = torch.zeros_like(head, dtype=sum_type) if need_head else None
        loss = torch.zeros((), dtype=sum_type, device=states.device)
        with torch.autocast(device, enabled=False):
            weight, teacher_weight = head.to(product_type), teacher_head.to(product_type)
            for start in range(0, rows, chunk):
                part = slice(start, start + chunk)
                x = states[part].to(product_type)
                p = (
                    (teacher_states[part].to(product_type) @ teacher_weight.T)
                    .to(sum_type)
                    .div_(temperature)
                    .softmax(-1)
                )
                log_q = (x @ weight.T).to(sum_type).div_(temperature).log_softmax(-1)
                loss -= (p * log_q).sum() * (temperature**2 / rows)
                if not (need_states or need_head):
                    continue
                # d loss / d logits = T / rows * (q - p), written over log q
                gradient = log_q.exp_().sub_(p).mul_(temperature / rows).to(product_type)
                if need_states:
                    states_gradient[part] = gradient @ weight
                if need_head:
                    head_gradient += gradient.T @ x
                del p, log_q, gradient  # else they would stay while the next chunk's are made
        ctx.save_for_backward(states_gradient, None if head_gradient is None else head_gradient.to(head.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        states_gradient, head_gradient = ctx.saved_tensors
        return (
            None if states_gradient is None else states_gradient * upstream,
            None if head_gradient is None else head_gradient * upstream,
            None,
            None,
            None,
            None,
        )
