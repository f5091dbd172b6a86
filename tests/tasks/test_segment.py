"""Segmentation: the loss, how masks are predicted, and what is said of settings that cannot be."""

import math
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from edgetrain.errors import UserError
from edgetrain.models.three_layer_cnn import ThreeLayerCNN
from edgetrain.ops.hard_examples import HardExamples
from edgetrain.ops.resized_cross_entropy import resized_cross_entropy
from edgetrain.tasks.mask_inference import MaskInference, windows
from edgetrain.tasks.segment import Segment

CLASSES, IGNORED = 4, 255
SLIDE = {"mode": "slide", "window": [5, 6], "stride": [3, 4]}


def net(classes: int = CLASSES) -> ThreeLayerCNN:
    torch.manual_seed(0)
    return ThreeLayerCNN(classes, width=6, input_shape=(3, 12, 16)).eval()


def task(model: nn.Module | None = None, methods: tuple = (), **settings: Any) -> Segment:
    def optimizer(groups: list) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.1)

    return Segment(model or net(), list(methods), optimizer, 4, **settings)


def batch(images: int = 2, size: tuple[int, int] = (12, 16), labels: tuple[int, int] | None = None) -> tuple:
    generator = torch.Generator().manual_seed(0)
    marked = torch.randint(CLASSES, (images, *(labels or size)), generator=generator)
    marked[torch.rand(marked.shape, generator=generator) < 0.2] = IGNORED
    return torch.randn(images, 3, *size, generator=generator), marked


def nats_by_pixel(logits: Tensor, labels: Tensor) -> list[tuple[int, float]]:
    """True class and -log of its probability of every counted pixel, one at a time."""
    found = []
    for place in (labels != IGNORED).nonzero().tolist():
        image, row, column = place
        scores, true = logits[image, :, row, column].tolist(), int(labels[image, row, column])
        found.append((true, math.log(sum(map(math.exp, scores))) - scores[true]))
    return found


# The loss.


def test_the_loss_is_the_mean_over_counted_pixels() -> None:
    images, labels = batch()
    nats = [each for _, each in nats_by_pixel(net()(images), labels)]
    assert task().training_step((images, labels), 0).item() == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_class_weights_give_the_weighted_mean_of_torch() -> None:
    images, labels = batch()
    weights = [0.5, 2.0, 0.0, 1.0]
    nats = nats_by_pixel(net()(images), labels)
    expected = sum(weights[true] * each for true, each in nats) / sum(weights[true] for true, _ in nats)
    found = task(class_weights=weights).training_step((images, labels), 0).item()
    assert found == pytest.approx(expected, rel=1e-5)
    theirs = F.cross_entropy(net()(images), labels, torch.tensor(weights), ignore_index=IGNORED)
    assert found == pytest.approx(theirs.item(), rel=1e-6)


def ohem(logits: Tensor, labels: Tensor, threshold: float, min_kept: int) -> float:
    """The mean over what mmsegmentation's OHEMPixelSampler keeps, written from its description, a pixel at a time."""
    nats = sorted((each for _, each in nats_by_pixel(logits, labels)), reverse=True)  # the hardest first
    probabilities = [math.exp(-each) for each in nats]
    least = probabilities[min(min_kept * len(labels), len(probabilities) - 1)]
    kept = [each for each, p in zip(nats, probabilities, strict=True) if p < max(least, threshold)]
    return sum(kept) / len(kept)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.2, 0), (0.9, 1), (0.05, 40), (0.01, 3), (0.27, 20)])
def test_hard_examples_are_those_of_mmsegmentation(threshold: float, min_kept: int) -> None:
    _, labels = batch()
    logits = 2 * torch.randn(2, CLASSES, 12, 16, generator=torch.Generator().manual_seed(1))  # no two pixels alike
    mined = resized_cross_entropy(logits, labels, IGNORED, None, HardExamples(threshold, min_kept))
    assert mined.item() == pytest.approx(ohem(logits, labels, threshold, min_kept), rel=1e-5)
    assert mined.item() > 1.01 * resized_cross_entropy(logits, labels, IGNORED).item()


