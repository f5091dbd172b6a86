"""What lowering makes of a network: layouts, padding, clips, formats by hand; q7 to the bit; what C does not have."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quantize_networks import Samples, inputs, mlp, separable, settle
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.methods.lowering import check_lowering, lower
from edgetrain.methods.lowering_layout import Format, axes_of, trimmed
from edgetrain.methods.q7 import power_of_two
from edgetrain.methods.quantize import post_training
from edgetrain.models.integer import (
    Add,
    Clip,
    IntegerNetwork,
    RightShift,
)
from edgetrain.models.keyword import keyword
from edgetrain.ops.mfcc import MFCC

pytest.importorskip("executorch")

PLACES = [os.environ.get("EDGETRAIN_DATA"), Path(__file__).resolve().parents[3] / "shared" / "data"]
REAL = next((Path(place) for place in PLACES if place and (Path(place) / "kws_pretrained").is_dir()), None)


def lowered(network: nn.Module, shape: tuple[int, ...], scheme: str = "int8") -> tuple[Any, IntegerNetwork]:
    """The quantised model and the same in whole numbers."""
    quantise = power_of_two if scheme == "q7" else post_training
    example = (torch.zeros(1, *shape),)
    model = quantise(network.eval(), example, Samples(inputs(32, shape)))
    return model, lower(model, example)


# Layout


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 4, 5), (1, 2, 0)),  # an image, channels first
        ((4, 5, 3), (0, 1, 2)),  # and last
        ((4, 5), (0, 1, None)),  # features of one channel
        ((4, 5), (None, 1, 0)),  # coefficients as channels, over time
        ((1, 4, 5), (1, 2, 0)),
        ((7,), (None, 0, None)),  # samples
    ],
)
def test_the_axes_of_an_input_are_found_from_how_it_is_read(shape: tuple[int, ...], axes: tuple) -> None:
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    order = [axis for axis in axes if axis is not None]
    sizes = [1 if axis is None else shape[axis] for axis in axes]
    assert axes_of(numbers.permute(order).reshape(sizes), shape) == axes


def test_a_part_of_an_input_and_a_turned_one_have_no_axes() -> None:
    numbers = torch.arange(24).view(4, 6, 1)
    assert axes_of(numbers[:, 1:], (4, 6)) is None
    assert axes_of(numbers.flip(0), (4, 6)) is None
    assert axes_of(numbers.view(2, 12, 1), (4, 6)) is None


def test_padding_around_a_map_is_told_from_the_map() -> None:
    places = F.pad(torch.arange(6).view(2, 3, 1), (0, 0, 2, 1, 1, 3), value=-1)
    inner, padding = trimmed(places)
    assert padding == (1, 2)
    assert inner.flatten().tolist() == list(range(6))


def test_limits_are_the_quantised_bounds() -> None:
    """ReLU6 in steps of 0.05 from -128: 6 is 120 steps up. In steps of 0.1 around 3: 0 is 3 and 6 is 63."""
    assert Format(0.05, -128).limits(0.0, 6.0) == (-128, -8)
    assert Format(0.1, 3).limits(0.0, 6.0) == (3, 63)
    assert Format(0.01, 3).limits(0.0, 6.0) == (3, 127)
    assert Format(0.1, 3).limits(-torch.inf, torch.inf) == (-128, 127)


class Same(nn.Module):
    """Kernel 4, stride 2 on 7 rows as TensorFlow's SAME: 4 rows of output need (4 - 1) 2 + 4 - 7 = 3 zeros: 1 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 3, 4, 2), nn.Linear(3 * 4 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.conv(F.pad(x, (1, 2, 1, 2)))).flatten(1))


def test_uneven_padding_by_another_operator_is_the_convolutions() -> None:
    model, network = lowered(Same(), (2, 7, 7))
    conv, last = network.program.operations
    assert (conv.padding, conv.kernel, conv.stride) == ((1, 1), (4, 4), (2, 2))
    assert [network.program.values[each.output].shape for each in (conv, last)] == [(4, 4, 3), (1, 1, 2)]
    assert network.program.input_axes == (1, 2, 0)
    x = inputs(8, (2, 7, 7))
    assert ((network(x) - model(x)) / model.scheme.output_scale).abs().max() < 1.01


