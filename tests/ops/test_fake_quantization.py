"""Fake quantisation against PyTorch's, against loops written from the definition, and its gradients."""

import pytest
import torch
from torch import Tensor

from edgetrain.ops.fake_quantization import (
    activation_grid,
    fake_quantize_activation,
    fake_quantize_weight,
    weight_scales,
)

GENERATOR = torch.Generator().manual_seed(0)


def slow_weight(weight: Tensor, bits: int) -> list[list[float]]:
    top = 2 ** (bits - 1) - 1
    rows = []
    for row in weight.double().flatten(1).tolist():
        scale = max(map(abs, row)) / top
        rows.append([max(-top, min(top, round(value / scale))) * scale for value in row])
    return rows


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weights_are_those_of_the_definition(bits: int) -> None:
    weight = torch.randn(5, 3, 3, generator=GENERATOR)
    found = fake_quantize_weight(weight, bits).flatten(1)
    torch.testing.assert_close(found.double(), torch.tensor(slow_weight(weight, bits)).double(), rtol=1e-6, atol=1e-7)
    assert len(found[0].unique()) <= 2**bits - 1


def test_weights_of_two_bits_worked_by_hand() -> None:
    """One step a channel: -1, 0 or 1 times its largest magnitude."""
    found = fake_quantize_weight(torch.tensor([[4.0, 1.9, -2.1, -4.0], [0.0, 0.3, -0.1, 0.2]]), bits=2)
    torch.testing.assert_close(found, torch.tensor([[4.0, 0.0, -4.0, -4.0], [0.0, 0.3, 0.0, 0.3]]))


def test_a_channel_of_zeros_stays_zero() -> None:
    assert torch.equal(fake_quantize_weight(torch.zeros(2, 4)), torch.zeros(2, 4))
    assert (weight_scales(torch.zeros(2, 4)) > 0).all()


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.0, 6.0), (1.0, 2.0), (-7.0, -1.0), (-0.01, 9.0)])
def test_activations_are_those_of_the_definition_and_zero_is_exact(low: float, high: float) -> None:
    """The grid has 255 steps from min(low, 0) to max(high, 0), shifted by less than a step so that zero is on it."""
    x = low - 1 + (high - low + 2) * torch.rand(1000, generator=GENERATOR)  # no value half-way between levels
    found = fake_quantize_activation(x, torch.tensor(low), torch.tensor(high))
    scale = (max(high, 0.0) - min(low, 0.0)) / 255
    zero = round(-128 - min(low, 0.0) / scale)
    slow = [(max(-128, min(127, round(value / scale) + zero)) - zero) * scale for value in x.double().tolist()]
    torch.testing.assert_close(found.double(), torch.tensor(slow).double(), rtol=0, atol=scale * 1e-3)
    assert fake_quantize_activation(torch.zeros(1), torch.tensor(low), torch.tensor(high)) == 0


def test_the_grid_of_zero_to_255_steps_is_the_whole_numbers() -> None:
    scale, zero_point = activation_grid(torch.tensor(0.0), torch.tensor(255.0))
    assert (scale.item(), zero_point.item()) == (1.0, -128)
    scale, zero_point = activation_grid(torch.tensor(-128.0), torch.tensor(127.0))
    assert (scale.item(), zero_point.item()) == (1.0, 0)


def test_the_grid_is_that_of_pytorchs_observer() -> None:
    observers = pytest.importorskip("torchao.quantization.pt2e")
    for low, high in ((-3.0, 5.0), (0.2, 0.9), (-1e-9, 0.0)):
        observer = observers.MinMaxObserver(torch.int8, torch.per_tensor_affine, quant_min=-128, quant_max=127)
        observer(torch.tensor([low, high]))
        scale, zero_point = observer.calculate_qparams()
        ours = activation_grid(torch.tensor(low), torch.tensor(high))
        torch.testing.assert_close(ours[0], scale.squeeze())
        assert ours[1] == zero_point


def test_gradients_pass_inside_and_stop_where_values_are_clipped() -> None:
    x = torch.tensor([-9.0, -3.9, 0.0, 1.26, 4.9, 9.0], requires_grad=True)
    fake_quantize_activation(x, torch.tensor(-4.0), torch.tensor(5.0)).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]
    weight = torch.randn(4, 6, generator=GENERATOR, requires_grad=True)
    slope = torch.randn(4, 6, generator=GENERATOR)
    (fake_quantize_weight(weight, 4) * slope).sum().backward()
    assert torch.equal(weight.grad, slope)  # the largest of a channel is on the grid: nothing is clipped