def test_as_many_pixels_as_asked_for_are_kept_and_all_of_too_few() -> None:
    nats, counted = torch.rand(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool)
    counted[0] = False
    for min_kept, expected in ((0, 0), (2, 4), (5, 10), (100, 12)):
        chosen = HardExamples(0.01, min_kept).chosen(nats, counted)  # none is as hard as that
        assert chosen.sum() == expected
        assert not chosen[0].any()
    assert HardExamples(1.0, 0).chosen(nats, counted).sum() == 12


def test_hard_examples_and_class_weights_go_together() -> None:
    images, labels = batch()
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0])
    logits = net()(images)
    nats = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    counted = labels != IGNORED
    hardest = nats[counted].topk(30)
    weight = weights[labels[counted][hardest.indices]]
    found = resized_cross_entropy(logits, labels, IGNORED, weights, HardExamples(1e-6, 15))
    assert found.item() == pytest.approx(((weight * hardest.values).sum() / weight.sum()).item(), rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"class_weights": [1, 1, 1, 2.0]}, {"hard_examples": {"min_kept": 5}}])
def test_a_batch_without_counted_pixels_has_loss_0_and_gradient_0(settings: dict) -> None:
    images, labels = batch()
    one = task(**settings)
    loss = one.training_step((images, torch.full_like(labels, IGNORED)), 0)
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in one.model.parameters())


def test_an_auxiliary_head_adds_its_share_of_a_loss() -> None:
    class Two(nn.Module):
        auxiliary_weight, num_classes = 0.4, CLASSES

        def __init__(self) -> None:
            super().__init__()
            self.head, self.auxiliary_head = nn.Conv2d(3, CLASSES, 1), nn.Conv2d(3, CLASSES, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images)

        def forward_all(self, images: Tensor) -> list[Tensor]:
            heads = [self.head, self.auxiliary_head]
            return [head(images) for head in heads if head is not None]

    images, labels = batch()
    model = Two()
    of = [F.cross_entropy(head(images), labels, ignore_index=IGNORED) for head in (model.head, model.auxiliary_head)]
    assert task(model).training_step((images, labels), 0).item() == pytest.approx((of[0] + 0.4 * of[1]).item())
    model.auxiliary_head = None
    assert task(model).training_step((images, labels), 0).item() == pytest.approx(of[0].item())
    assert task(model).evaluate(model, [(images, labels)])["loss"] == pytest.approx(of[0].item())


def test_logits_of_less_resolution_are_resized_and_wrapped_ones_are_unwrapped() -> None:
    """As transformers' SegFormer gives them, a quarter of the side."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, CLASSES, 4, stride=4)

        def forward(self, images: Tensor) -> Any:
            return type("Output", (), {"logits": self.convolution(images)})

    images, labels = batch()
    model = Wrapped()
    full = F.interpolate(model.convolution(images), (12, 16), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, labels, ignore_index=IGNORED)
    assert task(model).training_step((images, labels), 0).item() == pytest.approx(expected.item())
    assert task(model).evaluate(model, [(images, labels)])["loss"] == pytest.approx(expected.item())


def test_methods_see_the_logits_and_give_the_objective() -> None:
    class Doubled:
        def loss(self, loss: Tensor, context: Any) -> Tensor:
            assert torch.equal(context.output, net()(batch()[0]))
            return 2 * loss

    images = batch()
    doubled = task(methods=(Doubled(),)).training_step(images, 0).item()
    assert doubled == pytest.approx(2 * task().training_step(images, 0).item())


# Evaluation.


def test_metrics_are_of_all_pixels_at_the_labels_own_resolution() -> None:
    batches = [batch(), batch(images=1, size=(8, 8), labels=(9, 13))]
    found = task().evaluate(net(), batches)
    jaccard = MulticlassJaccardIndex(CLASSES, ignore_index=IGNORED)
    nats, right = [], 0
    for images, labels in batches:
        logits = F.interpolate(net()(images), labels.shape[1:], mode="bilinear", align_corners=False)
        jaccard.update(logits.argmax(1), labels)
        nats += [each for _, each in nats_by_pixel(logits, labels)]
        right += int(((logits.argmax(1) == labels) & (labels != IGNORED)).sum())
    expected = {"loss": sum(nats) / len(nats), "accuracy": right / len(nats), "mean_iou": jaccard.compute().item()}
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_is_judged_knows_no_weights_and_no_mining() -> None:
    settings = {"class_weights": [0.5, 2.0, 0.0, 1.0], "hard_examples": {"threshold": 0.5}}
    assert task(**settings).evaluate(net(), [batch()]) == task().evaluate(net(), [batch()])


def slow_slide(model: nn.Module, images: Tensor, window: list[int], stride: list[int]) -> Tensor:
    """mmsegmentation's slide_inference, from its description: every start that is needed, a pixel at a time."""
    height, width = images.shape[2:]
    total, count = torch.zeros(len(images), CLASSES, height, width), torch.zeros(height, width)
    tops, lefts = [], []
    for starts, side, length, step in ((tops, height, window[0], stride[0]), (lefts, width, window[1], stride[1])):
        start = 0
        while start + length < side:
            starts.append(start)
            start += step
        starts.append(max(side - length, 0))
    for top in tops:
        for left in lefts:
            logits = model(images[:, :, top : top + window[0], left : left + window[1]])
            for row in range(logits.shape[2]):
                for column in range(logits.shape[3]):
                    total[:, :, top + row, left + column] += logits[:, :, row, column]
                    count[top + row, left + column] += 1
    return total / count