class Reordered(nn.Module):
    """A linear layer that reads the last column of a map first, a part of it, and a zero."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.pad(x.transpose(1, 2)[:, 1:].flatten(1), (1, 0)))


def test_columns_of_a_linear_layer_follow_the_memory() -> None:
    """x [2, 4] is read as x[0,1], x[1,1], x[0,2], ...: columns 1 to 6 of 7, and column 0 is of a zero."""
    model, network = lowered(Reordered(), (2, 4))
    (layer,) = network.program.operations
    assert network.program.values["input"].shape == (2, 4, 1)
    weight = model.graph.get_buffer(next(name for name, _ in model.graph.named_buffers() if "frozen" in name))
    expected = torch.zeros(3, 2, 4, dtype=torch.int8)
    for row in range(2):
        for column in range(1, 4):
            expected[:, row, column] = weight[:, 1 + 2 * (column - 1) + row]
    assert torch.equal(layer.weight, expected.view(3, 8))


def test_depthwise_weights_are_height_width_channels_and_others_have_inputs_last() -> None:
    layers = nn.Conv2d(3, 4, (2, 3)), nn.ReLU(), nn.Conv2d(4, 4, (3, 2), groups=4)
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 3 * 4, 2))
    model, lower_network = lowered(network, (3, 6, 7))
    full, depthwise, _ = lower_network.program.operations
    scales = [torch.tensor(row["weight_scales"]) for row in model.scheme.layers]
    for k, c in ((0, 1), (2, 0), (3, 2)):
        wanted = network[0].weight[k, c] / scales[0][k]
        assert (full.weight[k, :, :, c] - wanted).abs().max() <= 0.5001
        assert (depthwise.weight[:, :, k] - network[2].weight[k, 0] / scales[1][k]).abs().max() <= 0.5001


# Numbers


def test_biases_and_multipliers_are_those_of_the_scales() -> None:
    """bias = round(b / (s_in s_w)) and multiplier * 2^(shift - 31) = s_in s_w / s_out."""
    network = mlp(5, 6, 3)
    model, lower_network = lowered(network, (5,))
    for layer, row, operation in zip(
        (network[0], network[2]), model.scheme.layers, lower_network.program.operations, strict=True
    ):
        step = row["input_scale"] * torch.tensor(row["weight_scales"], dtype=torch.float64)
        exact = layer.bias.double() / step
        assert (operation.bias - exact).abs().max() <= 0.5 + 1e-3
        scale = operation.rescale.multiplier.double() * 2.0 ** (operation.rescale.shift.double() - 31)
        torch.testing.assert_close(scale, step / row["output_scale"], rtol=2**-29, atol=0)
        assert lower_network.program.values[operation.output].zero_point == row["output_zero_point"]


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Linear(8, 2)
        self.two.weight.data.mul_(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.one(x) + self.two(x)).flatten(1))


def test_an_additions_multipliers_bring_both_inputs_to_twice_the_larger_scale() -> None:
    _, network = lowered(Sum(), (1, 2, 2))
    (add,) = [each for each in network.program.operations if isinstance(each, Add)]
    one, two, out = (network.program.values[name].scale for name in (*add.inputs, add.output))
    common = 2 * max(one, two)
    for (multiplier, shift), scale in ((add.first, one / common), (add.second, two / common)):
        assert multiplier * 2.0 ** (shift - 31) == pytest.approx(scale, rel=2**-30)
    assert add.result[0] * 2.0 ** (add.result[1] - 31) == pytest.approx(common / 2**20 / out, rel=2**-30)
    assert add.low == network.program.values[add.output].zero_point  # the ReLU after the sum
    assert not any(isinstance(each, Clip) for each in network.program.operations)


class Cut(nn.Module):
    """Averages whose last windows are cut; PyTorch divides them by what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.last = nn.Conv2d(1, 2, 1), nn.AvgPool2d(2, ceil_mode=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.conv(x)).flatten(1))


def test_windows_that_are_cut_are_averages_of_what_is_there() -> None:
    """A window of 4, two of 2 and one of 1; then another scale, which was read after the average."""
    model, network = lowered(Cut(), (1, 3, 3))
    _, pool, rescale, _ = network.program.operations
    assert [type(each).__name__ for each in (pool, rescale)] == ["AveragePool", "Depthwise"]
    assert network.program.values[pool.output].shape == (2, 2, 2)
    x = inputs(8, (1, 3, 3))
    assert ((network(x) - model(x)) / model.scheme.output_scale).abs().max() < 2.01


