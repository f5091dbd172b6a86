"""The language task: what it logs at a validation, and what it refuses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.models.llama import Llama
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
    model.model.layers = model.model.layers[:layers]
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
