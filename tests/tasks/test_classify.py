"""Classification: loss, accuracy and what is judged item by item."""

import math

import pytest
import torch
from torch import nn

from edgetrain.errors import UserError
from edgetrain.tasks.base import Task
from edgetrain.tasks.classify import Classify
from edgetrain.tasks.predictions import Predictions


class Fixed(nn.Module):
    """Logits 2, 0, 0 whatever comes in."""

    input_shape = (4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([2.0, 0.0, 0.0]).expand(len(x), 3)


BATCHES = [(torch.zeros(3, 4, 2), torch.tensor([0, 1, 0])), (torch.zeros(1, 4, 2), torch.tensor([2]))]
RIGHT, WRONG = -math.log(math.e**2 / (math.e**2 + 2)), -math.log(1 / (math.e**2 + 2))


def test_metrics_are_means_over_items_not_batches() -> None:
    found = Classify(Fixed(), [], None, total_steps=1).evaluate(Fixed(), BATCHES)
    assert found == pytest.approx({"loss": (2 * RIGHT + 2 * WRONG) / 4, "accuracy": 0.5})


def test_every_item_is_kept_in_order() -> None:
    kept = Classify(Fixed(), [], None, total_steps=1).predictions(Fixed(), BATCHES)
    assert (kept.target.tolist(), kept.predicted.tolist()) == ([0, 1, 0, 2], [0, 0, 0, 0])
    assert kept.loss.tolist() == pytest.approx([RIGHT, WRONG, RIGHT, WRONG])
    assert kept.right.tolist() == [True, False, True, False]


def test_an_example_has_the_shape_that_the_model_says() -> None:
    (example,) = Classify(Fixed(), [], None, total_steps=1).example_inputs()
    assert example.shape == (1, 4, 2)


def test_a_model_that_says_no_shape_is_a_sentence() -> None:
    with pytest.raises(UserError, match="Linear does not say its input_shape"):
        Classify(nn.Linear(2, 2), [], None, total_steps=1).example_inputs()


def test_methods_see_the_logits_and_give_the_objective() -> None:
    class Doubled:
        def loss(self, loss: torch.Tensor, context: object) -> torch.Tensor:
            assert torch.equal(context.output, Fixed()(BATCHES[0][0]))
            return 2 * loss

    task = Classify(Fixed(), [Doubled()], None, total_steps=1)
    assert task.training_step(BATCHES[0], 0).item() == pytest.approx(2 * (2 * RIGHT + WRONG) / 3)


def test_logits_of_16_bits_are_judged_in_32() -> None:
    kept = Predictions.of_logits(torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.bfloat16), torch.tensor([0]))
    assert kept.loss.dtype == torch.float32
    assert kept.loss.item() == pytest.approx(RIGHT)


@pytest.mark.parametrize(("step", "rate"), [(0, 5e-4), (9_999, 5e-4), (10_000, 1e-4), (20_000, 2e-5), (29_999, 2e-5)])
def test_stairs_are_hello_edges_three_rates(step: int, rate: float) -> None:
    """30,000 steps at 5e-4, 1e-4 and 2e-5, ten thousand each: its train_commands.txt."""
    task = Task(nn.Linear(2, 2), [], None, total_steps=30_000, min_lr_ratio=0.04, schedule="stairs")
    assert 5e-4 * task.learning_rate_scale(step) == pytest.approx(rate)
    assert task.learning_rate_scale(40_000) == pytest.approx(0.04)
