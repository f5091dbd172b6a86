"""The chunked cross-entropy against torch's own, in value, gradient and memory."""

import pytest
import torch
import torch.nn.functional as F
from allocations import largest_allocation

from edgetrain.ops import cross_entropy
from edgetrain.ops.cross_entropy import linear_cross_entropy

ROWS, DIM, CLASSES = 70, 12, 31


def example(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, DIM, generator=generator, dtype=dtype).requires_grad_()
    head = torch.randn(CLASSES, DIM, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(CLASSES, (ROWS,), generator=generator)
    weights = torch.rand(ROWS, generator=generator, dtype=dtype)
    return states, head, targets, weights


@pytest.mark.parametrize("chunk", [1, 16, 70, 1000])
def test_value_and_gradients_equal_torchs(chunk: int) -> None:
    states, head, targets, weights = example()
    expected = (F.cross_entropy(states @ head.T, targets, reduction="none") * weights).sum()
    expected_gradients = torch.autograd.grad(3 * expected, (states, head))
    actual = linear_cross_entropy(states, head, targets, weights, chunk)
    torch.testing.assert_close(actual, expected)
    for ours, theirs in zip(torch.autograd.grad(3 * actual, (states, head)), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_default_is_the_mean() -> None:
    states, head, targets, _ = example()
    torch.testing.assert_close(linear_cross_entropy(states, head, targets), F.cross_entropy(states @ head.T, targets))


def test_several_exits_in_one_call_are_the_weighted_sum_of_their_means() -> None:
    states, head, targets, _ = example()
    other = states.detach().flip(0)
    weights = torch.cat([torch.full((ROWS,), share / ROWS, dtype=torch.float64) for share in (0.3, 0.7)])
    together = linear_cross_entropy(torch.cat([states, other]), head, targets.repeat(2), weights, chunk=33)
    parts = [F.cross_entropy(x @ head.T, targets) for x in (states, other)]
    torch.testing.assert_close(together, 0.3 * parts[0] + 0.7 * parts[1])


def test_a_frozen_head_gets_no_gradient() -> None:
    states, head, targets, _ = example()
    loss = linear_cross_entropy(states, head.detach(), targets)
    loss.backward()
    assert states.grad is not None


def test_large_logits_do_not_overflow() -> None:
    states, head, targets, _ = example(torch.float32)
    loss = linear_cross_entropy(states * 1e4, head, targets)
    torch.testing.assert_close(loss, F.cross_entropy((states * 1e4) @ head.T, targets))


def test_rows_normalised_in_pieces_and_a_head_added_in_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 2 rows, the last of a chunk shorter: value and gradients stay torch's."""
    monkeypatch.setattr(cross_entropy, "CACHED", 2 * CLASSES + 5)
    test_value_and_gradients_equal_torchs(chunk=33)


def test_a_chunk_has_fewer_rows_when_there_are_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    inner = cross_entropy._LinearCrossEntropy.apply
    monkeypatch.setattr(cross_entropy._LinearCrossEntropy, "apply", lambda *args: seen.append(args[-1]) or inner(*args))
    states, head, targets, _ = example()
    linear_cross_entropy(states, head, targets)
    monkeypatch.setattr(cross_entropy, "LOGITS", 10 * CLASSES)
    linear_cross_entropy(states, head, targets)
    assert seen == [2048, 10]


def test_a_second_backward_pass_is_refused_and_not_wrong() -> None:
    states, head, targets, _ = example()
    loss = linear_cross_entropy(states, head, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward pass"):
        loss.backward()


def test_autocast_products_are_close_to_float32() -> None:
    states, head, targets, weights = example(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(states, head, targets, weights)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, linear_cross_entropy(states, head, targets, weights), rtol=2e-2, atol=0)


def test_memory_of_five_exits_is_about_one_logits_tensor() -> None:
    """rows x classes floats are one logits tensor; torch's cross-entropy over five exits holds more than five."""
    rows, classes, exits = 2048, 2048, 5
    head = torch.randn(classes, 16, requires_grad=True)
    states = [torch.randn(rows, 16, requires_grad=True) for _ in range(exits)]
    targets = torch.randint(classes, (rows,))
    one = rows * classes * 4

    def ours() -> None:
        linear_cross_entropy(torch.cat(states), head, targets.repeat(exits)).backward()

    def torchs() -> None:
        torch.stack([F.cross_entropy(x @ head.T, targets) for x in states]).sum().backward()

    assert largest_allocation(ours) < 1.25 * one
    assert largest_allocation(torchs) > 5 * one
