"""The attention that trains in bfloat16 on a CPU, against torch's in float64, and what it holds in memory."""

import pytest
import torch
import torch.nn.functional as F
from allocations import largest_allocation
from torch import Tensor

from edgetrain.ops import attention
from edgetrain.ops.attention import causal_attention


def example(batch: int, n: int, kv_heads: int, dtype: torch.dtype = torch.float64, heads: int = 4) -> list[Tensor]:
    """q, k, v and the gradient of the result, laid out in memory as a Llama's projections are."""
    generator = torch.Generator().manual_seed(0)
    counts = (heads, kv_heads, kv_heads, heads)
    drawn = (torch.randn(batch, n, count, 8, generator=generator, dtype=torch.float64) for count in counts)
    q, k, v, upstream = (each.to(dtype).transpose(1, 2) for each in drawn)
    return [q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), upstream]


def torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 9, 16, 37])
def test_value_and_gradients_equal_torchs(monkeypatch: pytest.MonkeyPatch, n: int, kv_heads: int) -> None:
    """In blocks of 16 queries, the last one shorter, and two parts of a batch of three samples."""
    monkeypatch.setattr(attention, "ROWS", 16)
    monkeypatch.setattr(attention, "SCORES", 2 * 4 * 16 * 37)
    *inputs, upstream = example(3, n, kv_heads)
    expected, actual = torchs(*inputs), causal_attention(*inputs)
    torch.testing.assert_close(actual, expected)
    wanted, found = (torch.autograd.grad(each, inputs, upstream) for each in (expected, actual))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_in_bfloat16_its_error_is_that_of_torchs() -> None:
    exact = example(2, 200, 2)
    wanted = torch.autograd.grad(torchs(*exact[:3]), exact[:3], exact[3])
    *inputs, upstream = example(2, 200, 2, torch.bfloat16)
    errors = []
    for compute in (causal_attention, torchs):
        found = torch.autograd.grad(compute(*inputs), inputs, upstream)
        errors.append([(one.double() - other).norm() / other.norm() for one, other in zip(found, wanted, strict=True)])
    assert all(ours < 2 * theirs and ours < 2**-6 for ours, theirs in zip(*errors, strict=True))


def test_no_more_than_a_block_of_scores_is_held() -> None:
    """Of 1,024 x 1,024 scores a head, three buffers of 128 rows; all at once would be eight times that and more."""
    *inputs, upstream = example(1, 1024, 2, torch.bfloat16)
    scores = 4 * 1024 * 1024 * 2
    assert largest_allocation(lambda: causal_attention(*inputs).backward(upstream)) < 0.75 * scores


def test_an_empty_batch_has_empty_gradients() -> None:
    *inputs, upstream = example(0, 5, 2)
    found = torch.autograd.grad(causal_attention(*inputs), inputs, upstream)
    assert [each.shape for each in found] == [each.shape for each in inputs]
