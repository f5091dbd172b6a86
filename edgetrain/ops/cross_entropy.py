"""Cross-entropy of a linear head, chunk by chunk, so that memory holds one chunk of logits and never all of them.

The gradient with respect to the states and to the head's weight is formed in the forward pass, while a chunk's logits
are at hand: no logits are kept for the backward pass and none are computed twice. Several exits of a network are one
call: their states are concatenated along the rows, each row with its own weight.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CACHED_ROWS = 256  # of logits: with some thousand classes a chunk stays in a CPU's cache, twice as fast as 1,024


def linear_cross_entropy(
    states: Tensor, head: Tensor, targets: Tensor, row_weights: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """sum_i row_weights[i] * CE(states[i] @ head.T, targets[i]), a float32 scalar.

    states [rows, dim]; head [classes, dim]; targets int64 [rows]; row_weights [rows], default 1/rows (the mean);
    chunk: rows of logits in memory at once, by default what is fastest on the device. Matrix products run in
    autocast's type where autocast is on, sums in float32 (float64 where the states are).
    """
    if row_weights is None:
        rows = states.shape[0]
        row_weights = torch.full((rows,), 1.0 / rows, dtype=weight_type(states), device=states.device)
    if chunk is None:
        chunk = CACHED_ROWS if states.device.type == "cpu" else 1024
    return _LinearCrossEntropy.apply(states, head, targets, row_weights, chunk)


def weight_type(states: Tensor) -> torch.dtype:
    """What sums and row weights are kept in: float32, or float64 where the states are."""
    return torch.promote_types(states.dtype, torch.float32)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, states: Tensor, head: Tensor, targets: Tensor, row_weights: Tensor, chunk: int
    ) -> Tensor:
        device = states.device.type
        product_type = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        sum_type = weight_type(states)
        need_states, need_head = ctx.needs_input_grad[:2]
        states_gradient = torch.empty_like(states) if need_states else None
        head_gradient = torch.zeros_like(head, dtype=sum_type) if need_head else None
        loss = torch.zeros((), dtype=sum_type, device=states.device)
        with torch.autocast(device, enabled=False):
            weight = head.to(product_type)
            for start in range(0, states.shape[0], chunk):
                rows = slice(start, start + chunk)
                x, target, scale = states[rows].to(product_type), targets[rows], row_weights[rows].to(sum_type)
                logits = (x @ weight.T).to(sum_type)
                target, scale = target[:, None], scale[:, None]
                picked, largest = logits.gather(1, target), logits.amax(dim=-1, keepdim=True)
                exponentials = logits.sub_(largest).exp_()
                total = exponentials.sum(dim=-1, keepdim=True)
                loss += ((total.log() + largest - picked) * scale).sum()
                if not (need_states or need_head):
                    continue
                # d loss / d logits = scale * (softmax - one_hot), written over the logits
                gradient = exponentials.mul_(scale / total).scatter_add_(1, target, -scale).to(product_type)
                if need_states:
                    states_gradient[rows] = gradient @ weight
                if need_head:
                    head_gradient += gradient.T @ x
                del logits, exponentials, gradient  # else they would stay while the next chunk's are made
        ctx.save_for_backward(states_gradient, None if head_gradient is None else head_gradient.to(head.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        states_gradient, head_gradient = ctx.saved_tensors
        return (
            None if states_gradient is None else states_gradient * upstream,
            None if head_gradient is None else head_gradient * upstream,
            None,
            None,
            None,
        )
