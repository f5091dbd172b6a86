"""Classification: loss, accuracy, what is judged item by item, smoothed and mixed labels."""

import math

import lightning
import pytest
import torch
from torch import nn

from edgetrain.errors import UserError
from edgetrain.tasks.base import Context, Task
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


# Smoothed and mixed labels


class Watched(nn.Module):
    """A linear layer over flattened images; remembers what came in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 3)
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images.detach().clone())
        return self.layer(images.flatten(1))


IMAGES = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 1])


def test_smoothed_labels_by_hand() -> None:
    """A tenth spread over three classes: 0.9 + 0.1/3 on the right one. What is judged is not smoothed."""
    task = Classify(Fixed(), [], None, total_steps=1, label_smoothing=0.1)
    batch = (BATCHES[0][0][:1], torch.tensor([0]))
    assert task.training_step(batch, 0).item() == pytest.approx((0.9 + 0.1 / 3) * RIGHT + 0.2 / 3 * WRONG)
    assert task.evaluate(Fixed(), [batch])["loss"] == pytest.approx(RIGHT)


def test_the_loss_of_mixed_labels_is_timms() -> None:
    from timm.loss import SoftTargetCrossEntropy

    task = Classify(Watched(), [], None, total_steps=1, mixup=0.8, label_smoothing=0.1)
    loss = task.training_step((IMAGES, LABELS), 0)
    inputs, share = task.mixed(IMAGES)
    assert torch.equal(task.model.seen[0], inputs)
    high, low = 0.9 + 0.1 / 3, 0.1 / 3
    smooth = torch.where(torch.eye(3, dtype=torch.bool)[LABELS], high, low)  # timm smooths before it mixes
    targets = share * smooth + (1 - share) * smooth.roll(1, 0)
    assert loss.item() == pytest.approx(SoftTargetCrossEntropy()(task.model(inputs), targets).item(), rel=1e-5)


def test_methods_see_the_mixed_batch() -> None:
    seen = []

    class Looking:
        def loss(self, loss: torch.Tensor, context: Context) -> torch.Tensor:
            seen.append(context)
            return loss

    task = Classify(Watched(), [Looking()], None, total_steps=1, cutmix=1.0)
    task.training_step((IMAGES, LABELS), 0)
    assert torch.equal(seen[0].batch[0], task.model.seen[0])
    assert seen[0].targets.shape == (4, 3)
    assert torch.allclose(seen[0].targets.sum(1), torch.ones(4))


def test_mixing_is_another_for_every_step_batch_and_seed_and_the_same_again() -> None:
    def draw(seed: int = 0, step: int = 0, batch: int = 0) -> float:
        task = Classify(Watched(), [], None, total_steps=9, mixup=0.8, seed=seed)
        task.step, task.batch_of_step = step, batch
        return task.mixed(IMAGES)[1]

    assert draw() == draw()
    assert len({draw(), draw(seed=1), draw(step=1), draw(batch=1), draw(seed=-1)}) == 5


def test_batches_of_a_step_are_counted_where_gradients_accumulate() -> None:
    counted = []

    class Counting(Classify):
        def training_step(self, batch: tuple, index: int) -> torch.Tensor:
            counted.append((self.step, self.batch_of_step))
            return super().training_step(batch, index)

    task = Counting(Watched(), [], lambda groups: torch.optim.SGD(groups, lr=0.1), total_steps=3, mixup=0.8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=2, accumulate_grad_batches=3, enable_model_summary=False, **quiet)
    data = torch.utils.data.TensorDataset(IMAGES.repeat(6, 1, 1, 1), LABELS.repeat(6))
    trainer.fit(task, torch.utils.data.DataLoader(data, batch_size=4))
    assert counted == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"label_smoothing": 1.5}, "task.label_smoothing=1.5 is outside 0 to 1"),
        ({"switch_probability": -0.5}, "task.switch_probability=-0.5 is outside 0 to 1"),
        ({"mixup": -1.0}, "task.mixup=-1.0 must be at least 0"),
        ({"cutmix": math.inf}, "task.cutmix=inf must be at least 0"),
    ],
)
def test_settings_out_of_range_are_a_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Classify(Fixed(), [], None, total_steps=1, **settings)


def test_cutmix_of_what_is_no_image_is_a_sentence() -> None:
    task = Classify(Fixed(), [], None, total_steps=1, cutmix=1.0)
    with pytest.raises(UserError, match=r"task.cutmix=1.0 cuts images .* these inputs are \[4, 2\]; set task.cutmix=0"):
        task.training_step(BATCHES[0], 0)
