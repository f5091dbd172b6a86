"""The chunked distillation loss against torch's cross-entropy with probabilities as targets."""

import pytest
import torch
import torch.nn.functional as F

from edgetrain.ops.soft_cross_entropy import linear_soft_cross_entropy

ROWS, DIM, WIDE, CLASSES = 70, 12, 20, 31


def example(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, DIM), (CLASSES, DIM), (ROWS, WIDE), (CLASSES, WIDE))
    states, head, *teacher = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return states.requires_grad_(), head.requires_grad_(), *teacher


@pytest.mark.parametrize("chunk", [1, 16, 70, 1000])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_value_and_gradients_equal_torchs(chunk: int, temperature: float) -> None:
    states, head, wise, wise_head = example()
    p = (wise @ wise_head.T / temperature).softmax(-1)
    expected = temperature**2 * F.cross_entropy(states @ head.T / temperature, p)
    actual = linear_soft_cross_entropy(states, head, wise, wise_head, temperature, chunk)
    torch.testing.assert_close(actual, expected)
    theirs = torch.autograd.grad(3 * expected, (states, head))
    for ours, other in zip(torch.autograd.grad(3 * actual, (states, head)), theirs, strict=True):
        torch.testing.assert_close(ours, other)


def test_a_student_that_is_the_teacher_has_the_entropy_for_loss_and_no_gradient() -> None:
    states, head, *_ = example()
    loss = linear_soft_cross_entropy(states, head, states.detach(), head.detach())
    entropy = torch.distributions.Categorical(logits=states @ head.T).entropy().mean()
    torch.testing.assert_close(loss, entropy)
    for gradient in torch.autograd.grad(loss, (states, head)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


def test_a_teacher_that_is_certain_is_the_label_loss() -> None:
    states, head, *_ = example()
    labels = torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(1))
    certain = 1e4 * F.one_hot(labels, CLASSES).double()
    loss = linear_soft_cross_entropy(states, head, certain, torch.eye(CLASSES, dtype=torch.float64))
    torch.testing.assert_close(loss, F.cross_entropy(states @ head.T, labels))


def test_the_teacher_gets_no_gradient_and_large_logits_do_not_overflow() -> None:
    states, head, wise, wise_head = example(torch.float32)
    wise.requires_grad_()
    loss = linear_soft_cross_entropy(states * 1e4, head, wise * 1e4, wise_head)
    loss.backward()
    assert loss.isfinite()
    assert wise.grad is None


def test_autocast_products_are_close_to_float32() -> None:
    states, head, wise, wise_head = example(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_soft_cross_entropy(states, head, wise, wise_head)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, linear_soft_cross_entropy(states, head, wise, wise_head), rtol=2e-2, atol=0)


def test_no_more_than_a_chunk_of_logits_is_held() -> None:
    rows, classes = 2048, 1024
    states, head = torch.randn(rows, 8, requires_grad=True), torch.randn(classes, 8, requires_grad=True)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        linear_soft_cross_entropy(states, head, states.detach(), head.detach(), chunk=128).backward()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert peak < rows * classes * 4  # of both models together, less than one logits tensor