class PaddedPool(nn.Module):
    """A zero below the map is a number for PyTorch's maximum; C would take the maximum of what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.last = nn.Conv2d(1, 2, 1), nn.MaxPool2d(2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(F.pad(self.conv(x), (0, 1, 0, 1))).flatten(1))


class Early(nn.Module):
    """A ReLU6 beside another reader of the same, and one that is a function, whose output gets a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second = nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 1)
        self.clip, self.last = nn.ReLU6(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.last((self.clip(x) + F.relu6(self.second(x))).flatten(1))


def test_a_clip_that_no_layer_can_take_over_stands_by_itself() -> None:
    """With another scale than its input's it is a depthwise convolution."""
    model, network = lowered(Early(), (1, 3, 3))
    conv, clip, second, relu6, add, _ = network.program.operations
    assert [type(each).__name__ for each in (clip, relu6, add)] == ["Clip", "Depthwise", "Add"]
    assert (clip.inputs, second.inputs, relu6.inputs, add.inputs) == (
        *(("conv",), ("conv",), ("second",), ("clip", "relu6")),
    )
    assert (conv.low, clip.low) == (-128, network.program.values["clip"].zero_point)
    x = inputs(8, (1, 3, 3))
    assert ((network(x) - model(x)) / model.scheme.output_scale).abs().max() < 2.01


@torch.no_grad()
def test_a_channel_of_tiny_weights_gives_its_bias() -> None:
    network = nn.Sequential(nn.Linear(4, 3))
    network[0].weight[1] = 0
    network[0].bias[1] = 0.75
    model, lower_network = lowered(network, (4,))
    x = torch.cat([inputs(6, (4,)), torch.full((2, 4), 1e6), torch.full((2, 4), -1e6)])
    assert (lower_network(x)[:, 1] - 0.75).abs().max() <= 1.01 * model.scheme.output_scale


@torch.no_grad()
def test_a_bias_of_many_steps_leaves_room_for_the_products_of_a_sum() -> None:
    """75 in steps of about 5e-9 is more than 32 bits hold; with the weights on top it would overflow."""
    network = nn.Sequential(nn.Linear(4, 3))
    network[0].weight[1] = 1e-6
    network[0].bias[1] = 75.0
    model, lower_network = lowered(network, (4,))
    (layer,) = lower_network.program.operations
    zero_point = lower_network.program.values["input"].zero_point
    assert layer.weight[1].abs().sum() > 0
    assert layer.bias[1] > 2**30
    assert layer.bias[1] + layer.weight[1].abs().sum() * (128 + abs(zero_point)) < 2**31
    x = inputs(8, (4,))
    assert ((lower_network(x) - model(x)) / model.scheme.output_scale).abs().max() < 1.01


# The scheme of powers of two


class Pooled(nn.Module):
    """Padding by another operator, a maximum with a cut window at the end, ReLU that is not next to a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep = nn.Conv2d(2, 4, 3, 2), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.pool, self.last = nn.MaxPool2d(2, ceil_mode=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(F.pad(x, (0, 1, 1, 0))))
        return self.last(F.relu(self.deep(F.relu(x))).mean((2, 3)))


def keywords(family: str) -> nn.Module:
    torch.manual_seed(0)
    return settle(keyword(family, "s", None, 12, 49), (49, 10))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (mlp(6, 9, 7, 4), (6,)),
        (separable(), (1, 12, 6)),
        (Pooled(), (2, 9, 8)),
        (keywords("dnn"), (49, 10)),
        (keywords("cnn"), (49, 10)),
        (keywords("ds_cnn"), (49, 10)),
    ],
    ids=["mlp", "separable", "pooled", "dnn", "cnn", "ds_cnn"],
)
@torch.no_grad()
def test_q7_is_the_emulation_to_the_bit(network: nn.Module, shape: tuple[int, ...]) -> None:
    model, lower_network = lowered(network, shape, "q7")
    x = torch.cat([inputs(24, shape, seed=3), 40 * inputs(4, shape)])
    assert torch.equal(lower_network(x), model(x))
    assert not model(x).eq(model(x)[:1]).all()
    assert all(value.zero_point == 0 for value in lower_network.program.values.values())


def test_q7_shifts_and_biases_are_those_of_the_scheme() -> None:
    network = mlp(6, 9, 4)
    model, lower_network = lowered(network, (6,), "q7")
    for layer, row, operation in zip(
        (network[0], network[2]), model.scheme.layers, lower_network.program.operations, strict=True
    ):
        assert operation.rescale == RightShift(row["out_shift"])
        bias = (layer.bias * 2.0 ** row["bias_fraction"]).round().clamp(-128, 127).int() << row["bias_shift"]
        assert torch.equal(operation.bias, bias)
    assert [each.low for each in lower_network.program.operations] == [0, -128]


# Whole networks


def test_kinds_and_shapes_of_the_ds_cnn() -> None:
    """49 x 10 features, 10 x 4 kernel with stride 2 x 2 padded as SAME: 9 rows of zeros, 4 above, 2 columns, 1 left."""
    _, network = lowered(keywords("ds_cnn"), (49, 10))
    program = network.program
    kinds = [type(each).__name__ for each in program.operations]
    assert kinds == ["Convolution", *["Depthwise", "Convolution"] * 4, "AveragePool", "FullyConnected"]
    assert (program.operations[0].padding, program.values["conv"].shape) == ((4, 1), (25, 5, 64))
    assert (program.values["input"].shape, program.input_axes) == ((49, 10, 1), (0, 1, None))
    assert program.operations[-2].kernel == (25, 5)


@torch.no_grad()
def test_a_front_end_stays_in_floating_point() -> None:
    torch.manual_seed(0)
    network = keyword("ds_cnn", "s", None, 12, 49, front_end=True)
    model, lower_network = lowered(network, (16000,))
    assert isinstance(lower_network.front_end, MFCC)
    assert (lower_network.input_shape, lower_network.program.values["input"].shape) == ((16000,), (49, 10, 1))
    x = inputs(6, (16000,), seed=4)
    off = ((lower_network(x) - model(x)) / model.scheme.output_scale).abs().round()
    assert off.max() <= 2


@pytest.mark.skipif(REAL is None, reason="kws_pretrained is not in $EDGETRAIN_DATA")
@torch.no_grad()
def test_the_released_ds_cnn_labels_the_clips_right_in_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile

    from edgetrain.models.keyword_pretrained import LABELS, keyword_pretrained

    monkeypatch.setenv("EDGETRAIN_DATA", str(REAL))
    network = keyword_pretrained("ds_cnn_s").eval()
    front_end = MFCC(stride_ms=20)
    spoken = ("yes", "no", "silence")
    clips = [
        torch.from_numpy(soundfile.read(REAL / "kws_clips" / f"{each}_1000ms.wav", dtype="float32")[0])
        for each in spoken
    ]
    features = torch.stack([front_end(clip) for clip in clips])
    louder = torch.cat([front_end(clip * gain)[None] for clip in clips for gain in (0.3, 1.0, 2.0)])
    for quantise in (post_training, power_of_two):
        model = quantise(network, (features[:1],), Samples(louder))
        lower_network = lower(model, (features[:1],))
        assert [LABELS[index] for index in lower_network(features).argmax(-1)] == list(spoken)
        off = ((lower_network(louder) - model(louder)) / model.scheme.output_scale).abs().round()
        assert off.max() <= (2 if quantise is post_training else 0)


# What C does not have


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()


class Mirrored(nn.Module):
    """A convolution that reads a square map with height and width exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(F.relu(self.first(x)).transpose(2, 3)).flatten(1))


