"""Batch norms folded, and networks in 8 bits after training, against arithmetic in whole numbers."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from quantize_networks import Samples, inputs, mlp, separable
from torch import Tensor, nn

from edgetrain.build import build_methods
from edgetrain.errors import UserError
from edgetrain.export.onnx import IN_FLOAT, sums_saturate
from edgetrain.methods.quantize import Quantize, check_post_training, post_training
from edgetrain.methods.quantize_capture import batch_norms, capture, folded
from edgetrain.models.quantized import QuantizedModel


def can_quantize(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> bool:
    try:
        check_post_training(model, example_inputs)
    except UserError:
        return False
    return True


pytest.importorskip("executorch")


def fold(network: nn.Module, example: Tensor) -> nn.Module:
    return folded(network, batch_norms(network, capture(network, (example,))))


def test_folding_keeps_the_function_and_leaves_no_batch_norm() -> None:
    network, x = separable(), inputs(9)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    plain = fold(network, x)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), network(x), rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in plain.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_folded_layer_worked_by_hand() -> None:
    """w = 2, b = 1, gamma = 3, beta = 0.5, mean = 5, variance + eps = 4: s = 1.5, w' = 3, b' = 0.5 + (1 - 5) 1.5."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()
    for value, number in (
        (network[0].weight, 2.0),
        (network[0].bias, 1.0),
        (network[1].weight, 3.0),
        (network[1].bias, 0.5),
        (network[1].running_mean, 5.0),
        (network[1].running_var, 4 - 1e-5),
    ):
        value.data.fill_(number)
    plain = fold(network, torch.zeros(1, 1, 2, 2))
    assert plain[0].weight.item() == pytest.approx(3.0, rel=1e-6)
    assert plain[0].bias.item() == pytest.approx(-5.5, rel=1e-6)


class Twice(nn.Module):
    """A layer whose output is read twice, and one that stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.shared = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.first, self.second = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.read_twice(x)
        y = self.norm(y) + y
        return self.second(self.shared(self.first(self.shared(y))))


def test_a_norm_is_folded_only_into_a_layer_that_nobody_else_reads_or_uses() -> None:
    network = Twice().eval()
    assert batch_norms(network, capture(network, (torch.zeros(1, 4),))) == {}


class NormAndReLU(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_a_norm_that_also_activates_goes_on_activating() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 2), NormAndReLU(3)).eval()
    network[1].running_mean.normal_()
    x = inputs(4)
    plain = fold(network, x)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), network(x), rtol=1e-5, atol=1e-5)
    assert isinstance(plain[1], NormAndReLU)


def integers(network: nn.Sequential, scheme: list[dict], x: Tensor) -> Tensor:
    """Linear layers and ReLU of a float network in whole numbers, by the scales and zero points of its scheme."""
    layers = [module for module in network if isinstance(module, nn.Linear)]
    q = quantize(x, scheme[0]["input_scale"], scheme[0]["input_zero_point"])
    for layer, row in zip(layers, scheme, strict=True):
        scales = torch.tensor(row["weight_scales"], dtype=torch.float64)
        weight = (layer.weight.double() / scales[:, None]).round().clamp(-127, 127).long()
        sums = (q - row["input_zero_point"]) @ weight.T
        steps = scales * row["input_scale"]
        real = (sums + (layer.bias.double() / steps).round()) * steps
        real = real if layer is layers[-1] else real.clamp(min=0)
        q = quantize(real, row["output_scale"], row["output_zero_point"])
    return (q - scheme[-1]["output_zero_point"]).double() * scheme[-1]["output_scale"]


def quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return ((x.double() / scale).round() + zero_point).clamp(-128, 127).long()


@torch.no_grad()
def test_the_8_bit_network_computes_in_whole_numbers() -> None:
    network = mlp(10, 32, 24, 5)
    model = post_training(network, (torch.zeros(1, 10),), Samples(inputs(200, (10,))))
    x = inputs(500, (10,), seed=2)
    steps = (model(x).double() - integers(network, model.scheme.layers, x)) / model.scheme.output_scale
    assert steps.abs().max() < 1.01
    assert (
        steps.abs() < 0.01
    ).double().mean() > 0.99  # the rest: sums in float32 that fall on the other side of a half


@torch.no_grad()
def test_biases_are_whole_steps_of_the_sums() -> None:
    """As int32 holds them: input scale times weight scale."""
    network, x = mlp(10, 32, 5), inputs(200, (10,))
    model = post_training(network, (x[:1],), Samples(x))
    biases = [value for name, value in model.graph.named_buffers() if name.endswith("_bias")]
    for row, bias, layer in zip(model.scheme.layers, biases, (network[0], network[2]), strict=True):
        step = torch.tensor(row["weight_scales"], dtype=torch.float64) * row["input_scale"]
        torch.testing.assert_close(bias.double() / step, (layer.bias / step).round(), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_onnx_runtime_computes_the_same_numbers_in_int8(tmp_path: Path) -> None:
    """Its own kernels, and biases in int32: not one output is another step."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = post_training(separable(), (inputs(1),), Samples(inputs(64))), inputs(50, seed=6)
    torch.onnx.export(torch.export.export(model.graph, (x[:1],)), dynamo=True, verbose=False).save(tmp_path / "q.onnx")
    options = onnxruntime.SessionOptions()
    if sums_saturate():
        options.add_session_config_entry(*IN_FLOAT)
    session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), options)
    name = session.get_inputs()[0].name
    found = torch.cat([torch.from_numpy(session.run(None, {name: row[None].numpy()})[0]) for row in x])
    assert ((found - model(x)).abs() < 0.01 * model.scheme.output_scale).all()


