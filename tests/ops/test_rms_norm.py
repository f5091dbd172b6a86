"""The written-out gradient of RMSNorm against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from edgetrain.models.llama import RMSNorm
from edgetrain.ops.rms_norm import rms_norm


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)])
def test_value_and_gradients_equal_torchs(shape: tuple[int, ...], eps: float) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(shape, dtype=torch.float64)
    expected, actual = F.rms_norm(x, (6,), weight, eps), rms_norm(x, weight, eps)
    torch.testing.assert_close(actual, expected)
    wanted = torch.autograd.grad(expected, (x, weight), upstream)
    found = torch.autograd.grad(actual, (x, weight), upstream)
    torch.testing.assert_close(found, wanted)


def test_a_vector_of_zeros_stays_and_has_a_finite_gradient() -> None:
    x = torch.zeros(1, 4, requires_grad=True)
    rms_norm(x, torch.ones(4), 1e-5).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_module_trains_as_torchs_does(precision: torch.dtype) -> None:
    """In bfloat16 weights the module leaves the work to torch."""
    torch.manual_seed(0)
    ours, theirs = RMSNorm(16, eps=1e-5).to(precision), torch.nn.RMSNorm(16, eps=1e-5).to(precision)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(3, 5, 16).to(precision)
    for training in (True, False):
        found = []
        for module in (ours.train(training), theirs):
            module.zero_grad()
            states = x.clone().requires_grad_()
            out = module(states)
            out.square().sum().backward()
            found.append((out, states.grad, module.weight.grad))
        torch.testing.assert_close(found[0], found[1])


def test_under_autocast_the_result_has_its_type_and_gradients_their_own() -> None:
    """Rounded once: the value is torch's in bfloat16, and gradients are within its relative 2^-8."""
    torch.manual_seed(0)
    ours, theirs = RMSNorm(64, eps=1e-5), torch.nn.RMSNorm(64, eps=1e-5)
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x, upstream = torch.randn(20, 64), torch.randn(20, 64).bfloat16()
    found = []
    for module in (ours, theirs):
        states = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(states)
        out.to(torch.bfloat16).backward(upstream)
        found.append((out.to(torch.bfloat16), states.grad, module.weight.grad))
        assert out.dtype == (torch.bfloat16 if module is ours else torch.float32)
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 2**-8 * other.norm()