class Turned(nn.Module):
    """A convolution that reads the rows of a map as its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(4, 2, 1), nn.Linear(2 * 2 * 6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x)).permute(0, 2, 1, 3).contiguous()
        return self.last(self.second(x).flatten(1))


def convolution(**arguments: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, **arguments), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


@pytest.mark.parametrize(
    ("network", "shape", "said"),
    [
        (nn.Sequential(nn.Linear(4, 4), Gate(), nn.Linear(4, 2)), (4,), r"no kernel for sigmoid \(in module '1'\)"),
        (convolution(dilation=2), (4, 8, 8), r"conv2d \(in module '0'\): its dilation is \(2, 2\)"),
        (convolution(groups=2), (4, 8, 8), r"\(in module '0'\): it has 2 groups"),
        (convolution(padding=1, padding_mode="reflect"), (4, 8, 8), r"pads with something else than zeros"),
        (PaddedPool(), (1, 3, 3), r"max_pool2d \(in module 'pool'\): it is dilated, or padded by another operator"),
        (Mirrored(), (1, 4, 4), r"conv2d \(in module 'second'\): its input would have to be copied"),
        (Turned(), (1, 4, 6), r"conv2d \(in module 'second'\): its input would have to be copied"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 2)), (4,), r"no kernel for softmax"),
        (keyword("gru", "s", None, 12, 49), (49, 10), r"no kernel for .*sigmoid.* \(in module 'grus.0'\)"),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten()), (1, 3, 3), "let it end in a linear layer"),
    ],
    ids=["sigmoid", "dilation", "groups", "reflect", "pool", "mirrored", "turned", "softmax", "gru", "map"],
)
def test_what_has_no_kernel_is_said_before_training_in_one_sentence(
    network: nn.Module, shape: tuple[int, ...], said: str
) -> None:
    network(torch.zeros(2, *shape))
    with pytest.raises(UserError, match=said) as error:
        check_lowering(network, (torch.zeros(1, *shape),))
    assert "export.c" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scheme", ["int8", "q7"])
def test_checking_leaves_a_model_as_it_was(scheme: str) -> None:
    network = separable().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    check_lowering(network, (torch.zeros(1, 1, 12, 6),), scheme)
    assert network.training
    assert all(module.training for module in network.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(parameter.grad is not None for parameter in network.parameters())