@pytest.mark.parametrize("size", [(12, 16), (11, 14), (5, 6), (4, 16), (3, 2), (8, 10)])
def test_windows_are_averaged_as_a_slow_loop_averages_them(size: tuple[int, int]) -> None:
    images, _ = batch(size=size)
    with torch.no_grad():
        found = MaskInference(**SLIDE).logits(net(), images, size)
        assert torch.allclose(found, slow_slide(net(), images, [5, 6], [3, 4]), atol=1e-6)


def test_windows_of_cityscapes_are_the_published_ones() -> None:
    """1024 x 2048 by 1024 every 768: three windows, the last one moved back from 1536 to 1024."""
    places = [
        (rows.start, rows.stop, columns.start) for rows, columns in windows((1024, 2048), (1024,) * 2, (768,) * 2)
    ]
    assert places == [(0, 1024, 0), (0, 1024, 768), (0, 1024, 1024)]


def test_an_image_that_fits_a_window_is_run_whole() -> None:
    images, labels = batch(size=(5, 6))
    assert task(**SLIDE).evaluate(net(), [(images, labels)]) == task().evaluate(net(), [(images, labels)])


def test_scales_and_mirror_images_average_probabilities() -> None:
    images, labels = batch(labels=(10, 20))
    total = torch.zeros(2, CLASSES, 10, 20)
    for sides in ((6, 8), (12, 16), (18, 24)):
        at = F.interpolate(images, sides, mode="bilinear", align_corners=False)
        for given, back in ((at, lambda maps: maps), (at.flip(3), lambda maps: maps.flip(3))):
            total += back(F.interpolate(net()(given), (10, 20), mode="bilinear", align_corners=False)).softmax(1) / 6
    one = task(scales=[0.5, 1.0, 1.5], flip=True)
    judged = one.judged(net(), (images, labels))
    assert torch.equal(one.inference.logits(net(), images, (10, 20)).argmax(1), total.argmax(1))
    expected = F.nll_loss(total.log(), labels, ignore_index=IGNORED)
    assert judged.mean_loss == pytest.approx(expected.item(), rel=1e-5)


def test_windows_and_mirror_images_go_together() -> None:
    """Windows are laid over the mirror image, whose last one is another part of the image."""
    images, _ = batch(size=(11, 15))
    with torch.no_grad():
        found = MaskInference(**SLIDE, flip=True).logits(net(), images, (11, 15))
        plain, mirrored = (slow_slide(net(), each, [5, 6], [3, 4]).softmax(1) for each in (images, images.flip(3)))
    assert torch.allclose(found.exp(), (plain + mirrored.flip(3)) / 2, atol=1e-6)


