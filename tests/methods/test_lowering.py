"""Networks in whole numbers against the quantised graphs that they come from, layer by layer and as a whole."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from quantize_networks import Samples, inputs, mlp, separable, settle, unsettle
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from edgetrain.methods.lowering import lower
from edgetrain.methods.lowering_layout import Format
from edgetrain.methods.quantize import post_training
from edgetrain.methods.quantize_capture import module_path
from edgetrain.models.integer import (
    Add,
    AveragePool,
    Convolution,
    Depthwise,
    FullyConnected,
    IntegerNetwork,
    IntegerProgram,
    MaxPool,
    Operation,
)
from edgetrain.models.keyword import keyword
from edgetrain.models.quantized import QuantizedModel

pytest.importorskip("executorch")

PLACES = [os.environ.get("EDGETRAIN_DATA"), Path(__file__).resolve().parents[3] / "shared" / "data"]
REAL = next((Path(place) for place in PLACES if place and (Path(place) / "kws_pretrained").is_dir()), None)


class Residual(nn.Module):
    """Two convolutions and a shortcut, ReLU after the sum, pools of both kinds; for [batch, 3, 9, 9]."""

    input_shape = (3, 9, 9)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.last = nn.MaxPool2d(2, ceil_mode=True), nn.Linear(4 * 5 * 5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.second(x) + x)
        return self.last(self.pool(x).flatten(1))


class Inverted(nn.Module):
    """MobileNetV2's block with ReLU6, stride 2 and then 1, the second with a shortcut; for [batch, 3, 8, 10]."""

    input_shape = (3, 8, 10)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for channels, stride in ((3, 2), (6, 1)):
            self.blocks.append(
                nn.Sequential(
                    *(nn.Conv2d(channels, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()),
                    *(nn.Conv2d(12, 12, 3, stride, 1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6()),
                    *(nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6)),
                )
            )
        self.classifier = nn.Linear(6, 4)
        unsettle(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        x = x + self.blocks[1](x)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Averages(nn.Module):
    """Averages that keep no scale: padded ones counted and not counted, cut ones, one of a divisor of its own."""

    input_shape = (1, 11, 13)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 5, 1, 2)
        self.counted, self.between = nn.AvgPool2d(3, 2, 1), nn.Conv2d(6, 6, 1)
        self.present, self.after = nn.AvgPool2d((3, 2), 2, 1, count_include_pad=False), nn.Conv2d(6, 5, 1)
        self.divided, self.last = nn.AvgPool2d(2, 1, divisor_override=3), nn.Linear(5 * 2 * 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.between(self.counted(F.relu(self.conv(x)))))
        return self.last(self.divided(self.after(self.present(x))).flatten(1))


class Audio(nn.Module):
    """One-dimensional, over features whose second axis is the channels: [batch, 20, 8]."""

    input_shape = (20, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv1d(8, 6, 5, 2, 3), nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.pool, self.last = nn.MaxPool1d(2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.deep(F.relu(self.first(x.transpose(1, 2))))))
        return self.last(x.mean(2))


class Halves(nn.Module):
    """What a linear layer reads in another order, cut and padded: [batch, 2, 4, 5]."""

    input_shape = (2, 4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 3, 2), nn.Linear(3 * 2 * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.conv(x)[:, :, 1:], (0, 1))
        return self.last(x.permute(0, 3, 1, 2).flatten(1))


def keywords(family: str) -> nn.Module:
    torch.manual_seed(0)
    return settle(keyword(family, "s", None, 12, 49), (49, 10))


def mobilenet() -> nn.Module:
    """timm's smallest MobileNetV2."""
    network = pytest.importorskip("timm").create_model("mobilenetv2_035", num_classes=10)
    network.input_shape = (3, 48, 48)
    return settle(network, network.input_shape)


NETWORKS = {
    "mlp": lambda: mlp(6, 9, 7, 4),
    "separable": lambda: settle(separable(), (1, 12, 6)),
    "residual": Residual,
    "inverted": lambda: settle(Inverted(), Inverted.input_shape),
    "averages": Averages,
    "audio": Audio,
    "halves": Halves,
    "dnn": lambda: keywords("dnn"),
    "cnn": lambda: keywords("cnn"),
    "ds_cnn": lambda: keywords("ds_cnn"),
    "mobilenet": mobilenet,
}
UNJUDGED = {"averages": 1, "audio": 1}  # operations whose result the graph does not round by itself
FLOAT32 = 2e-3  # steps, by which the graph's own sums may be off
CALIBRATED: dict[str, tuple[QuantizedModel, IntegerNetwork, Tensor]] = {}


def calibrated(name: str) -> tuple[QuantizedModel, IntegerNetwork, Tensor]:
    """A network in int8, the same in whole numbers, and inputs of which some are beyond the calibrated range."""
    if name not in CALIBRATED:
        torch.manual_seed(0)
        network = NETWORKS[name]().eval()
        example = (torch.zeros(1, *network.input_shape),)
        model = post_training(network, example, Samples(inputs(64, network.input_shape)))
        x = inputs(16, network.input_shape, seed=2)
        x[:4] *= 1.5
        CALIBRATED[name] = model, lower(model, example), x
    return CALIBRATED[name]


class Rounded(NamedTuple):
    """What a graph rounds to 8 bits. exact: before, in steps, the zero point added; both in PyTorch's order of axes."""

    exact: Tensor
    numbers: Tensor
    format: Format


class Numbers(Interpreter):
    """Runs a quantised graph; what of every operator is rounded, by module and name."""

    def of(self, x: Tensor) -> dict[str, Rounded]:
        self.found: dict[str, Rounded] = {}
        with torch.no_grad():
            self.run(x)
        return self.found

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        if "decomposed.quantize_per_tensor" in str(node.target):
            form = Format(*node.args[1:3])
            exact = (self.env[node.args[0]].double() / form.scale + form.zero_point).clamp(-128, 127)
            self.found.setdefault("the input", Rounded(exact, result, form))
            for name, before in names(node.args[0]):
                if before:  # it was rounded once already, and is clipped or moved only
                    exact = self.found[name].exact.reshape(result.shape)
                    if node.args[0].target._opname.startswith("hardtanh"):
                        exact = exact.clamp(form.zero_point, form.zero_point + 6 / form.scale)
                self.found[name] = Rounded(exact, result, form)
        return result


def names(node: Node) -> Iterable[tuple[str, bool]]:
    """What an operation of this node may be called, or of what it clips or moves; whether that was rounded itself."""
    before = False
    while node.op == "call_function":
        rounding = node.target._opname in ("quantize_per_tensor", "dequantize_per_tensor")
        path = module_path(node)
        for name in () if rounding else (path, f"{path}.{node.target._opname}".lstrip(".")):
            yield name, before
        before = before or rounding
        if not rounding and node.target._opname not in ("relu", "hardtanh", "hardtanh_", "flatten"):
            return
        node = node.args[0]


def in_memory(numbers: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[batch, channels, ...] as [batch, height, width, channels]."""
    height, width, channels = shape
    return numbers.reshape(-1, channels, height, width).permute(0, 2, 3, 1)


def beside_the_last_rounding(program: IntegerProgram, operation: Operation) -> Tensor | float:
    """What other roundings may take a result from its place, in steps.

    The first of two: half of 2^shift. Before a change of scale: half a step of the other.
    """
    if operation.name.endswith(".rescale"):
        return 0.51 * program.values[operation.inputs[0]].scale / program.values[operation.output].scale
    if isinstance(operation, Convolution | Depthwise | FullyConnected):
        return 2.0 ** (operation.rescale.shift.double() - 1)
    return 0.0


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "halves"])  # cut before it is rounded
def test_every_layer_fed_the_graphs_numbers_is_the_exact_result_rounded(name: str) -> None:
    """So it is at most 1 step from what the graph rounds to."""
    model, network, x = calibrated(name)
    program, found = network.program, Numbers(model.graph).of(x)
    numbers, exact = {"input": network.quantize(x)}, {}
    for key, value in program.values.items():
        rounded = found.get(key.removesuffix(".rescale"))
        if rounded is not None and rounded.format == (value.scale, value.zero_point):
            numbers[key], exact[key] = in_memory(rounded.numbers, value.shape), in_memory(rounded.exact, value.shape)
    judged = 0
    for operation in program.operations:
        if not all(key in numbers for key in operation.inputs):
            continue
        got = network.apply(operation, *(numbers[key] for key in operation.inputs))
        if operation.output not in exact:  # a pool that the graph does not round after
            numbers |= {operation.output: got} if isinstance(operation, MaxPool | AveragePool) else {}
            continue
        off = (got - exact[operation.output]).abs()
        assert (off <= 0.5 + beside_the_last_rounding(program, operation) + FLOAT32).all(), operation.name
        assert (got.int() - numbers[operation.output].int()).abs().max() <= 1, operation.name
        judged += 1
    assert judged == len(program.operations) - UNJUDGED.get(name, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_input_is_quantised_to_the_numbers_of_the_graph(name: str) -> None:
    model, network, x = calibrated(name)
    first, value = Numbers(model.graph).of(x)["the input"], network.program.values["input"]
    assert (value.scale, value.zero_point) == first.format
    for sample, other in zip(network.quantize(x), first.numbers, strict=True):
        zeros = [value.zero_point] * (other.numel() - sample.numel())  # the graph pads before it quantises
        assert sorted(sample.flatten().tolist() + zeros) == sorted(other.flatten().tolist())


def worst_case(program: IntegerProgram) -> float:
    """Most steps by which the output can be off, when every operation rounds to within 1 step.

    An error e of a layer's input moves a sum by e times the sum of its weights' magnitudes, in the output's steps.
    """
    off = {program.input: 0.0}
    for operation in program.operations:
        given = max(off[name] for name in operation.inputs)
        gain = 1.0
        if isinstance(operation, Convolution | Depthwise | FullyConnected):
            axes = (0, 1) if isinstance(operation, Depthwise) else tuple(range(1, operation.weight.ndim))
            scale = operation.rescale.multiplier.double() * 2.0 ** (operation.rescale.shift.double() - 31)
            gain = float((operation.weight.double().abs().sum(axes) * scale).max())
        if isinstance(operation, Add):
            scales = [program.values[name].scale for name in operation.inputs]
            gain = sum(scales) / program.values[operation.output].scale
        off[operation.output] = given * gain + 1
    return off[program.output]


# Share of outputs that are equal, and most steps that one is off, with room around what was measured on 16 inputs; at
# most `worst_case` by derivation. Most of it comes from the average over the map: a tie goes the other way, and one of
# its steps is 13 of the next layer's in `separable`, 5 in `inverted`.
@pytest.mark.parametrize(
    ("name", "equal", "steps"),
    [
        ("mlp", 0.9, 1),
        ("separable", 0.5, 20),
        ("residual", 0.9, 1),
        ("inverted", 0.5, 12),
        ("averages", 0.5, 2),
        ("audio", 0.85, 1),
        ("halves", 0.8, 1),
        ("dnn", 0.85, 2),
        ("cnn", 0.55, 3),
        ("ds_cnn", 0.35, 4),
    ],
)
@torch.no_grad()
def test_a_whole_network_stays_near_its_graph(name: str, equal: float, steps: int) -> None:
    model, network, x = calibrated(name)
    off = ((network(x) - model(x)) / model.scheme.output_scale).abs().round()
    assert off.max() <= min(steps, worst_case(network.program))
    assert (off == 0).float().mean() >= equal


@torch.no_grad()
def test_a_deep_network_is_no_further_from_its_float_network_than_the_graph_is() -> None:
    """Over 64 operations single steps become several; they are of the size of what quantising itself changes."""
    model, network, x = calibrated("mobilenet")
    wanted = model.float_model(x)
    assert (network(x) - wanted).abs().mean() < 1.3 * (model(x) - wanted).abs().mean()
    kinds = {type(operation).__name__ for operation in network.program.operations}
    assert kinds == {"Convolution", "Depthwise", "Add", "AveragePool", "FullyConnected"}
