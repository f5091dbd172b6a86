"""Networks in whole numbers against Python's own integers, and their floats against torch's own rounding."""

import dataclasses
import math

import integer_reference
import numpy as np
import pytest
import torch
from integer_programs import input_shape, random_inputs, random_network, random_program
from torch import nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 registers torch.ops.quantized_decomposed

from edgetrain.errors import UserError
from edgetrain.models import integer
from edgetrain.models.integer import (
    Clip,
    Convolution,
    Depthwise,
    FullyConnected,
    IntegerNetwork,
    IntegerProgram,
    Multipliers,
    Operation,
    RightShift,
    Value,
)


def only_input(
    scale: float, zero_point: int, shape: tuple[int, int, int] = (1, 1, 1), axes: tuple = (None, None, 0)
) -> IntegerProgram:
    """A network that gives back its input."""
    values = {name: Value(name, shape, scale, zero_point) for name in ("input", "output")}
    same = Clip(name="same", inputs=("input",), output="output")
    return IntegerProgram("int8", values, (same,), "input", "output", axes)


def macs(program: IntegerProgram) -> int:
    def of(layer: Operation) -> int:
        height, width, _ = program.values[layer.output].shape
        return layer.weight.numel() * height * width if hasattr(layer, "weight") else 0

    return sum(map(of, program.operations))


@pytest.mark.parametrize("scheme", ["int8", "q7"])
def test_every_value_of_small_networks_is_the_definitions(scheme: str) -> None:
    compared = 0
    for seed in range(150):
        program = random_program(seed, scheme)
        if macs(program) > 20_000:
            continue
        x = random_inputs(program, 4, seed)
        network = IntegerNetwork(program, input_shape(program))
        values = network.run(x)
        for index in (2, 3):
            wanted = integer_reference.run(program, x[index].tolist())
            for name, value in wanted.items():
                assert values[name][index].tolist() == value, (seed, name)
                compared += values[name][index].numel()
    assert compared > 20_000


def test_random_networks_hold_what_they_promise() -> None:
    """Else the comparison above, and C's, would miss it."""
    seen = dict.fromkeys(("kernel over the map", "uneven", "stride", "over the edge", "one channel", "left", "zero"), 0)
    kinds = set()
    for program in map(random_program, range(300)):
        for operation in program.operations:
            given, output = program.values[operation.inputs[0]].shape, program.values[operation.output].shape
            kinds.add(type(operation).__name__)
            seen["one channel"] += given[2] == 1
            if hasattr(operation, "kernel"):
                last = (output[0] - 1) * operation.stride[0] + operation.kernel[0] - operation.padding[0] - given[0]
                seen["kernel over the map"] += operation.kernel[0] > given[0]
                seen["uneven"] += last > 0 and last != operation.padding[0] > 0
                seen["stride"] += max(operation.stride) > 1
                seen["over the edge"] += "Pool" in type(operation).__name__ and last > 0
            if hasattr(operation, "rescale"):
                seen["left"] += int((operation.rescale.shift > 0).sum())
                seen["zero"] += int((operation.rescale.multiplier == 0).sum())
    assert kinds == {"Convolution", "Depthwise", "FullyConnected", "MaxPool", "AveragePool", "Add", "Clip"}
    assert all(count >= 20 for count in seen.values()), seen


@pytest.mark.parametrize(("scale", "zero_point"), [(0.037, -3), (1 / 3, -128), (2.0**-7, 0), (1.7e-3, 127), (11.3, 40)])
def test_inputs_are_rounded_as_torch_quantises(scale: float, zero_point: int) -> None:
    network = IntegerNetwork(only_input(scale, zero_point), (1,))
    torch.manual_seed(0)
    halves = (torch.arange(-400, 400) + 0.5) * scale  # as near to ties as float32 gets
    x = torch.cat(
        [torch.randn(20_000) * 100 * scale, halves, halves.nextafter(torch.zeros(1)), torch.tensor([0.0, 1e30])]
    )
    wanted = torch.ops.quantized_decomposed.quantize_per_tensor(x, scale, zero_point, -128, 127, torch.int8)
    assert torch.equal(network.quantize(x[:, None]).flatten(), wanted)
    in_c = np.rint(x.numpy() * np.float32(1 / scale)) + np.float32(zero_point)
    assert wanted.tolist() == in_c.clip(-128, 127).tolist()
    given_back = torch.ops.quantized_decomposed.dequantize_per_tensor(wanted, scale, zero_point, -128, 127, torch.int8)
    assert torch.equal(network(x[:, None]).flatten(), given_back)


def test_halves_of_an_input_go_to_the_even_number() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])[:, None]
    assert IntegerNetwork(only_input(1.0, 0), (1,)).quantize(x).flatten().tolist() == [0, 2, 2, 0, -2, -2]


