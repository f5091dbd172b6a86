"""Cross-entropy of a linear head, chunk by chunk, so that memory holds one chunk of logits and never all of them.

The gradient with respect to the states and to the head's weight is formed in the forward pass, while a chunk's logits
are at hand: no logits are kept for the backward pass and none are computed twice. Several exits of a network are one
call: their states are concatenated along the rows, each row with its own weight.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK = 2048  # rows of logits in memory: fewer make more sums of the head's gradient, which has all classes
LOGITS = 2**26  # in memory, at most
CACHED = 2**18  # logits that a CPU normalises at once, in its cache


def linear_cross_entropy(
    states: Tensor, head: Tensor, targets: Tensor, row_weights: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """sum_i row_weights[i] * CE(states[i] @ head.T, targets[i]), a float32 scalar.

    states [rows, dim]; head [classes, dim]; targets int64 [rows]; row_weights [rows], default 1/rows (the mean);
    chunk: rows of logits in memory at once, by default what is fastest. Matrix products run in autocast's type where
    autocast is on, sums in float32 (float64 where the states are). A second backward pass through one result raises
    RuntimeError.
    """
    if row_weights is None:
        rows = states.shape[0]
        row_weights = torch.full((rows,), 1.0 / rows, dtype=weight_type(states), device=states.device)
    if chunk is None:
        chunk = max(1, min(CHUNK, LOGITS // head.shape[0]))
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
            buffer = weight.new_empty(min(chunk, len(states)), len(head))
            few = max(1, CACHED // len(head)) if device == "cpu" else chunk
            for start in range(0, len(states), chunk):
                rows = slice(start, start + chunk)
                x, target, scale = states[rows].to(product_type), targets[rows], row_weights[rows].to(sum_type)
                logits = torch.mm(x, weight.T, out=buffer[: len(x)])
                for piece in zip(logits.split(few), target.split(few), scale.split(few), strict=True):
                    loss += _loss_and_gradient(*piece, need_states or need_head)
                if need_states:
                    states_gradient[rows] = logits @ weight
                if need_head:
                    _add(head_gradient, logits.T @ x, few)
        ctx.gradients = states_gradient, None if head_gradient is None else head_gradient.to(head.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("a second backward pass through one linear_cross_entropy, which keeps nothing for it")
        gradients, ctx.gradients = ctx.gradients, None
        states_gradient, head_gradient = (None if each is None else each.mul_(upstream) for each in gradients)
        return states_gradient, head_gradient, None, None, None


def _loss_and_gradient(logits: Tensor, targets: Tensor, scale: Tensor, need_gradient: bool) -> Tensor:
    """The weighted loss of some rows; writes d loss / d logits = scale * (softmax - one_hot) over the logits."""
    targets, scale = targets[:, None], scale[:, None]
    exponentials = logits.to(scale.dtype)
    picked, largest = exponentials.gather(1, targets), exponentials.amax(dim=-1, keepdim=True)
    exponentials.sub_(largest).exp_()
    total = exponentials.sum(dim=-1, keepdim=True)
    if need_gradient:
        logits.copy_(exponentials.mul_(scale / total).scatter_add_(1, targets, -scale))
    return ((total.log() + largest - picked) * scale).sum()


def _add(total: Tensor, term: Tensor, rows: int) -> None:
    """total += term, whose types may differ, some rows at a time: at once, torch would first convert all of `term`."""
    for one, other in zip(total.split(rows), term.split(rows), strict=True):
        one += other
