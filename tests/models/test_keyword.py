"""Keyword networks: their shapes, their padding, their front end, and what they refuse."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgetrain.build import build
from edgetrain.compose import compose
from edgetrain.errors import UserError
from edgetrain.models.keyword import FAMILIES, SIZES, keyword, stride_ms
from edgetrain.models.keyword_convolutional import SameConvolution
from edgetrain.models.keyword_network import NORM_EPS, ShiftNorm
from edgetrain.models.keyword_recurrent import CRNN
from edgetrain.ops.mfcc import MFCC

SMALL = {  # a shape of one's own for every family
    "dnn": {"widths": [8]},
    "cnn": {"first": [3, 4, 2, 1, 1], "second": [4, 3, 2, 2, 1], "low_rank": 5, "hidden": 6},
    "basic_lstm": {"cells": 7},
    "lstm": {"cells": 7, "projection": 3},
    "gru": {"cells": 7, "layers": 2},
    "crnn": {"first": [3, 4, 2, 2, 2], "layers": 1, "cells": 5, "hidden": 6},
    "ds_cnn": {"first": [6, 4, 2, 2, 1], "blocks": [[8, 3, 3, 1, 2]]},
}


def small(family: str, **settings: object) -> torch.nn.Module:
    return keyword(family, shape=SMALL[family], classes=3, frames=13, coefficients=6, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_shape_of_ones_own_gives_logits_and_gradients(family: str) -> None:
    torch.manual_seed(0)
    network = small(family)
    assert network.input_shape == (13, 6)
    logits = network(torch.randn(4, 13, 6))
    assert logits.shape == (4, 3)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_clips_do_not_see_each_other_in_evaluation(family: str) -> None:
    torch.manual_seed(0)
    network, features = small(family).eval(), torch.randn(5, 13, 6)
    alone = torch.cat([network(clip[None]) for clip in features])
    torch.testing.assert_close(network(features), alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_export_takes_every_family_with_any_batch_and_its_front_end(family: str) -> None:
    torch.manual_seed(0)
    network = keyword(family, shape=SMALL[family], classes=3, frames=49, coefficients=6, front_end=True).eval()
    batch = torch.export.Dim("batch", min=1)
    samples = torch.randn(3, 16000) / 10
    program = torch.export.export(network, (samples[:2],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(samples), network(samples))


def test_the_front_end_is_mfcc_and_adds_no_weights() -> None:
    torch.manual_seed(0)
    with_front_end = keyword("dnn", frames=25, front_end=True, stride_ms=40)
    network = keyword("dnn", frames=25)
    network.load_state_dict(with_front_end.state_dict())
    samples = torch.randn(2, 16000) / 10
    assert with_front_end.input_shape == (16000,)
    torch.testing.assert_close(with_front_end(samples), network(MFCC(stride_ms=40)(samples)))


def same_padding(x: np.ndarray, kernel: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
    """TensorFlow's SAME of one channel: as many zeros as ceil(n / stride) windows need, the larger half behind."""
    out = [-(-n // step) for n, step in zip(x.shape, stride, strict=True)]
    result = np.zeros(out)
    before = [
        max(0, (many - 1) * step + width - n) // 2
        for many, step, width, n in zip(out, stride, kernel.shape, x.shape, strict=True)
    ]
    for place in np.ndindex(*out):
        for offset in np.ndindex(*kernel.shape):
            at = tuple(p * s + o - b for p, s, o, b in zip(place, stride, offset, before, strict=True))
            if all(0 <= a < n for a, n in zip(at, x.shape, strict=True)):
                result[place] += x[at] * kernel[offset]
    return result


@pytest.mark.parametrize("size", [(49, 10), (25, 5), (24, 7)])
@pytest.mark.parametrize("shape", [(1, 10, 4, 2, 2), (1, 10, 4, 2, 1), (1, 3, 3, 2, 2), (1, 3, 3, 1, 1)])
def test_padding_is_tensorflows_same(size: tuple[int, int], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = SameConvolution(1, shape, size).double()
    x = torch.randn(1, 1, *size, dtype=torch.double)
    out = layer(x)
    assert out.shape[2:] == layer.out_size
    reference = same_padding(x[0, 0].numpy(), layer.weight[0, 0].detach().numpy(), shape[3:])
    np.testing.assert_allclose(out[0, 0].detach().numpy(), reference, atol=1e-12)


def test_the_first_convolution_of_the_paper_pads_four_and_five_frames() -> None:
    layer = SameConvolution(1, SIZES["ds_cnn"]["s"]["first"], (49, 10))
    assert (layer.padding, layer.odd, layer.out_size) == ((4, 1), (0, 0, 0, 1), (25, 5))


def test_maps_become_flat_with_channels_last() -> None:
    """The CRNN's recurrent layers read all channels of a coefficient, then those of the next."""
    network = keyword("crnn", shape=SMALL["crnn"], classes=3, frames=13, coefficients=6)
    assert isinstance(network, CRNN)
    seen: list[Tensor] = []
    network.grus[0].register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    features = torch.randn(1, 13, 6)
    network(features)
    maps = F.relu(F.conv2d(features[:, None], network.conv.weight, network.conv.bias, stride=2))[0]
    torch.testing.assert_close(seen[0][0, 2].view(-1, 3), maps[:, 2].T)


def test_norms_shift_without_a_scale() -> None:
    norm = ShiftNorm(3)
    assert [name for name, _ in norm.named_parameters()] == ["bias"]
    assert "weight" not in norm.state_dict()
    x = torch.randn(5, 3, 2, 2)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    wanted = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-3).sqrt() + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), wanted)
    torch.testing.assert_close(norm.running_mean, 0.04 * mean)  # TensorFlow's decay of 0.96
    assert norm.eps == NORM_EPS == 1e-3


