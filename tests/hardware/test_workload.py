"""The table of layers: hand-counted loops, shared weights, formats."""

import pytest

from edgetrain.errors import UserError
from edgetrain.hardware.formats import FP32, INT8, Format, parse_format
from edgetrain.hardware.workload import Activation, Layer, Loops, Workload


def test_macs_of_loops_are_counted_by_hand():
    # AlexNet's first layer: 96 maps of 55x55, each the sum over 3 channels of an 11x11 kernel.
    assert Loops(1, 1, 96, 3, 55, 55, 11, 11, 4, 4).macs == 55 * 55 * 96 * 3 * 121 == 105_415_200
    # MobileNet's depthwise 3x3 over 32 channels: one input channel for each output.
    assert Loops(1, 32, 32, 32, 112, 112, 3, 3).macs == 112 * 112 * 32 * 9
    # Attention's scores: 8 heads of width 64, 10 queries by 20 keys.
    assert Loops(2, 8, 8 * 20, 8 * 64, 10).macs == 2 * 8 * 10 * 20 * 64


def test_the_padded_input_is_what_the_outputs_read():
    loops = Loops(out_height=55, out_width=5, kernel_height=11, kernel_width=3, stride_height=4, stride_width=2)
    assert (loops.in_height, loops.in_width) == (227, 11)


def test_shared_weights_count_once_and_their_macs_every_time():
    first = Layer("a", "linear", Loops(out_channels=8, in_channels=4), macs=32, weights=32, biases=8, weight_name="w")
    second = Layer("a:2", "linear", first.loops, macs=32, weights=32, biases=8, weight_name="w")
    own = Layer("b", "linear", Loops(out_channels=2, in_channels=8), macs=16, weights=16)
    workload = Workload("shared", (first, second, own))
    assert workload.macs == 80
    assert workload.weights == 32 + 8 + 16
    assert [layer.name for layer in workload.weight_owners] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "bits", "exponent", "mantissa"),
    [
        ("int8", 8, 0, 7),
        ("uint4", 4, 0, 3),
        ("fp32", 32, 8, 23),
        ("float16", 16, 5, 10),
        ("bf16", 16, 8, 7),
        ("e4m3", 8, 4, 3),
    ],
)
def test_formats_have_the_fields_of_their_standards(text, bits, exponent, mantissa):
    format = parse_format(text)
    assert (format.bits, format.exponent, format.mantissa) == (bits, exponent, mantissa)
    assert parse_format(str(format)) == format


@pytest.mark.parametrize("text", ["", "int", "int0", "int129", "e0m3", "float8", "8"])
def test_an_unknown_format_is_a_sentence(text):
    with pytest.raises(UserError, match="is not a number format; write int8"):
        parse_format(text)


def test_bytes_are_packed_and_the_last_one_is_filled_up():
    assert Activation("x", (3, 5), Format(4)).bytes == 8
    assert Activation("x", (2, 2), FP32).bytes == 16
    assert Layer("a", "linear", Loops(), weights=3, weight_format=Format(3)).weight_bytes == 2


def test_assuming_integers_leaves_what_is_quantised():
    tensors = (Activation("x", (4,)), Activation("q", (4,), Format(4)))
    layer = Layer("a", "linear", Loops(), tensors, (Activation("y", (4,)),), weight_format=Format(2))
    (assumed,) = Workload("w", (layer,)).assuming(INT8)
    assert [tensor.format for tensor in (*assumed.inputs, *assumed.outputs)] == [INT8, Format(4), INT8]
    assert assumed.weight_format == Format(2)
    (changed,) = Workload("w", (layer,)).with_formats(weights=Format(4), activations=INT8)
    assert (changed.weight_format, changed.input_format, changed.output_format) == (Format(4), INT8, INT8)


def test_a_component_keeps_its_layers_and_its_ends():
    x, y, z = (Activation(name, (4,)) for name in "xyz")
    encoder = Layer("e", "linear", Loops(), (x,), (y,), component="encoder", macs=3)
    joiner = Layer("j", "linear", Loops(), (y,), (z,), component="joiner", macs=4)
    workload = Workload("asr", (encoder, joiner), inputs=("x",), outputs=("z",))
    assert workload.components == ("encoder", "joiner")
    part = workload.component("joiner")
    assert (part.name, part.macs, part.inputs, part.outputs) == ("asr.joiner", 4, (), ("z",))


def test_a_part_of_a_weight_that_is_stored_whole_is_not_stored_again():
    whole = Layer("e", "embedding", Loops(), weights=1600, weight_name="e.weight")
    part = Layer("h", "linear", Loops(), weights=800, weight_name="e.weight[0:800]")
    other = Layer("o", "linear", Loops(), weights=7, weight_name="o.weight[0:7]")
    assert Workload("tied", (whole, part, other)).weights == 1607
