"""Oracles of the LayerSkip paper's equations: published values, invariants, and a masked reference in float64."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from edgetrain.errors import UserError
from edgetrain.methods.layerskip import (
    DroppableLayer,
    LayerSkip,
    active_exits,
    depth_scale,
    exit_scales,
    exit_weights,
    time_scale,
)
from edgetrain.models.llama import Block, Llama
from edgetrain.ops.hidden_states import captured_hidden_states
from edgetrain.ops.targets import IGNORED
from edgetrain.tasks.language import Language

LAYERS, VOCAB = 4, 50


def small_llama(dtype: torch.dtype = torch.float64) -> Llama:
    torch.manual_seed(0)
    return Llama(VOCAB, dim=16, layers=LAYERS, heads=2, kv_heads=1, hidden_dim=32, context=32).to(dtype)


def small_transformers(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    settings = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCAB}
    config = AutoConfig.for_model(kind, hidden_size=16, intermediate_size=32, **settings)
    return AutoModelForCausalLM.from_config(config).double()


MODELS = {
    "ours": small_llama,
    "llama": lambda: small_transformers("llama"),
    "qwen2": lambda: small_transformers("qwen2"),
}


def layerskip(**changes: object) -> LayerSkip:
    return LayerSkip(**{"p_max": 0.5, "e_scale": 0.2, "total_steps": 100, "rotation": 3} | changes)


def tokens(batch: int = 8, n: int = 10) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, n), generator=torch.Generator().manual_seed(1))


def states_of(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    states = model.model(batch)
    return getattr(states, "last_hidden_state", states)


# Published values (eq. 2 to 4)


@pytest.mark.parametrize(
    ("layers", "p_max", "expected"),
    [
        (32, 0.1, {0: 0, 1: 0.002261, 8: 0.019587, 16: 0.043011, 24: 0.071023, 30: 0.095578, 31: 0.1}),
        (24, 0.2, {1: 0.006119, 6: 0.039640, 12: 0.087137, 18: 0.144048, 22: 0.188125, 23: 0.2}),
        (16, 0.1, {8: 0.044727}),
        (12, 0.2, {6: 0.091896}),
        (8, 0.2, {0: 0, 1: 0.020818, 2: 0.043803, 4: 0.097199, 6: 0.162289, 7: 0.2}),
    ],
)
def test_dropout_by_depth_has_the_published_values(layers: int, p_max: float, expected: dict[int, float]) -> None:
    for layer, value in expected.items():
        assert p_max * depth_scale(layer, layers) == pytest.approx(value, abs=1e-6)


def test_mean_dropout_of_32_layers_is_the_constant_of_figure_12() -> None:
    assert sum(0.2 * depth_scale(layer, 32) for layer in range(32)) / 32 == pytest.approx(0.0889, abs=5e-5)


def test_mean_dropout_tends_to_its_integral() -> None:
    mean = sum(depth_scale(layer, 100_000) for layer in range(100_000)) / 100_000
    assert mean == pytest.approx(1 / math.log(2) - 1, abs=1e-4)


def test_exponential_schedule_has_the_published_values() -> None:
    expected = {0: 0.0, 12_500: 0.189211, 25_000: 0.414223, 37_500: 0.681810, 49_999: 1.0}
    for step, value in expected.items():
        assert time_scale(step, 50_000, "exponential") == pytest.approx(value, abs=1e-5)
    assert time_scale(60_000, 50_000, "exponential") == 1.0
    assert time_scale(0, 50_000, "constant") == 1.0


# Loss weights and curricula (eq. 6)


@pytest.mark.parametrize(
    ("layers", "e_scale", "last", "total"),
    [(32, 0.2, 124, 1116), (24, 1.0, 276, 2300), (40, 0.1, 113.1, 1101.1), (16, 0.1, 25.5, 81.5), (8, 0.2, 11.2, 22.4)],
)
def test_exit_scales_have_the_published_sums(layers: int, e_scale: float, last: float, total: float) -> None:
    scales = exit_scales(layers, e_scale)
    assert scales[0] == 0
    assert scales[-1] == pytest.approx(last)
    assert sum(scales) == pytest.approx(total)


def test_exit_scales_at_full_strength_are_the_triangular_numbers() -> None:
    assert exit_scales(5, 1.0) == [0, 1, 3, 6, 10]
    assert exit_scales(32, 0.2)[1] == pytest.approx(0.2)
    assert exit_scales(32, 0.2)[30] == pytest.approx(93)


def test_rotational_curriculum_has_the_published_weights() -> None:
    scales = exit_scales(32, 0.2)
    at_0 = exit_weights(scales, active_exits(0, 32, "rotational", 8, 1, True))
    assert {layer: round(weight, 5) for layer, weight in enumerate(at_0) if weight} == {
        8: 0.03297, 16: 0.12454, 24: 0.27473, 31: 0.56777,
    }  # fmt: skip
    at_7 = exit_weights(scales, active_exits(7, 32, "rotational", 8, 1, True))
    assert {layer: round(weight, 5) for layer, weight in enumerate(at_7) if weight} == {
        7: 0.02682, 15: 0.11494, 23: 0.26437, 31: 0.59387,
    }  # fmt: skip


def test_rotational_curriculum_supervises_every_layer_once_a_turn() -> None:
    turns = [active_exits(step, 32, "rotational", 8, 1, False) for step in range(8)]
    assert [sum(on) for on in zip(*turns, strict=True)] == [1] * 32
    heads = [sum(active_exits(step, 32, "rotational", 8, 1, True)) for step in range(8)]
    assert heads == [5] * 7 + [4]


def test_gradual_curriculum_starts_at_the_last_layer_and_is_whole_at_half_time() -> None:
    def on(step: int) -> list[int]:
        return [layer for layer, is_on in enumerate(active_exits(step, 8, "gradual", 1, 160, False)) if is_on]

    assert on(0) == []
    assert on(9) == []
    assert on(10) == [7]  # T/(2L) = 10 steps a layer
    assert on(20) == [6, 7]
    assert on(79) == list(range(1, 8))
    assert on(80) == list(range(8))
    assert active_exits(0, 8, "gradual", 1, 160, True) == [False] * 7 + [True]


@pytest.mark.parametrize("curriculum", ["rotational", "gradual", "none"])
@pytest.mark.parametrize("e_scale", [0.0, 0.2, 1.0])
def test_weights_sum_to_one_at_every_step(curriculum: str, e_scale: float) -> None:
    method = layerskip(curriculum=curriculum, e_scale=e_scale, total_steps=40)
    for step in range(50):
        assert sum(method.weights(step, 12)) == pytest.approx(1)


# The loss (eq. 5)


@pytest.mark.parametrize("kind", MODELS)
def test_loss_is_the_weighted_sum_over_the_exits(kind: str) -> None:
    model, method = MODELS[kind](), layerskip(p_max=0.0, curriculum="none")
    method.apply(model, method.plan(model, None))
    task = Language(model, [method], None, total_steps=1)
    batch = tokens()
    loss = task.training_step(batch, 0)
    states = model.model.embed_tokens(batch[:, :-1])
    expected = torch.zeros((), dtype=torch.float64)
    for layer, weight in enumerate(method.weights(0, LAYERS)):
        short = copy.deepcopy(model)
        short.model.layers = short.model.layers[: layer + 1]
        if hasattr(short, "config"):
            short.config.num_hidden_layers = layer + 1
        else:
            short.model.visits = short.model.visits[: layer + 1]
        logits = short.lm_head(states_of(short, batch[:, :-1]))
        expected = expected + weight * F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    assert states.dtype == torch.float64
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", MODELS)
def test_loss_of_pairs_is_the_weighted_sum_over_the_exits_of_what_is_asked(kind: str) -> None:
    """Slowly: whole logits of every exit, and a loop over the targets that are there."""
    model, method = MODELS[kind](), layerskip(p_max=0.0, curriculum="none", e_scale=1.0)
    method.apply(model, method.plan(model, None))
    batch = torch.stack([tokens(4, 10), tokens(4, 11)[:, 1:]], dim=1)
    batch[:, 1, :4] = batch[1, 1, 5:] = IGNORED
    loss = Language(model, [method], None, total_steps=1).training_step(batch, 0)
    with captured_hidden_states(model.model.layers) as states:
        states_of(model, batch[:, 0])
    expected, asked = torch.zeros((), dtype=torch.float64), [(b, i) for b in range(4) for i in range(4, 10)]
    asked = [(b, i) for b, i in asked if batch[b, 1, i] != IGNORED]
    assert len(asked) == 19
    for state, weight in zip(states, method.weights(0, LAYERS), strict=True):
        for b, i in asked:
            logits = model.lm_head(model.model.norm(state[b, i]))
            expected = expected - weight * logits.log_softmax(-1)[batch[b, 1, i]] / len(asked)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    expected.backward()
    for gradient, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_without_dropout_and_exits_loss_and_gradients_are_the_ordinary_ones() -> None:
    plain, skipping = small_llama(), small_llama()
    method = layerskip(p_max=0.0, e_scale=0.0)
    method.apply(skipping, method.plan(skipping, None))
    losses = []
    for model, methods in ((plain, []), (skipping, [method])):
        loss = Language(model, methods, None, total_steps=1).training_step(tokens(), 0)
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    for ours, theirs in zip(plain.parameters(), skipping.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_the_first_exit_is_never_supervised() -> None:
    method = layerskip(curriculum="none", e_scale=1.0)
    assert method.weights(3, LAYERS)[0] == 0


# Layer dropout (eq. 1)


def masked_reference(model: torch.nn.Module, batch: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """Every layer on every sample, times a 0/1 mask drawn in the same way: x + M f(x) with f(x) = layer(x) - x."""
    import numpy as np

    current = {"layer": 0}
    handles = []

    def mask(layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        index = current["layer"]
        current["layer"] += 1
        draw = np.random.default_rng([seed, step, index, 0]).random(len(batch))
        keep = torch.from_numpy(draw >= 0.5 * depth_scale(index, LAYERS)).double()[:, None, None]
        return inputs[0] + keep * (output - inputs[0])

    for layer in model.model.layers:
        handles.append(layer.register_forward_hook(mask))
    states = states_of(model, batch)
    for handle in handles:
        handle.remove()
    return states


@pytest.mark.parametrize("kind", MODELS)
def test_gather_and_scatter_equal_a_mask_in_values_and_gradients(kind: str) -> None:
    reference, model = MODELS[kind]().train(), MODELS[kind]().train()
    method = layerskip(seed=7)
    method.apply(model, method.plan(model, None))
    method.after_step(model, 5)
    expected, actual = masked_reference(reference, tokens(), seed=7, step=5), states_of(model, tokens())
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    expected.square().sum().backward()
    actual.square().sum().backward()
    for (name, theirs), ours in zip(reference.named_parameters(), model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", MODELS)
def test_dropped_samples_are_not_computed(kind: str) -> None:
    model, method = MODELS[kind]().train(), layerskip()
    method.apply(model, method.plan(model, None))
    computed = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: computed.append(len(inputs[0])))
    steps, batch = 200, 8
    for step in range(steps):
        method.after_step(model, step)
        computed_before = len(computed)
        with torch.no_grad():
            states_of(model, tokens(batch, 3))
        assert len(computed) - computed_before <= LAYERS
    share = sum(computed) / (steps * batch * LAYERS)
    expected = 1 - sum(0.5 * depth_scale(layer, LAYERS) for layer in range(LAYERS)) / LAYERS
    assert share == pytest.approx(expected, abs=3 * math.sqrt(0.25 / (steps * batch * LAYERS)))
    assert share < 0.9


def test_a_layer_with_p_0_is_bit_exact_and_one_with_p_1_is_the_identity() -> None:
    model, method = small_llama().train(), layerskip(p_max=1.0)
    plain = copy.deepcopy(model)
    method.apply(model, method.plan(model, None))
    batch = tokens()
    states = model.embed(batch)
    assert model.model.layers[0].drop_probabilities[0] == 0
    assert torch.equal(model.run_layers(states, 0, 1), plain.run_layers(states, 0, 1))
    assert model.model.layers[-1].drop_probabilities[0] == 1
    assert torch.equal(model.run_layers(states, LAYERS - 1, LAYERS), states)


def test_evaluation_never_drops() -> None:
    model, method = small_llama().eval(), layerskip(p_max=1.0)
    plain = copy.deepcopy(model)
    method.apply(model, method.plan(model, None))
    assert torch.equal(model(tokens()), plain(tokens()))


def test_draws_depend_on_seed_step_layer_and_call_alone() -> None:
    def run(seed: int, step: int, calls: int = 1) -> torch.Tensor:
        model, method = small_llama().train(), layerskip(seed=seed)
        method.apply(model, method.plan(model, None))
        method.after_step(model, step)
        torch.manual_seed(torch.randint(1000, ()).item())
        for _ in range(calls):
            output = model(tokens())
        return output

    assert torch.equal(run(0, 9), run(0, 9))
    assert not torch.equal(run(0, 9), run(0, 10))
    assert not torch.equal(run(0, 9), run(1, 9))
    assert not torch.equal(run(0, 9), run(0, 9, calls=2))  # accumulation: each micro-batch draws anew


def test_probabilities_follow_the_global_step() -> None:
    model, method = small_llama(), layerskip(dropout_schedule="exponential", p_max=0.2, total_steps=101)
    method.apply(model, method.plan(model, None))
    assert [layer.drop_probabilities for layer in model.model.layers] == [[0]] * LAYERS
    method.after_step(model, 100)
    assert model.model.layers[-1].drop_probabilities[0] == pytest.approx(0.2)
    method.after_step(model, 50)
    assert model.model.layers[-1].drop_probabilities[0] == pytest.approx(0.2 * (math.sqrt(2) - 1))


@pytest.mark.parametrize("share", ["immediate", "repeat_all", "reverse"])
def test_shared_blocks_drop_and_exit_as_their_unrolled_model(share: str) -> None:
    """Every visit is a layer l of eq. 1 to 6; the slow reference runs the visits one by one with a mask."""
    torch.manual_seed(0)
    model = Llama(VOCAB, dim=16, layers=LAYERS, heads=2, kv_heads=1, hidden_dim=32, context=32, share=share).double()
    method, step = layerskip(curriculum="none"), 3
    method.apply(model, method.plan(model, None))
    method.after_step(model.train(), step)
    order, inputs = [visit.block for visit in model.model.visits], tokens()[:, :-1]
    depth, targets = len(order), tokens()[:, 1:]
    x, exits, calls = model.embed(inputs), [], dict.fromkeys(range(LAYERS), 0)
    rotary = (model.model.cosines[: x.shape[1]], model.model.sines[: x.shape[1]])
    for layer, block in enumerate(order):
        draw = np.random.default_rng([method.seed, step, block, calls[block]]).random(len(x))
        calls[block] += 1
        kept = torch.from_numpy(draw >= 0.5 * (2 ** (layer / (depth - 1)) - 1)).double()[:, None, None]
        x = x + kept * (Block.forward(model.model.layers[block], x, rotary) - x)
        loss = F.cross_entropy(model.head(x).flatten(0, 1), targets.flatten())
        last = layer == depth - 1
        exits.append(loss * (layer + 0.2 * layer * (layer - 1) / 2 if last else 0.2 * layer * (layer + 1) / 2))
    expected = sum(exits) / sum(exit_scales(depth, 0.2))
    task = Language(model, [method], None, total_steps=100)
    task.step = step
    loss = task.training_step(tokens(), 0)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    parameters = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(value, parameters) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_visits_that_use_each_others_keys_are_not_dropped() -> None:
    model = Llama(VOCAB, 16, LAYERS, 2, 1, 32, 32, share="immediate", share_kv=True)
    with pytest.raises(UserError, match="share_kv"):
        layerskip().apply(model, {"layers": LAYERS})
    layerskip(p_max=0.0).apply(model, {"layers": LAYERS})


@pytest.mark.parametrize("kind", MODELS)
def test_state_dict_keys_stay_the_models_own(kind: str) -> None:
    model, method = MODELS[kind](), layerskip()
    before = list(model.state_dict())
    method.apply(model, method.plan(model, None))
    assert list(model.state_dict()) == before
    assert all(isinstance(layer, DroppableLayer) for layer in model.model.layers)
    assert list(copy.deepcopy(model).state_dict()) == before


def test_batched_arguments_are_sliced_with_the_batch() -> None:
    """Padding masks differ between samples: each kept sample must see its own."""
    reference, model = small_transformers("llama").train(), small_transformers("llama").train()
    method = layerskip(seed=3)
    method.apply(model, method.plan(model, None))
    mask = torch.ones(8, 10, dtype=torch.long)
    for row in range(8):
        mask[row, :row] = 0
    batch = tokens()
    expected_model = lambda m: m(batch, attention_mask=mask).logits  # noqa: E731
    current = {"layer": 0}

    def masked(layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        import numpy as np

        index = current["layer"]
        current["layer"] += 1
        draw = np.random.default_rng([3, 0, index, 0]).random(8)
        keep = torch.from_numpy(draw >= 0.5 * depth_scale(index, LAYERS)).double()[:, None, None]
        return inputs[0] + keep * (output - inputs[0])

    for layer in reference.model.layers:
        layer.register_forward_hook(masked)
    real = mask.bool()
    torch.testing.assert_close(expected_model(model)[real], expected_model(reference)[real])


# Bad input


@pytest.mark.parametrize(("name", "value"), [("p_max", 1.5), ("e_scale", -0.1), ("rotation", 0), ("total_steps", 0)])
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        layerskip(**{name: value})


def test_a_model_that_is_not_arranged_like_llama_is_refused() -> None:
    with pytest.raises(UserError, match="Linear is arranged otherwise"):
        layerskip().plan(torch.nn.Linear(2, 2), None)


def test_a_plan_for_another_depth_is_refused() -> None:
    with pytest.raises(UserError, match="planned for 9 layers"):
        layerskip().apply(small_llama(), {"layers": 9})


def test_one_layer_has_no_early_exit() -> None:
    assert exit_scales(1, 0.2) == [1.0]
    context = SimpleNamespace(step=0, hidden_states=[torch.zeros(1, 2, 3)])
    assert layerskip().loss(torch.tensor(2.0), context) == 2.0