def test_weights_start_as_xavier_and_biases_at_zero() -> None:
    torch.manual_seed(0)
    network = keyword("dnn", "l", frames=25)
    weight = network.layers[1].weight
    limit = (6 / (436 + 436)) ** 0.5
    assert 0.99 * limit < weight.abs().max() <= limit
    assert not any(layer.bias.any() for layer in network.layers)


def test_the_papers_strides() -> None:
    coarse = [(family, size) for family in FAMILIES for size in SIZES[family] if stride_ms(family, size) == 40]
    assert coarse == [("dnn", "s"), ("dnn", "m"), ("dnn", "l"), ("lstm", "s"), ("gru", "s")]
    assert MFCC(stride_ms=40).frames(16000) == 25
    assert MFCC(stride_ms=20).frames(16000) == 49


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "dscnn"}, "model.family=dscnn is not one of .*did you mean 'ds_cnn'"),
        ({"family": "gru", "size": "xl"}, "model.size=xl is not one of s, m, l; model.shape"),
        ({"family": "gru", "shape": {"cels": 3}}, "is not a gru's; give cells"),
        ({"family": "gru", "shape": {"cells": -1}}, "is not a gru's; give cells"),
        ({"family": "dnn", "shape": {"widths": "many"}}, "is not a dnn's; give widths"),
        ({"family": "ds_cnn", "shape": {"first": [3, 4, 2, 1], "blocks": []}}, "is not a ds_cnn's; give first, blocks"),
        ({"family": "cnn", "frames": 9}, "cannot take 9 frames of 10 coefficients"),
        ({"family": "crnn", "coefficients": 3}, "cannot take 49 frames of 3 coefficients"),
        ({"family": "gru", "front_end": True, "stride_ms": 40}, "has 25 frames .*set data.frames=25"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        keyword(**settings)
    assert "\n" not in str(caught.value)


def test_input_of_another_shape_is_one_sentence() -> None:
    for network, shape, message in (
        (keyword("gru"), (2, 25, 10), r"\['batch', 49, 10\], but was given \[2, 25, 10\]; .*data.frames"),
        (keyword("gru"), (2, 16000), r"was given \[2, 16000\]; make data.features"),
        (keyword("gru", front_end=True), (2, 49, 10), r"samples .*\['batch', 16000\], .*make data.features"),
    ):
        with pytest.raises(UserError, match=message):
            network(torch.zeros(shape))


def test_the_option_builds_with_the_numbers_of_the_data() -> None:
    config = compose(["data=fsdd", "model=keyword", "task=classify", "model.family=crnn", "model.size=m"])
    network = build(config.model)
    assert isinstance(network, CRNN)
    assert network.input_shape == (49, 10) and network.classifier.out_features == 10
