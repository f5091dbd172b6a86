"""The power-of-two scheme: formats worked by hand, arithmetic in exact fractions, and networks that were released."""

import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from quantize_networks import Samples, inputs, mlp, separable
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.methods.q7 import Q7Layer, Q7Network, power_of_two
from edgetrain.methods.quantize import Quantize
from edgetrain.methods.quantize_capture import capture

PLACES = [os.environ.get("EDGETRAIN_DATA"), Path(__file__).resolve().parents[3] / "shared" / "data"]
REAL = next((Path(place) for place in PLACES if place and (Path(place) / "kws_pretrained").is_dir()), None)
real = pytest.mark.skipif(REAL is None, reason="kws_pretrained is not in $EDGETRAIN_DATA")


def test_formats_of_a_layer_worked_by_hand() -> None:
    """|w| <= 0.7 needs no whole bits: 7 fractional ones. |b| <= 3 needs 2 whole bits: 5 fractional ones."""
    layer = Q7Layer(torch.tensor([[0.7, -0.2]]), torch.tensor([3.0]))
    assert (layer.weight_fraction, layer.bias_fraction) == (7, 5)
    assert layer.weight.tolist() == [[90, -26]]  # 89.6 and -25.6
    bias, bias_shift, out_shift = layer.shifts(given=3, wanted=4)
    assert (bias.tolist(), bias_shift, out_shift) == ([96], 3 + 7 - 5, 3 + 7 - 4)


def test_the_guides_example_has_its_shifts() -> None:
    """DNN: input Q5.2, weights Q0.7, bias of 8 fractional bits shifted left by 1, output shifted right by 7."""
    layer = Q7Layer(torch.tensor([[0.9]]), torch.tensor([0.4]))
    assert (layer.weight_fraction, layer.bias_fraction) == (7, 8)
    assert layer.shifts(given=2, wanted=2)[1:] == (1, 7)


def test_a_bias_finer_than_the_sums_is_made_coarser() -> None:
    layer = Q7Layer(torch.tensor([[0.9]]), torch.tensor([0.001]))
    bias, bias_shift, _ = layer.shifts(given=-2, wanted=2)
    assert bias_shift == 0
    assert bias.tolist() == [0]  # 0.001 in steps of 2^-5


def test_one_layer_in_whole_numbers_worked_by_hand() -> None:
    """x = 1.5 -> 6 of 2^-2; w = 0.5 -> 64 of 2^-7; b = 0.25: (6 * 64 + 0.25 * 2^9 + 2^5) >> 6 = 8, of 2^-3: 1."""
    network = nn.Sequential(nn.Linear(1, 1))
    network[0].weight.data.fill_(0.5)
    network[0].bias.data.fill_(0.25)
    graph = capture(network, (torch.zeros(1, 1),)).module(check_guards=False)
    q7 = Q7Network(graph)
    q7.layers["linear"] = Q7Layer(
        torch.tensor([[0.5000001]]), torch.tensor([0.25])
    )  # a little more than a power of two
    source = next(node.name for node in graph.graph.nodes if node.op == "placeholder")
    q7.fractions = {source: 2, "linear": 3}
    assert q7.layers["linear"].weight_fraction == 7
    assert q7(torch.tensor([[1.5], [1.4], [40.0]])).flatten().tolist() == [1.0, 1.0, 15.875]


def exact(value: Fraction) -> Fraction:
    """Rounded half up to a whole number, kept within 8 bits."""
    return Fraction(max(-128, min(127, (value + Fraction(1, 2)).__floor__())))


def in_fractions(network: nn.Sequential, scheme: list[dict], x: list[float]) -> list[Fraction]:
    """Linear layers and ReLU with exact numbers, every stored one rounded to its format."""
    linear = [module for module in network if isinstance(module, nn.Linear)]

    def stored(value: float, fraction: int) -> Fraction:
        scaled = Fraction(value) * Fraction(2) ** fraction
        return Fraction(max(-128, min(127, round(scaled)))) / Fraction(2) ** fraction

    values = [stored(value, scheme[0]["input_fraction"]) for value in x]
    for layer, row in zip(linear, scheme, strict=True):
        grid = Fraction(2) ** row["output_fraction"]
        sums = []
        for weights, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True):
            products = (stored(w, row["weight_fraction"]) * v for w, v in zip(weights, values, strict=True))
            sums.append(sum(products) + stored(bias, row["bias_fraction"]))
        values = [exact(total * grid) / grid for total in sums]
        if layer is not linear[-1]:
            values = [max(Fraction(0), value) for value in values]
    return values


@torch.no_grad()
def test_a_network_is_its_arithmetic_in_exact_fractions() -> None:
    network = mlp(6, 9, 7, 4)
    model = power_of_two(network, (torch.zeros(1, 6),), Samples(inputs(100, (6,))))
    for row in inputs(20, (6,), seed=7):
        expected = [float(value) for value in in_fractions(network, model.scheme.layers, row.tolist())]
        assert model(row[None])[0].tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_shifts_are_legal_and_formats_consistent(seed: int) -> None:
    network = separable(seed)
    network[0].weight.mul_(10.0 ** (seed - 2))
    model = power_of_two(network, (inputs(1),), Samples(inputs(40)))
    for row in model.scheme.layers:
        assert row["out_shift"] >= 1
        assert row["bias_shift"] >= 0
        assert row["bias_shift"] == row["input_fraction"] + row["weight_fraction"] - row["bias_fraction"]
        assert row["out_shift"] == row["input_fraction"] + row["weight_fraction"] - row["output_fraction"]
    assert model.scheme.output_scale == 2.0 ** -model.scheme.layers[-1]["output_fraction"]


