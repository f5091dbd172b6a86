"""Training that rounds: what layers compute with, which ranges they learn, and what is left of it in the checkpoint."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quantize_networks import Samples, inputs, mlp, separable
from torch import Tensor, nn

from edgetrain.checkpoint import load_weights
from edgetrain.errors import UserError
from edgetrain.methods.quantize import Quantize, post_training
from edgetrain.methods.quantize_capture import batch_norms, capture, folded
from edgetrain.methods.quantize_training import MOMENTUM, learnt_ranges
from edgetrain.ops.fake_quantization import fake_quantize_activation, fake_quantize_weight

pytest.importorskip("executorch")


def rounding(network: nn.Module, **settings: Any) -> Quantize:
    """The method on a network, which rounds from step 0 on."""
    method = Quantize(qat_start=0, **settings)
    method.apply(network, method.plan(network, None))
    return method


def steps(network: nn.Module, method: Quantize, x: Tensor, y: Tensor, first: int, last: int, lr: float = 0.01) -> None:
    """Plain gradient descent on batches of 32."""
    for step in range(first, last):
        method.after_step(network, step)
        rows = torch.arange(32 * step, 32 * step + 32) % len(x)
        network.zero_grad()
        F.cross_entropy(network.train()(x[rows]), y[rows]).backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= lr * parameter.grad


def labelled(count: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    x = inputs(count, (width,))
    return x, (x @ torch.randn(width, classes, generator=torch.Generator().manual_seed(5))).argmax(1)


def test_the_plan_names_layers_and_the_output() -> None:
    assert Quantize().plan(separable(), None) == {
        "layers": ["0", "3", "6", "11", "14"],
        "output": "14",
    }


def test_state_dict_keys_stay_and_ranges_come() -> None:
    network = separable()
    keys = set(network.state_dict())
    rounding(network)
    extra = {f"{name}.input_range" for name in ("0", "3", "6", "11", "14")} | {"14.output_range"}
    assert set(network.state_dict()) == keys | extra
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in separable().named_parameters()]


def test_a_layer_reads_and_multiplies_rounded_numbers() -> None:
    network, x = mlp(6, 4), inputs(50, (6,))
    reference = copy.deepcopy(network)
    rounding(network)
    found = network.train()(x)
    read = fake_quantize_activation(x, x.min(), x.max())
    exact = F.linear(read, fake_quantize_weight(reference[0].weight), reference[0].bias)
    assert torch.equal(found, fake_quantize_activation(exact, exact.min(), exact.max()))


@torch.no_grad()
def test_in_eval_mode_a_norm_is_as_if_folded_into_rounded_weights() -> None:
    """The norm of Q(w) x is Q(w s) x with the folded bias: a channel's grid is scaled as the channel is."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 5, 3, bias=True), nn.BatchNorm2d(5), nn.ReLU()).eval()
    network.input_shape = (2, 6, 6)
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.2, 4)
    nn.init.normal_(network[1].weight)  # of both signs
    x = inputs(20, (2, 6, 6))
    plain = folded(network, batch_norms(network, capture(network, (x,))))
    rounding(network, bits=3)
    network.eval()
    network[0].input_range.copy_(torch.tensor([x.min(), x.max()]))
    read = fake_quantize_activation(x, x.min(), x.max())
    expected = F.conv2d(read, fake_quantize_weight(plain[0].weight, 3), plain[0].bias).relu()
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    assert (network(x) - plain(x)).abs().max() > 0.1  # three bits are far from the float network


def test_ranges_are_moving_averages_that_begin_with_the_first_batch() -> None:
    network = mlp(2, 3)
    method = rounding(network)
    network.train()(torch.tensor([[-1.0, 2.0]]))
    network(torch.tensor([[-3.0, 6.0]]))
    network.eval()(torch.tensor([[-100.0, 100.0]]))
    expected = [-1 + MOMENTUM * (-3 + 1), 2 + MOMENTUM * (6 - 2)]
    assert learnt_ranges(network)["0"] == pytest.approx(expected)
    assert method.rounding.on


def test_before_its_step_training_is_in_floating_point_and_ranges_are_kept() -> None:
    network, x = mlp(4, 3), inputs(9, (4,))
    exact = copy.deepcopy(network)
    method = Quantize(qat_start=2)
    method.apply(network, method.plan(network, None))
    for step, rounds in ((0, False), (1, False), (2, True), (7, True)):
        method.after_step(network, step)
        assert torch.equal(network.train()(x), exact(x)) is not rounds
    assert learnt_ranges(network)["0"] == pytest.approx((x.min().item(), x.max().item()))


def test_gradients_reach_weights_norms_and_inputs_through_rounding() -> None:
    network, x = separable(), inputs(32).requires_grad_()
    rounding(network)
    network.train()(x).square().mean().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in network.named_parameters() if name != "3.bias")


