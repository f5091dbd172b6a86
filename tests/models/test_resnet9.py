"""ResNet-9 as published: parameters, MACs, the order of its layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgetrain.errors import UserError
from edgetrain.models.resnet9 import ResNet9


def test_parameters_are_those_of_the_published_network() -> None:
    """6,575,370 have the widely copied version whose layers all have biases, of which 2,250 these have not."""
    assert sum(parameter.numel() for parameter in ResNet9().parameters()) == 6_575_370 - 2_250
    assert sum(parameter.numel() for parameter in ResNet9(width=16).parameters()) == 412_944


def test_multiplications_by_hand() -> None:
    """3 x 64 x 9 at 32 x 32, then five layers of 64 x 128 x 9 x 1024 and one pair of each residual at its size."""
    with FlopCounterMode(display=False) as counter:
        ResNet9().eval()(torch.zeros(1, 3, 32, 32))
    convolutions = 27 * 64 * 1024 + 9 * (
        64 * 128 * 1024 + 2 * 128 * 128 * 256 + 128 * 256 * 256 + 256 * 512 * 64 + 2 * 512 * 512 * 16
    )
    assert counter.get_total_flops() == 2 * (convolutions + 5120)


def reference(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Layer by layer, from the state dict in its order."""
    layers = iter([value for value in state.values() if value.ndim > 0])

    def unit(x: Tensor) -> Tensor:
        weight, gamma, beta, mean, variance = (next(layers) for _ in range(5))
        x = nn.functional.conv2d(x, weight, padding=1)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return (x * gamma[:, None, None] + beta[:, None, None]).relu()

    def half(x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, 2)

    x = half(unit(unit(images)))
    x = x + unit(unit(x))
    x = half(unit(half(unit(x))))
    x = x + unit(unit(x))
    return x.amax((2, 3)) @ next(layers).T * 0.125


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 24, 40)])
def test_the_forward_pass_is_the_definitions(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = ResNet9(7, width=4, input_shape=shape).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    images = torch.randn(3, *shape, dtype=torch.float64)
    assert torch.allclose(model.eval()(images), reference(model.state_dict(), images), atol=1e-10)
    assert model(images).shape == (3, 7)
    assert model.input_shape == shape


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"width": 0}, "model.width=0 must be at least 1"),
        ({"input_shape": [3, 30, 32]}, r"model.input_shape=\[3, 30, 32\] is not channels, height and width"),
        ({"input_shape": [32, 32]}, r"model.input_shape=\[32, 32\] is not"),
        ({"input_shape": [3, 0, 8]}, r"model.input_shape=\[3, 0, 8\] is not"),
    ],
)
def test_settings_that_make_no_network_are_a_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ResNet9(**settings)