@torch.no_grad()
def test_an_output_finer_than_the_sums_is_made_coarser() -> None:
    """Inputs of 100 have 0 fractional bits, sums 7; an output of 0.001 would want 16 and a shift to the left."""
    network = mlp(2, 1)
    network[0].weight.copy_(torch.tensor([[0.9, -0.9]]))
    network[0].bias.fill_(0.001)
    model = power_of_two(network, (torch.zeros(1, 2),), Samples(torch.full((8, 2), 100.0)))
    (row,) = model.scheme.layers
    assert (row["out_shift"], row["output_fraction"]) == (1, row["input_fraction"] + 7 - 1)


@torch.no_grad()
def test_a_convolutional_network_stays_near_its_float_network() -> None:
    network, x = separable(), inputs(64, seed=4)
    model = power_of_two(network, (inputs(1),), Samples(inputs(128)))
    assert (model(x) - network(x)).norm() / network(x).norm() < 0.15
    steps = model.train().eval()(x) / model.scheme.output_scale
    assert torch.equal(steps, steps.round())


@torch.no_grad()
def test_the_sweep_clips_an_outlier_that_hardly_counts() -> None:
    """Of 1,000 inputs of about 1 one is 9: the format that holds it wastes three bits on the others."""
    network = mlp(1000, 5)
    samples = torch.rand(64, 1000, generator=torch.Generator().manual_seed(0))
    samples[0, 0] = 9.0
    model = power_of_two(network, (torch.zeros(1, 1000),), Samples(samples))
    assert model.scheme.layers[0]["input_fraction"] > 3  # which 9 would need: 2^4 > 9


@torch.no_grad()
def test_no_format_next_to_the_chosen_output_is_nearer() -> None:
    network, x = mlp(8, 16, 4), inputs(100, (8,))
    model = power_of_two(network, (torch.zeros(1, 8),), Samples(x))
    graph, last = model.graph, model.scheme.layers[-1]["output_fraction"]
    name = next(key for key, value in graph.fractions.items() if key == list(graph.fractions)[-1])
    errors = {}
    for fraction in (last - 1, last, last + 1):
        graph.fractions[name] = fraction
        errors[fraction] = (graph(x) - network(x)).square().mean().item()
    assert min(errors, key=errors.get) == last


class WithSigmoid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.layer = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.gate(x).sigmoid() * x)


@pytest.mark.parametrize("network", [WithSigmoid(), nn.Sequential(nn.Conv2d(1, 2, 2, dilation=2), nn.Flatten())])
def test_what_has_no_kernel_is_one_sentence(network: nn.Module) -> None:
    shape = (1, 4) if isinstance(network, WithSigmoid) else (1, 1, 6, 6)
    with pytest.raises(UserError, match="scheme=q7 holds feed-forward networks") as error:
        power_of_two(network, (torch.zeros(shape),), Samples(torch.zeros(3, *shape[1:])))
    assert "\n" not in str(error.value)


@real
@torch.no_grad()
@pytest.mark.parametrize("name", ["dnn_s", "ds_cnn_s"])
def test_released_networks_in_q7_label_the_clips_as_in_floating_point(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """yes, no (DNN-S is 75% sure of it in floating point) and silence."""
    import soundfile

    from edgetrain.models.keyword_pretrained import LABELS, keyword_pretrained
    from edgetrain.ops.mfcc import MFCC

    monkeypatch.setenv("EDGETRAIN_DATA", str(REAL))
    network = keyword_pretrained(name).eval()
    front_end = MFCC(stride_ms=20 if network.feature_shape[0] == 49 else 40)
    clips = [
        torch.from_numpy(soundfile.read(REAL / "kws_clips" / f"{each}_1000ms.wav", dtype="float32")[0])
        for each in ("yes", "no", "silence")
    ]
    features = torch.stack([front_end(clip) for clip in clips])
    louder = torch.cat([front_end(clip * gain)[None] for clip in clips for gain in (0.3, 1.0, 2.0)])
    model = power_of_two(network, (features[:1],), Samples(louder))
    assert [LABELS[index] for index in model(features).argmax(-1)] == ["yes", "no", "silence"]


@real
def test_a_recurrent_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetrain.models.keyword_pretrained import keyword_pretrained

    monkeypatch.setenv("EDGETRAIN_DATA", str(REAL))
    network = keyword_pretrained("gru_s").eval()
    with pytest.raises(UserError, match="grus.0 has"):  # before training
        Quantize(scheme="q7").plan(network, None)
    with pytest.raises(UserError, match="grus.0 has"):
        power_of_two(network, (torch.zeros(1, *network.input_shape),), Samples(torch.zeros(2, *network.input_shape)))