@torch.no_grad()
def test_weight_scales_are_of_the_folded_weights() -> None:
    network = separable()
    model = post_training(network, (inputs(1),), Samples(inputs(64)))
    for row in model.scheme.layers:
        weight = model.float_model.get_submodule(row["layer"]).weight
        torch.testing.assert_close(torch.tensor(row["weight_scales"]), weight.flatten(1).abs().amax(1) / 127)
        assert row["bits"] == 8
    assert [row["layer"] for row in model.scheme.layers] == ["0", "3", "6", "11", "14"]


@torch.no_grad()
def test_one_graph_takes_any_batch_and_can_be_exported_for_one() -> None:
    model = post_training(separable(), (inputs(1),), Samples(inputs(64)))
    x = inputs(7, seed=3)
    together = model(x)
    alone = torch.cat([model(row[None]) for row in x])
    exported = torch.export.export(model.graph, (x[:1],)).module()
    torch.testing.assert_close(alone, together, rtol=0, atol=1.01 * model.scheme.output_scale)
    assert torch.equal(exported(x[:1]), alone[:1])
    assert torch.equal(model.train().eval()(x), together)


@torch.no_grad()
def test_outputs_are_whole_steps_and_near_the_float_networks() -> None:
    network, x = separable(), inputs(64, seed=4)
    model = post_training(network, (inputs(1),), Samples(inputs(256)))
    steps = model(x) / model.scheme.output_scale
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert (model(x) - network(x)).norm() / network(x).norm() < 0.05


@torch.no_grad()
def test_a_layer_of_small_weights_keeps_them() -> None:
    """2^-12, the backend's own smallest scale, would leave three levels to weights of 0.0003."""
    network = mlp(10, 16, 5)
    network[0].weight.mul_(1e-3)
    network[0].bias.zero_()
    network[2].weight.mul_(1e3)
    x = inputs(200, (10,))
    model = post_training(network, (x[:1],), Samples(x))
    assert (model(x) - network(x)).norm() / network(x).norm() < 0.05


@torch.no_grad()
def test_fewer_bits_are_fewer_levels() -> None:
    network, x = separable(), inputs(64)
    errors = []
    for bits in (8, 4, 2):
        model = post_training(network, (x[:1],), Samples(x), bits=bits)
        levels = [value.unique().numel() for value in model.graph.state_dict().values() if value.dtype == torch.int8]
        assert max(levels) <= 2**bits - 1
        errors.append((model(x) - network(x)).norm().item())
    assert errors == sorted(errors)


class WithFrontEnd(nn.Module):
    input_shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.front_end, self.layer = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.front_end(x).abs().sqrt())


@torch.no_grad()
def test_a_front_end_stays_in_floating_point() -> None:
    torch.manual_seed(0)
    network, x = WithFrontEnd(), inputs(50, (6,))
    network.front_end.weight[0] = 1e-6 * torch.randn(6)  # lost, were what it reads rounded
    model = post_training(network, (x[:1],), Samples(x))
    rows = {row["layer"]: row["bits"] for row in model.scheme.layers}
    assert rows == {"front_end": 32, "layer": 8}
    assert Quantize().plan(network, None) == {"layers": ["layer"], "output": "layer"}
    nodes = list(model.graph.graph.nodes)
    assert "quantize" not in str(next(node for node in nodes if "linear" in str(node.target)).args[0].target)


def test_the_calibration_decides_the_ranges_and_is_written_down() -> None:
    network, data = separable(), Samples(inputs(64))
    example = (inputs(1),)
    one, same = (post_training(network, example, data, samples=16, seed=1) for _ in range(2))
    other = post_training(network, example, data, samples=16, seed=2)
    assert one.scheme == same.scheme
    assert one.scheme.output_scale != other.scheme.output_scale
    assert one.scheme.calibration["samples"] == 16
    assert one.scheme.calibration["indices_sha256"] != other.scheme.calibration["indices_sha256"]