def test_what_is_no_number_is_the_lowest() -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf])[:, None]
    assert IntegerNetwork(only_input(0.1, 5), (1,)).quantize(x).flatten().tolist() == [-128, 127, -128]


@pytest.mark.parametrize(
    ("axes", "shape", "place"),
    [
        ((1, 2, 0), (2, 3, 4), lambda x, h, w, c: x[c, h, w]),
        ((0, 1, None), (3, 4), lambda x, h, w, c: x[h, w]),
        ((None, 1, 0), (2, 5), lambda x, h, w, c: x[c, w]),
        ((None, None, 0), (6,), lambda x, h, w, c: x[c]),
    ],
    ids=["image", "features", "signal", "vector"],
)
def test_inputs_are_laid_out_by_height_width_channels(axes: tuple, shape: tuple, place) -> None:
    sizes = tuple(1 if axis is None else shape[axis] for axis in axes)
    x = torch.arange(math.prod(shape)).view(shape)
    out = IntegerNetwork(only_input(1.0, 0, sizes, axes), shape).quantize(x[None].float())[0]
    assert out.shape == sizes
    for h, w, c in torch.cartesian_prod(*map(torch.arange, sizes)).tolist():
        assert out[h, w, c] == place(x, h, w, c)


def test_the_front_end_runs_before_rounding() -> None:
    network = IntegerNetwork(only_input(1.0, 0), (3,), front_end=nn.Linear(3, 1, bias=False))
    nn.init.constant_(network.front_end.weight, 2.0)
    assert network(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[12.0]]


def test_a_batch_is_its_items_however_many_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_network(25)
    torch.manual_seed(0)
    x = torch.randn(7, *network.input_shape)
    one_by_one = torch.cat([network(item[None]) for item in x])
    assert len(one_by_one.unique(dim=0)) > 3 and torch.equal(network(x), one_by_one)
    monkeypatch.setattr(integer, "NUMBERS_AT_ONCE", 3 * max(value.bytes for value in network.program.values.values()))
    assert torch.equal(network(x), one_by_one)
    assert network(x[:0]).shape == (0, one_by_one.shape[1])


def layer(kind: type, weight: torch.Tensor, bias: int, rescale=None) -> IntegerProgram:
    """One layer on a map of 1 x 1 with as many channels as the weight has."""
    values = {"input": Value("input", (1, 1, weight.numel()), 1.0, -128), "output": Value("output", (1, 1, 1), 1.0, 0)}
    pair = [torch.tensor([number], dtype=torch.int32) for number in (2**30, 1)]
    facts = {
        "weight": weight,
        "bias": torch.tensor([bias], dtype=torch.int32),
        "rescale": rescale or Multipliers(*pair),
    }
    if kind is not FullyConnected:
        facts |= {"kernel": (1, 1), "stride": (1, 1)}
    operation = kind(name="stem.0", inputs=("input",), output="output", **facts)
    return IntegerProgram("int8", values, (operation,), "input", "output", (None, None, 0))


@pytest.mark.parametrize(
    ("kind", "shape"), [(Convolution, (1, 1, 1, 1)), (Depthwise, (1, 1, 1)), (FullyConnected, (1, 1))]
)
def test_a_sum_beyond_32_bits_is_refused_and_the_largest_one_fits(kind: type, shape: tuple) -> None:
    weight = torch.full(shape, -128, dtype=torch.int8)
    fits = 2**31 - 1 - 255 * 128
    network = IntegerNetwork(layer(kind, weight, -fits), (1,))
    assert network.run(torch.full((1, 1, 1, 1), 127, dtype=torch.int8))["output"].item() == -128
    with pytest.raises(UserError, match=r"^stem\.0: a sum can reach 2,147,483,648, more than 32 bits hold"):
        IntegerNetwork(layer(kind, weight, -fits - 1), (1,))


def test_the_half_of_a_shift_counts_in_a_sum() -> None:
    weight = torch.full((1, 1), -128, dtype=torch.int8)
    IntegerNetwork(layer(FullyConnected, weight, 2**31 - 1 - 255 * 128 - 512, RightShift(10)), (1,))
    with pytest.raises(UserError, match="more than 32 bits"):
        IntegerNetwork(layer(FullyConnected, weight, 2**31 - 255 * 128 - 512, RightShift(10)), (1,))


def test_an_unknown_operation_is_named() -> None:
    program = only_input(1.0, 0)
    other = Operation(name="odd", inputs=("input",), output="output")
    with pytest.raises(TypeError, match="odd: there is no Operation"):
        IntegerNetwork(dataclasses.replace(program, operations=(other,)), (1,))(torch.zeros(1, 1))
