"""The three-layer network against its definition written out, and its parameters against counts by hand."""

import pytest
import torch
import torch.nn.functional as F

from edgetrain.errors import UserError
from edgetrain.hardware.tracing import trace
from edgetrain.models.three_layer_cnn import ThreeLayerCNN, nearest_width, parameters_of


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_logits_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    model = ThreeLayerCNN(5, width=4, input_shape=(3, 13, 22)).double().eval()
    for norm in (model.norm1, model.norm2):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, 13, 22, dtype=torch.float64)
    weights = model.state_dict()
    x = images
    for place in (1, 2):
        x = F.conv2d(x, weights[f"conv{place}.weight"], stride=2, padding=1)
        scale, shift, mean, variance = (
            weights[f"norm{place}.{name}"][:, None, None] for name in ("weight", "bias", "running_mean", "running_var")
        )
        x = ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)
    x = F.conv2d(x, weights["head.weight"], weights["head.bias"], padding=1)
    assert x.shape == (2, 5, 4, 6)
    # Bilinear with half pixels: output row i of 13 stands at (i + 1/2) 4/13 - 1/2 of 4 rows.
    for side, axis in ((13, 2), (22, 3)):
        given = x.shape[axis]
        at = ((torch.arange(side, dtype=torch.float64) + 0.5) * given / side - 0.5).clamp(0, given - 1)
        low = at.floor().long()
        high = (low + 1).clamp(max=given - 1)
        share = (at - low).view([-1 if dim == axis else 1 for dim in range(4)])
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    assert torch.allclose(model(images), x, atol=1e-12)


def test_parameters_are_those_counted_by_hand() -> None:
    """Width 4, 5 classes: 3 x 4 x 9 + 4 x 4 x 9 + 4 x 5 x 9 + 5 and 2 x 2 x 4 of the batch norms."""
    assert count(ThreeLayerCNN(5, width=4)) == parameters_of(4, 5) == 108 + 144 + 180 + 5 + 16
    assert count(ThreeLayerCNN(7, width=3, input_shape=(1, 8, 8))) == parameters_of(3, 7, 1)


@pytest.mark.parametrize("classes", [2, 11, 150])
def test_the_width_is_the_one_with_the_nearest_count(classes: int) -> None:
    """Against every width up to 400."""
    for wanted in (1, 500, 8_000, 300_000, 1_000_003):
        best = min(range(1, 400), key=lambda width: abs(parameters_of(width, classes) - wanted))
        assert nearest_width(wanted, classes) == best
    assert ThreeLayerCNN(classes, parameters=parameters_of(37, classes)).width == 37


def test_equal_parameters_are_within_one_percent_from_300_thousand_on() -> None:
    for classes in (11, 19, 150):
        assert count(ThreeLayerCNN(classes, parameters=300_000)) == pytest.approx(300_000, rel=0.01)


def test_macs_are_those_counted_by_hand() -> None:
    """At 32 x 48: maps of 16 x 24, 8 x 12 and 8 x 12; the upsampling multiplies nothing that counts."""
    model = ThreeLayerCNN(5, width=4, input_shape=(3, 32, 48)).eval()
    traced = trace(model, (torch.zeros(1, *model.input_shape),))
    assert traced.macs == 9 * (3 * 4 * 16 * 24 + 4 * 4 * 8 * 12 + 4 * 5 * 8 * 12)
    assert traced.weights == count(model)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (97, 33)])
def test_it_takes_any_size(size: tuple[int, int]) -> None:
    assert ThreeLayerCNN(3, width=2).eval()(torch.zeros(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "model.width=None and model.parameters=None: give one of them"),
        ({"width": 4, "parameters": 100}, "model.width=4 and model.parameters=100: give one of them"),
        ({"width": 0}, "model.width=0 must be at least 1"),
        ({"parameters": -5}, "model.parameters=-5 must be at least 1"),
        ({"width": 4, "input_shape": (8, 8)}, r"model.input_shape=\[8, 8\] is not channels, height and width"),
    ],
)
def test_settings_out_of_range_are_one_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ThreeLayerCNN(5, **settings)