def test_a_probability_of_0_costs_something_finite() -> None:
    class Sure(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 500.0 * F.one_hot(torch.zeros(len(images), *images.shape[2:], dtype=torch.int64), 4).movedim(3, 1)

    images, labels = batch()
    loss = task(flip=True).evaluate(Sure(), [(images, labels.clamp(min=1))])["loss"]
    assert 80 < loss < 90  # the smallest float32 has a logarithm of -87.3


def test_it_says_what_the_model_is_called_with() -> None:
    images, labels = batch(labels=(30, 40))
    assert task().called_with((images, labels)) == {(3, 12, 16)}
    assert task(**SLIDE).called_with((images, labels)) == {(3, 5, 6)}
    assert task(scales=[1.0, 0.5]).called_with((images, labels)) == {(3, 12, 16), (3, 6, 8)}


def test_one_pixel_is_judged() -> None:
    images, labels = batch(images=1, size=(1, 1))
    labels[:] = 2
    logits = net()(images)
    for settings in ({}, SLIDE, {"scales": [0.5, 1.0], "flip": True}):
        found = task(**settings).evaluate(net(), [(images, labels)])
        assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)


# With a Trainer.


class Batches(torch.utils.data.Dataset):
    def __init__(self, batches: list) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


def loader(batches: list) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(Batches(batches), batch_size=None)


def validated(one: Segment, batches: list, **trainer: Any) -> dict[str, float]:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    (found,) = lightning.Trainer(**quiet, **trainer).validate(one, loader(batches), verbose=False)
    return found


def test_validation_is_the_evaluation_of_the_whole_split() -> None:
    batches = [batch(), batch(images=1, size=(8, 8)), batch(images=3, labels=(9, 13))]
    one = task()
    for part in (batches, batches[:1]):  # of the second time nothing is left of the first
        expected = {f"validation/{name}": value for name, value in task().evaluate(net(), part).items()}
        assert validated(one, part) == pytest.approx(expected, rel=1e-5)
    assert not [key for key in one.state_dict() if not key.startswith("model.")]


def test_validation_over_two_processes_is_that_of_one(tmp_path: Any) -> None:
    """Each process judges two of four batches; the confusion is summed over both before anything is divided."""
    batches = [batch(), batch(labels=(9, 13)), batch(images=1), batch(images=3)]
    expected = {f"validation/{name}": value for name, value in task().evaluate(net(), batches).items()}
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(half, (str(tmp_path / "meet"), batches, results), nprocs=2)
    for _ in range(2):
        assert results.get() == pytest.approx(expected, rel=1e-5)


