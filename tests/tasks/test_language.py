"""The language task: what it logs at a validation, and what it refuses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.models.llama import Llama
from edgetrain.ops.targets import IGNORED
from edgetrain.tasks.language import Language


def task_of(model: nn.Module, exit_layers: tuple[int, ...]) -> tuple[Language, dict[str, Tensor]]:
    """The task and what it will log."""
    task = Language(model, [], None, total_steps=1, exit_layers=exit_layers)
    logged: dict[str, Tensor] = {}
    task.log = lambda name, value, **_: logged.update({name: value})
    return task, logged


@pytest.fixture
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(vocab_size=50, dim=16, layers=4, heads=2, kv_heads=1, hidden_dim=32, context=12).eval()


def cut(model: Llama, layers: int) -> Llama:
    model.model.layers, model.model.visits = model.model.layers[:layers], model.model.visits[:layers]
    return model


def test_an_exits_loss_is_that_of_the_model_cut_after_that_layer(model: Llama) -> None:
    batch = torch.randint(50, (3, 13))
    task, logged = task_of(model, (4, 2, 1))
    with torch.no_grad():
        task.validation_step(batch, 0)
        assert logged["validation/loss_exit_4"] == logged["validation/loss"]
        for layer in (4, 2, 1):
            logits = cut(model, layer)(batch[:, :-1])
            expected = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            torch.testing.assert_close(logged[f"validation/loss_exit_{layer}"], expected)


def test_one_forward_judges_all_exits(model: Llama) -> None:
    calls: list[Any] = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    task, logged = task_of(model, (1, 2, 3, 4))
    task.validation_step(torch.randint(50, (3, 13)), 0)
    assert len(calls) == 1
    assert len(logged) == 5


def test_without_exit_layers_only_the_loss_is_logged(model: Llama) -> None:
    task, logged = task_of(model, ())
    task.validation_step(torch.randint(50, (3, 13)), 0)
    assert list(logged) == ["validation/loss"]


@pytest.mark.parametrize("layers", [(0,), (5,), (2, 5)])
def test_a_layer_that_the_model_does_not_have_is_refused(model: Llama, layers: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=f"there is no layer {layers[-1]}; the model's are 1 to 4"):
        Language(model, [], None, total_steps=1, exit_layers=layers)


def test_a_model_without_layers_has_no_exits() -> None:
    with pytest.raises(UserError, match="none that can be left early"):
        Language(nn.Linear(2, 2), [], None, total_steps=1, exit_layers=(1,))


# Batches of pairs: inputs and targets apart, IGNORED where nothing is asked


def pairs() -> Tensor:
    """Three samples that ask for 1, 5 and 12 tokens."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(50, (3, 2, 12), generator=generator)
    batch[0, 1, :11] = IGNORED
    batch[1, 1, :3] = batch[1, 1, 8:] = IGNORED
    return batch


def mean_over_asked(logits: Tensor) -> Tensor:
    """By hand: the sum of -log p over the 18 targets that are there, divided by 18."""
    total = torch.zeros(())
    for sample, (_, targets) in enumerate(pairs()):
        for place, target in enumerate(targets):
            if target != IGNORED:
                total = total - logits[sample, place].log_softmax(-1)[target]
    return total / 18


@pytest.mark.parametrize("whole_logits", [False, True])
def test_the_loss_of_pairs_is_the_mean_over_what_is_asked(model: Llama, whole_logits: bool) -> None:
    expected = mean_over_asked(model(pairs()[:, 0]))
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    wrapped = Wrapped(model) if whole_logits else model
    task = Language(wrapped, [], None, total_steps=1)
    loss = task.training_step(pairs(), 0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert task.units(pairs()) == 18
    assert task.units(torch.zeros(4, 13, dtype=torch.int64)) == 48


class Wrapped(nn.Module):
    """Arranged unlike Llama."""

    def __init__(self, inner: Llama) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(tokens)


def test_validation_and_evaluation_count_only_what_is_asked(model: Llama) -> None:
    task, logged = task_of(model, (2, 4))
    with torch.no_grad():
        expected = mean_over_asked(model(pairs()[:, 0]))
        early = mean_over_asked(model.head(model.run_layers(model.embed(pairs()[:, 0]), 0, 2)))
        task.validation_step(pairs(), 0)
    torch.testing.assert_close(logged["validation/loss"], expected)
    torch.testing.assert_close(logged["validation/loss_exit_4"], expected)
    torch.testing.assert_close(logged["validation/loss_exit_2"], early)
    held_out = task.evaluate(model, pairs().split(1))  # batches that ask for 1, 5 and 12 tokens weigh 1, 5 and 12
    assert held_out["loss"] == pytest.approx(expected.item(), rel=1e-5)
    with torch.no_grad():
        right = (model(pairs()[:, 0]).argmax(-1) == pairs()[:, 1]).sum().item()
    assert held_out["accuracy"] == pytest.approx(right / 18)


def test_a_validation_batch_weighs_by_what_it_asks(model: Llama) -> None:
    task = Language(model, [], None, total_steps=1)
    sizes = []
    task.log = lambda name, value, batch_size, **_: sizes.append(batch_size)
    for batch in pairs().split(1):
        task.validation_step(batch, 0)
    assert sizes == [1, 5, 12]