class Softmax(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class BySum(nn.Module):
    """Its way depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("network", "example", "sentence"),
    [
        (nn.Embedding(5, 3), (torch.zeros(1, 4, dtype=torch.int64),), "reads whole numbers"),
        (nn.Bilinear(3, 3, 2), (torch.zeros(1, 3), torch.zeros(1, 3)), "takes 2 inputs"),
        (nn.ReLU(), (torch.zeros(1, 3),), "no convolution and no linear layer"),
        (BySum(), (torch.zeros(1, 3),), "torch.export cannot capture it"),
    ],
)
def test_a_network_that_cannot_be_quantised_is_one_sentence(
    network: nn.Module, example: tuple[Tensor, ...], sentence: str
) -> None:
    assert not can_quantize(network, example)
    with pytest.raises(UserError, match=sentence) as error:
        post_training(network, example, Samples(torch.zeros(4, 3)))
    assert "\n" not in str(error.value)


def test_an_output_without_steps_is_refused() -> None:
    with pytest.raises(UserError, match="ends in softmax"):
        post_training(Softmax(nn.Linear(3, 2)), (torch.zeros(1, 3),), Samples(inputs(4, (3,))))


def ending(*last: nn.Module) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), *last).eval()
    network.input_shape = (3,)
    return network


@pytest.mark.parametrize(
    ("last", "possible"),
    [
        ([nn.LogSoftmax(-1)], False),
        ([nn.Sigmoid()], False),
        ([nn.LogSoftmax(-1), nn.Flatten()], False),
        ([], True),
        ([nn.ReLU()], True),
        ([nn.Flatten()], True),
        ([nn.BatchNorm1d(2)], True),
        ([nn.BatchNorm1d(2), nn.ReLU()], True),
    ],
)
def test_what_cannot_be_done_after_training_is_said_before_it(last: list[nn.Module], possible: bool) -> None:
    """The oracle is doing it."""
    network, example = ending(*last), (torch.zeros(1, 3),)
    assert can_quantize(network, example) is possible
    try:
        post_training(network, example, Samples(inputs(8, (3,))))
        done = True
    except UserError:
        done = False
    assert done is possible
    if not possible:
        with pytest.raises(UserError, match="which has no 8-bit form"):
            Quantize().plan(network, None)
    assert not any("quantization" in key for key in vars(network))


@pytest.mark.parametrize(("layer", "place"), [(0, "0.weight"), (1, "1")])
def test_a_network_that_is_not_finite_is_refused_with_the_place(layer: int, place: str) -> None:
    network = mlp(3, 4, 2)
    network[0].weight.data.fill_(torch.inf if layer == 0 else 3e38)
    with pytest.raises(UserError, match=f"^{place} has values that are not finite") as error:
        post_training(network, (torch.zeros(1, 3),), Samples(1 + inputs(4, (3,)).abs()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"samples": 0}, "samples=0 must be at least 1"),
        ({"bits": 9}, "outside 2 to 8"),
        ({"qat_start": -1}, "at least 0"),
        ({"scheme": "q7", "qat_start": 0}, "after training only"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Quantize(**settings)


def test_a_language_model_is_refused_before_training() -> None:
    from edgetrain.models.llama import Llama

    llama = Llama(vocab_size=20, dim=8, layers=1, heads=1, kv_heads=1, hidden_dim=8, context=8)
    with pytest.raises(UserError, match="export=\\[gguf\\]"):
        Quantize().plan(llama, None)


def test_it_stands_last_in_the_list() -> None:
    nodes = {
        name: {"_target_": f"edgetrain.methods.{name}.{kind}"}
        for name, kind in (("quantize", "Quantize"), ("lora", "LoRA"))
    }
    nodes["lora"] |= {"rank": 1, "alpha": 1.0, "targets": ["x"]}
    with pytest.raises(UserError, match="method.quantize changes the arithmetic, so it stands last"):
        build_methods(SimpleNamespace(method=nodes))
    assert list(build_methods(SimpleNamespace(method=dict(reversed(nodes.items()))))) == ["lora", "quantize"]


def test_finish_gives_the_quantised_model_with_its_float_network() -> None:
    network = separable()
    context = SimpleNamespace(task=SimpleNamespace(example_inputs=lambda: (inputs(1),)), data=Samples(inputs(32)))
    method = Quantize(samples=8)
    model = method.finish(method.apply(network, method.plan(network, context.data)), context)
    assert isinstance(model, QuantizedModel)
    assert model.scheme.name == "int8"
    with torch.no_grad():
        torch.testing.assert_close(model.float_model(inputs(3)), separable()(inputs(3)), rtol=1e-5, atol=1e-5)


def test_packages_that_are_missing_are_named_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "torchao" else found(name, *more)
    )
    with pytest.raises(UserError, match=r'quantising needs torchao, not installed here; pip install .*"\.\[deploy\]"'):
        check_post_training(nn.Sequential(nn.Linear(2, 2)), (torch.zeros(1, 2),))