def half(rank: int, meeting: str, batches: list, results: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    one = task()
    logged: dict[str, float] = {}
    one.log = lambda name, value, **_: logged.__setitem__(name, value)  # type: ignore[method-assign]
    one.on_validation_epoch_start()
    for each in batches[rank::2]:
        one.validation_step(each, 0)
    one.on_validation_epoch_end()
    results.put(logged)
    torch.distributed.destroy_process_group()


def test_it_learns() -> None:
    """Classes are colours: a few steps are enough."""
    labels = torch.randint(CLASSES, (8, 3, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = 2.0 * F.one_hot(labels, 4).movedim(3, 1)[:, :3].float()
    one = task(net().train(), class_weights=[1.0] * 4, hard_examples={"threshold": 0.7, "min_kept": 50})
    before = one.evaluate(one.model.eval(), [(images, labels)])
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=60, enable_model_summary=False, num_sanity_val_steps=0, **quiet)
    one.total_steps = 60
    trainer.fit(one.train(), loader([(images, labels)] * 60))
    after = one.evaluate(one.model.eval(), [(images, labels)])
    assert after["mean_iou"] > before["mean_iou"] + 0.2
    assert set(trainer.callback_metrics) >= {"train/loss"}


# Sentences.


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"class_weights": [1.0, 2.0]},
            r"task.class_weights has 2 numbers, but the model has 4 classes; give one each",
        ),
        ({"class_weights": [1, 1, 1, -1]}, r"task.class_weights holds -1; each must be a number of at least 0"),
        ({"class_weights": [1, 1, math.nan, 1]}, r"task.class_weights holds nan"),
        ({"class_weights": [1, 1, math.inf, 1]}, r"task.class_weights holds inf"),
        ({"class_weights": [0, 0, 0, 0]}, r"not all be 0"),
        ({"hard_examples": {"threshold": 1.5}}, r"task.hard_examples.threshold=1.5 is a probability"),
        ({"hard_examples": {"threshold": 0}}, r"task.hard_examples.threshold=0"),
        ({"hard_examples": {"min_kept": -1}}, r"task.hard_examples.min_kept=-1"),
        ({"hard_examples": {"thresh": 0.7}}, r"task.hard_examples.thresh is not known"),
        ({"mode": "slide"}, r"task.window=None must be height and width of at least 1"),
        ({**SLIDE, "window": [0, 5]}, r"task.window=\[0, 5\] must be height and width of at least 1"),
        ({**SLIDE, "window": [5]}, r"task.window=\[5\]"),
        ({**SLIDE, "stride": [3, 0]}, r"task.stride=\[3, 0\] must be"),
        ({**SLIDE, "stride": [6, 4]}, r"task.stride=\[6, 4\] is longer than task.window=\[5, 6\]"),
        ({"window": [5, 6]}, r"task.window and task.stride are for task.mode=slide"),
        ({"scales": []}, r"task.scales=\[\]"),
        ({"scales": [1.0, 0.0]}, r"task.scales=\[1.0, 0.0\]"),
        ({"scales": [math.inf]}, r"task.scales=\[inf\]"),
    ],
)
def test_settings_out_of_range_are_sentences(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        task(**settings)


def test_a_label_that_is_no_class_is_a_sentence_in_training_and_in_evaluation() -> None:
    images, labels = batch()
    labels[0, 0, 0] = 7
    for call in (lambda: task().training_step((images, labels), 0), lambda: task().judged(net(), (images, labels))):
        with pytest.raises(UserError, match=r"a pixel is labelled 7, but the model has classes 0 to 3"):
            call()


def test_a_model_of_fewer_classes_than_the_labels_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"labelled 3, but the model has classes 0 to 2"):
        task(net(classes=3)).training_step(batch(), 0)


def test_weights_for_other_classes_are_said_also_where_the_model_does_not_say_its_own() -> None:
    one = task(nn.Conv2d(3, CLASSES, 1), class_weights=[1.0, 1.0])
    with pytest.raises(UserError, match=r"task.class_weights has 2 numbers, but the model has 4 classes"):
        one.training_step(batch(), 0)


@pytest.mark.parametrize("model", [nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(576, 4))])
def test_a_model_that_gives_no_maps_is_a_sentence(model: nn.Module) -> None:
    for call in (lambda: task(model).training_step(batch(), 0), lambda: task(model).judged(model, batch())):
        with pytest.raises(UserError, match=r"task=segment needs logits \[batch, classes, height, width\]"):
            call()


def test_nothing_to_judge_is_a_sentence() -> None:
    images, labels = batch()
    with pytest.raises(UserError, match=r"every label is data.ignore_index=255"):
        task().evaluate(net(), [(images, torch.full_like(labels, IGNORED))])
    with pytest.raises(UserError, match="there is no batch to judge the model on"):
        task().evaluate(net(), [])


def test_training_on_one_pixel_is_a_sentence() -> None:
    one = task(net().train())
    with pytest.raises(UserError, match=r"images \[1, 3, 1, 1\] leaves a batch norm .* a single value a channel"):
        one.training_step(batch(images=1, size=(1, 1)), 0)


def test_an_example_has_the_shape_that_the_model_says() -> None:
    assert task().example_inputs()[0].shape == (1, 3, 12, 16)
    with pytest.raises(UserError, match="Conv2d does not say its input_shape, which task=segment traces"):
        task(nn.Conv2d(3, CLASSES, 1)).example_inputs()