def test_a_training_that_was_saved_goes_on_to_the_bit() -> None:
    x, y = labelled(200, 8, 3)
    whole, parts = mlp(8, 16, 3), mlp(8, 16, 3)
    method = rounding(whole)
    steps(whole, method, x, y, 0, 8)
    method = rounding(parts)
    steps(parts, method, x, y, 0, 5)
    saved = copy.deepcopy(parts.state_dict())
    again = mlp(8, 16, 3, seed=9)
    method = rounding(again)
    again.load_state_dict(saved)
    steps(again, method, x, y, 5, 8)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items())


def finished(network: nn.Module, method: Quantize, x: Tensor, y: Tensor) -> nn.Module:
    context = SimpleNamespace(task=SimpleNamespace(example_inputs=lambda: (x[:1],)), data=Samples(x, y))
    return method.finish(network, context)


def test_finish_ships_what_training_saw() -> None:
    """The rounding network in eval mode and the deployed graph: the same steps, but for sums that end near a half."""
    x, y = labelled(400, 10, 4)
    network = mlp(10, 32, 24, 4)
    method = rounding(network)
    steps(network, method, x, y, 0, 40)
    with torch.no_grad():
        emulated = network.eval()(x)
        ranges = learnt_ranges(network)
        model = finished(network, method, x, y)
        distance = (model(x) - emulated).abs() / model.scheme.output_scale
    assert distance.max() < 1.01
    assert (distance < 0.01).double().mean() > 0.98
    scales = {row["layer"]: row["input_scale"] for row in model.scheme.layers} | {"": model.scheme.output_scale}
    assert scales == pytest.approx({name: (max(high, 0) - min(low, 0)) / 255 for name, (low, high) in ranges.items()})
    assert type(model.float_model[0]) is nn.Linear
    assert set(model.float_model.state_dict()) == set(mlp(10, 32, 24, 4).state_dict())


def test_an_average_keeps_the_range_of_what_it_averages() -> None:
    """Its output shares a scale with its input, which is larger than what the next layer's range says."""
    network, x = separable(), inputs(64)
    y = torch.zeros(64, dtype=torch.int64)
    expected = {row["layer"]: row for row in post_training(network, (x[:1],), Samples(x)).scheme.layers}
    method = rounding(network)
    network.train()
    for norm in network.modules():  # the ranges, and nothing else, are learnt
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval()
    network(x)
    bounds = learnt_ranges(network)["11"]
    found = {row["layer"]: row for row in finished(network, method, x, y).scheme.layers}
    assert found["11"]["input_scale"] == pytest.approx(expected["11"]["input_scale"], rel=0.2)
    assert found["11"]["input_scale"] > 1.1 * (max(bounds[1], 0) - min(bounds[0], 0)) / 255


def test_at_two_bits_training_that_rounds_loses_less_than_rounding_afterwards() -> None:
    x, y = labelled(640, 12, 4)
    exact, rounded = mlp(12, 24, 24, 4), mlp(12, 24, 24, 4)
    plain = Quantize()
    steps(exact, plain, x, y, 0, 300, lr=0.1)
    method = Quantize(qat_start=150, bits=2)
    method.apply(rounded, method.plan(rounded, None))
    steps(rounded, method, x, y, 0, 300, lr=0.1)
    with torch.no_grad():
        afterwards = post_training(exact.eval(), (x[:1],), Samples(x, y), bits=2)
        learnt = finished(rounded, method, x, y)
        losses = [F.cross_entropy(model(x), y).item() for model in (exact, learnt, afterwards)]
    assert losses == sorted(losses)
    assert losses[1] < 0.7 * losses[2]


def test_a_network_that_rounds_is_exported_without_rounding() -> None:
    """Exporters look at a network's operators before it is trained."""
    network = mlp(4, 3)
    rounding(network)
    program = torch.export.export(network.eval(), (torch.zeros(2, 4),))
    assert "fake_quantize" not in str(program.graph)


@pytest.mark.parametrize("further", [False, True])
def test_weights_that_learnt_to_round_start_another_run_with_or_without_it(further: bool) -> None:
    """Without their ranges, which are the layers' of the run that saw them; a run that goes on has its own."""
    learnt, started = mlp(3, 4, 2), mlp(3, 4, 2, seed=1)
    method = Quantize(qat_start=0)
    method.apply(learnt, method.plan(learnt, None)).train()(inputs(8, (3,)))
    stored = {key: value.clone() for key, value in learnt.state_dict().items()}
    assert any(key.endswith("input_range") for key in stored)
    load_weights(started, stored, "a run")
    for name, value in started.state_dict().items():
        assert torch.equal(value, stored[name])
    if further:
        again = Quantize(qat_start=0)
        again.apply(started, again.plan(started, None))
        load_weights(started, stored, "the same run")
        assert torch.equal(started[0].input_range, stored["0.input_range"])
    with pytest.raises(UserError, match="unknown 0.other_range"):
        load_weights(mlp(3, 4, 2), stored | {"0.other_range": torch.zeros(2)}, "a run")
