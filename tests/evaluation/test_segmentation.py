"""The measure `segmentation` on masks chosen by hand, against torchmetrics, SciPy and Lightning's Trainer."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from edgetrain.build import Trained, build_trained
from edgetrain.config import Config
from edgetrain.data.labelled import Split
from edgetrain.data.order import ResumableLoader
from edgetrain.errors import UserError
from edgetrain.evaluation import segmentation_drawing
from edgetrain.evaluation.segmentation import SegmentationReport
from edgetrain.evaluation.segmentation_baseline import task_node, trained_baseline
from edgetrain.evaluation.segmentation_drawing import colours_of, draw_classes, draw_confusion
from edgetrain.evaluation.segmentation_judging import (
    Judged,
    Picture,
    chosen_places,
    mean_iou_interval,
    worst_places,
)
from edgetrain.folder import RunFolder
from edgetrain.models.quantized import QuantizedModel, Scheme
from edgetrain.models.three_layer_cnn import ThreeLayerCNN
from edgetrain.tasks.mask_predictions import MaskPredictions
from edgetrain.tasks.segment import Segment

IGNORED = 9
HEIGHT, WIDTH = 12, 16
LABELS = ["ground", "box", "red box", "never there"]


class Shapes(Dataset):
    """Images whose first channel is the true class and whose second the one that `Reads` answers, both over 10.

    A square of class 1 or 2 on class 0, a line at the bottom that is not counted; image k is answered wrong in its
    first k % 5 columns.
    """

    def __init__(self, images: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.zeros(images, HEIGHT, WIDTH, dtype=torch.long)
        self.answers = torch.zeros_like(self.labels)
        for number, (labels, answers) in enumerate(zip(self.labels, self.answers, strict=True)):
            top, left = (int(torch.randint(0, 6, (), generator=generator)) for _ in range(2))
            labels[top : top + 5, left : left + 5] = 1 + number % 2
            answers.copy_(labels)
            answers[:, : number % 5] = 2
            labels[-1] = IGNORED
        self.images = torch.stack([self.labels, self.answers, torch.zeros_like(self.labels)], 1) / 10

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


class ShapesData:
    """What a measure asks of segmentation data."""

    num_classes, ignore_index, batch_size = 4, IGNORED, 4

    def __init__(self, images: int = 17) -> None:
        self.labels = LABELS
        self.palette = [[128, 64, 128], [0, 0, 142], [220, 20, 60], [255, 255, 0]]
        self.shapes = {"train": Shapes(14, 1), "validation": Shapes(images, 3), "test": Shapes(images, 2)}
        self.splits = {name: Split(list(shapes)) for name, shapes in self.shapes.items()}

    def prepare_data(self) -> None: ...

    def setup(self, stage: str | None = None) -> None: ...

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(self.shapes["train"], 3, self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.shapes["validation"], batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.shapes["test"], batch_size=self.batch_size)

    def class_pixels(self, split: str) -> np.ndarray:
        labels = self.shapes[split].labels
        return labels[labels != IGNORED].bincount(minlength=4).numpy()

    def denormalised(self, images: Tensor) -> Tensor:
        return (images * 255).round().byte()


class Reads(nn.Module):
    """Answers what stands in a channel of the image: 0 for the truth, 1 for what is wrong here and there."""

    num_classes, input_shape = 4, (3, HEIGHT, WIDTH)

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel, self.scale = channel, nn.Parameter(torch.tensor(4.0))

    def forward(self, images: Tensor) -> Tensor:
        answers = (images[:, self.channel] * 10).round().long() % IGNORED
        return self.scale * nn.functional.one_hot(answers, 4).permute(0, 3, 1, 2).float()


def config_of(**changes: Any) -> Config:
    task = {"_target_": "edgetrain.tasks.segment.Segment", "ignore_index": IGNORED, "total_steps": 7}
    settings: dict[str, Any] = {
        "recipe": "shapes",
        "seed": 5,
        "task": task | {"schedule": "poly", "warmup_steps": 2} | changes.pop("task", {}),
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.02},
        "trainer": {"max_steps": 7, "accelerator": "cpu", "enable_progress_bar": False} | changes.pop("trainer", {}),
        "data": {"_target_": f"{__name__}.ShapesData"},
        "model": {"_target_": "edgetrain.models.three_layer_cnn.ThreeLayerCNN", "num_classes": 4, "width": 6}
        | {"input_shape": [3, HEIGHT, WIDTH]},
    }
    return Config(**settings | changes)


def trained_of(model: nn.Module, data: Any = None, **changes: Any) -> Trained:
    task = Segment(model, [], None, 1, ignore_index=IGNORED)
    return Trained(model, task, data or ShapesData(), config_of(**changes), {})


def measured(model: nn.Module, path: Path, data: Any = None, steps: int = 0) -> tuple[dict[str, float], RunFolder]:
    folder = RunFolder(path)
    found = SegmentationReport(baseline_steps=steps).measure(trained_of(model, data), folder)
    return {name.removeprefix("segmentation/"): value for name, value in found.items()}, folder


def test_scores_are_torchmetrics_over_all_pixels(tmp_path: Path) -> None:
    metrics, folder = measured(Reads(1), tmp_path)
    test = ShapesData().shapes["test"]
    settings = {"num_classes": 4, "ignore_index": IGNORED}
    iou = multiclass_jaccard_index(test.answers, test.labels, average=None, **settings)[:3]
    assert metrics["mean_iou"] == pytest.approx(iou.mean().item(), abs=1e-6)
    assert [metrics[f"iou_{name}"] for name in ("ground", "box", "red_box")] == pytest.approx(iou.tolist(), abs=1e-6)
    assert "iou_never_there" not in metrics
    accuracy = multiclass_accuracy(test.answers, test.labels, average="micro", **settings).item()
    assert metrics["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    rows = folder.read_table("segmentation_classes")
    assert [row["class"] for row in rows] == LABELS
    assert [int(row["pixels"]) for row in rows] == ShapesData().class_pixels("test").tolist()
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1)
    assert rows[3]["iou"] == rows[3]["boundary_f"] == ""


def test_the_prior_is_trainings_most_frequent_class_everywhere(tmp_path: Path) -> None:
    """Its IoU is its share of the counted pixels, that of the two other classes 0."""
    metrics, folder = measured(Reads(1), tmp_path)
    counts = ShapesData().class_pixels("test")
    share = (counts[0] / counts.sum()).item()
    assert metrics["prior_accuracy"] == pytest.approx(share)
    assert metrics["prior_mean_iou"] == pytest.approx(share / 3)
    assert folder.read_table("segmentation")[0]["model"] == "class prior"


def test_a_model_that_beats_nothing_is_reported_as_not_trained(tmp_path: Path) -> None:
    good, folder = measured(Reads(0), tmp_path / "good")
    assert (good["trained"], good["mean_iou"], good["accuracy"], good["boundary_f"]) == (1, 1, 1, 1)
    assert folder.report_items()[0]["caption"].startswith("The model's mean IoU, 1.000, is above the class prior's")
    bad, folder = measured(Reads(2), tmp_path / "bad")  # always class 0, as the prior
    assert bad["mean_iou"] == bad["prior_mean_iou"]
    assert bad["trained"] == 0
    assert folder.report_items()[0]["caption"].startswith("Not trained: the model's mean IoU")


def test_a_model_below_the_trained_baseline_is_not_trained_either(tmp_path: Path) -> None:
    """Ten columns of sixteen wrong: better than the prior, worse than three layers that learned for a while."""
    data = ShapesData()
    for split in data.shapes.values():
        split.images[:, 1, :, :6] = 0.2
    metrics, folder = measured(Reads(1), tmp_path / "without", data)
    assert metrics["trained"] == 1
    data_of_large_model = Reads(1)
    data_of_large_model.register_parameter("unused", nn.Parameter(torch.zeros(3_000)))
    metrics, folder = measured(data_of_large_model, tmp_path / "with", data, steps=120)
    assert metrics["cnn_mean_iou"] > metrics["mean_iou"] > metrics["prior_mean_iou"]
    assert metrics["trained"] == 0
    assert metrics["over_cnn"] == pytest.approx(metrics["mean_iou"] - metrics["cnn_mean_iou"])
    assert metrics["over_cnn_low"] < metrics["over_cnn"] < metrics["over_cnn_high"] < 0
    rows = folder.read_table("segmentation")
    assert [row["model"] for row in rows] == ["class prior", "three-layer CNN", "model"]
    assert int(rows[2]["parameters"]) == metrics["parameters"] == 3_001
    assert int(rows[1]["parameters"]) == pytest.approx(3_001, rel=0.05)
    assert int(rows[1]["macs"]) > 0


@pytest.mark.parametrize("clip", [0.05, None])
def test_the_baseline_is_what_a_trainer_makes_of_it(clip: float | None) -> None:
    """The same weights as the network that Lightning's Trainer fits: order, schedule, clipping, accumulation."""
    config = config_of(
        task={"lr_multipliers": {"head": 3.0}, "no_decay": ["norm"]},
        trainer={"gradient_clip_val": clip, "accumulate_grad_batches": 2},
        optimizer={"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    )
    torch.manual_seed(config.seed)
    run = build_trained(config)
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_steps=7, max_epochs=-1, gradient_clip_val=clip, accumulate_grad_batches=2, **settings
    )
    trainer.fit(run.task, run.data.train_dataloader())
    assert trainer.global_step == 7
    wanted = sum(parameter.numel() for parameter in run.model.parameters())
    torch.manual_seed(99)
    before = torch.get_rng_state()
    found = trained_baseline(Trained(run.model, run.task, ShapesData(), config, {}), wanted, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert not found.training
    for name, tensor in run.model.state_dict().items():
        assert torch.allclose(found.state_dict()[name], tensor, atol=1e-6), name


def test_the_baseline_takes_the_steps_that_the_run_took(tmp_path: Path) -> None:
    trained = trained_of(Reads(1))
    assert SegmentationReport().steps(trained, RunFolder(tmp_path)) == 7  # of the config
    RunFolder(tmp_path).update_metrics({"steps": 5})
    assert SegmentationReport().steps(trained, RunFolder(tmp_path)) == 5
    assert SegmentationReport(baseline_steps=0).steps(trained, RunFolder(tmp_path)) == 0


def test_settings_for_parameters_that_the_baseline_lacks_are_left_out() -> None:
    config = config_of(task={"no_decay": ["norm", "des"], "lr_multipliers": {"head": 10, "backbone": 0.1}})
    node = task_node(ThreeLayerCNN(4, width=2), config, 3)
    assert node["no_decay"] == ["norm"]
    assert node["lr_multipliers"] == {"head": 10}
    assert node["total_steps"] == 3
    assert config.task["total_steps"] == 7


def test_the_interval_is_the_percentile_bootstraps() -> None:
    generator = torch.Generator().manual_seed(0)
    confusion = torch.randint(0, 50, (40, 3, 3), generator=generator)
    confusion += 200 * torch.eye(3, dtype=torch.long) * torch.randint(0, 3, (40, 1, 1), generator=generator)
    predictions = MaskPredictions(confusion, torch.zeros(40), torch.zeros(40, dtype=torch.long))
    low, high = mean_iou_interval(predictions, 0)
    assert low < predictions.mean_iou < high
    assert mean_iou_interval(predictions, 0) == (low, high) != mean_iou_interval(predictions, 1)
    stats = pytest.importorskip("scipy.stats")

    def statistic(places: Any) -> float:
        total = confusion[places.astype(int)].sum(0).double()
        return (total.diag() / (total.sum(0) + total.sum(1) - total.diag())).mean().item()

    expected = stats.bootstrap(
        (torch.arange(40).numpy(),), statistic, method="percentile", n_resamples=10_000, vectorized=False, rng=1
    ).confidence_interval
    near = 0.03 * (expected.high - expected.low)  # intervals of 90% would be 0.08 away at each end
    low, high = mean_iou_interval(predictions, 0, draws=10_000)
    assert (low, high) == (pytest.approx(expected.low, abs=near), pytest.approx(expected.high, abs=near))


def test_images_that_are_all_alike_leave_no_spread() -> None:
    confusion = torch.tensor([[3, 1], [2, 4]]).expand(9, 2, 2)
    predictions = MaskPredictions(confusion, torch.zeros(9), torch.zeros(9, dtype=torch.long))
    assert mean_iou_interval(predictions, 0) == pytest.approx((predictions.mean_iou,) * 2)


def test_chosen_images_are_a_function_of_the_splits_length() -> None:
    assert chosen_places(233) == [9, 29, 48, 67, 87, 106, 126, 145, 165, 184, 203, 223]
    assert chosen_places(12) == list(range(12))
    assert chosen_places(1) == [0]
    assert chosen_places(5) == [0, 1, 2, 3, 4]


def test_the_worst_images_have_the_lowest_mean_iou_and_count_some_pixel() -> None:
    right, wrong, empty = [[4, 0], [0, 4]], [[0, 4], [4, 0]], [[0, 0], [0, 0]]
    half = [[2, 2], [2, 2]]
    confusion = torch.tensor([right, half, empty, wrong, right, half])
    predictions = MaskPredictions(confusion, torch.zeros(6), torch.zeros(6, dtype=torch.long))
    assert worst_places(predictions) == [3, 1, 5]


def test_pictures_are_of_the_images_that_the_table_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(
        segmentation_drawing,
        "picture_grid",
        lambda groups, titles, legend, **rest: drawn.append((groups, legend)) or b"",
    )
    data = ShapesData(41)
    _, folder = measured(Reads(1), tmp_path, data)
    rows = folder.read_table("segmentation_images")
    assert [row["image"] for row in rows] == [str(place) for place in range(41)]
    chosen = [int(row["image"]) for row in rows if "chosen" in row["shown"]]
    assert chosen == chosen_places(41)
    by_score = sorted(range(41), key=lambda place: float(rows[place]["mean_iou"]))
    worst = [int(row["image"]) for row in rows if "worst" in row["shown"]]
    assert worst == sorted(by_score[:3])
    assert set(worst) - set(chosen)
    (by_index, legend), (lowest, _) = drawn
    assert [int(caption.split(":")[0].removeprefix("image ")) for caption in by_index] == chosen
    assert [int(caption.split(":")[0].removeprefix("image ")) for caption in lowest] == by_score[:3]
    assert list(legend) == ["ground", "box", "red box"]
    captions = {item["name"]: item["caption"] for item in folder.report_items() if item["kind"] == "figure"}
    assert ", ".join(map(str, chosen)) in captions["segmentation_chosen"]
    seen = data.shapes["validation"]
    for groups, places in ((by_index, chosen), (lowest, by_score[:3])):
        for place, (image, truth, prediction) in zip(places, groups.values(), strict=True):
            assert image.shape == truth.shape == prediction.shape == (HEIGHT, WIDTH, 3)
            assert (image[..., 0] == (seen.labels[place] / 10 * 255).round().numpy()).all()
            palette = torch.tensor(data.palette)
            assert (prediction == palette[seen.answers[place]].numpy()).all()
            assert (truth[:-1] == palette[seen.labels[place, :-1]].numpy()).all()
            assert (truth[-1, :, 0] == truth[-1, :, 1]).all()  # hatched in grey


def test_confusions_have_the_true_class_in_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of class 0 a fifth is taken for 1, class 1 is never taken for another, class 2 is nowhere."""
    drawn = []
    monkeypatch.setattr(segmentation_drawing, "heatmap", lambda shares, *rest, **more: drawn.append(shares) or b"")
    confusion = torch.tensor([[[3, 1, 0], [0, 5, 0], [0, 0, 0]], [[5, 1, 0], [0, 2, 0], [0, 0, 0]]])
    predictions = MaskPredictions(confusion, torch.zeros(2), torch.zeros(2, dtype=torch.long))
    draw_confusion(predictions, ["a", "b", "c"], RunFolder(tmp_path))
    assert drawn[0][:2] == [[pytest.approx(0.8), pytest.approx(0.2), 0], [0, 1, 0]]
    assert all(math.isnan(share) for share in drawn[0][2])


def test_of_many_classes_only_the_largest_are_drawn(tmp_path: Path) -> None:
    """150 classes, as ADE20K has: no confusions, the bars and the legend of those with the most pixels."""
    confusion = torch.diag(torch.arange(1, 151))[None]
    predictions = MaskPredictions(confusion, torch.zeros(1), torch.zeros(1, dtype=torch.long))
    labels = [f"class {number}" for number in range(150)]
    folder = RunFolder(tmp_path)
    draw_confusion(predictions, labels, folder)
    assert not folder.report_items()
    draw_classes({"model": Judged(predictions, torch.zeros(1, 150))}, labels, folder)
    assert folder.report_items()[0]["caption"].endswith("The 40 classes with the most pixels.")
    truth = torch.arange(150).repeat_interleave(torch.arange(1, 151)).view(25, -1)
    palette = [[number, number, number] for number in range(150)]
    data = SimpleNamespace(labels=labels, palette=palette)
    legend, left_out = colours_of([Picture(truth[None], truth, truth)], data)
    assert list(legend) == labels[-36:] and left_out == 114
    assert legend["class 149"] == [149, 149, 149]


def test_each_image_has_its_own_scores(tmp_path: Path) -> None:
    _, folder = measured(Reads(1), tmp_path)
    seen = ShapesData().shapes["validation"]
    for place, row in enumerate(folder.read_table("segmentation_images")):
        counted = seen.labels[place] != IGNORED
        right = (seen.answers[place] == seen.labels[place])[counted].double().mean().item()
        assert float(row["accuracy"]) == pytest.approx(right)
        present = torch.cat([seen.answers[place][counted], seen.labels[place][counted]]).unique()
        iou = multiclass_jaccard_index(
            seen.answers[place], seen.labels[place], num_classes=4, ignore_index=IGNORED, average=None
        )
        assert float(row["mean_iou"]) == pytest.approx(iou[present].mean().item(), abs=1e-6)


def test_a_quantised_model_is_paired_with_its_float_network(tmp_path: Path) -> None:
    metrics, folder = measured(QuantizedModel(Reads(0), Reads(1), Scheme("int8", 0.1)), tmp_path)
    assert [row["model"] for row in folder.read_table("segmentation")] == ["class prior", "model", "int8"]
    assert metrics["float_mean_iou"] == 1
    assert metrics["lost"] == pytest.approx(1 - metrics["mean_iou"])
    assert metrics["lost_low"] < metrics["lost"] < metrics["lost_high"]
    assert metrics["differs"] == sum(number % 5 > 0 for number in range(17))


def test_parameters_and_macs_are_counted(tmp_path: Path) -> None:
    """Width 2 and 4 classes at 12 x 16: maps of 6 x 8, 3 x 4 and 3 x 4."""
    metrics, _ = measured(ThreeLayerCNN(4, width=2, input_shape=(3, HEIGHT, WIDTH)), tmp_path)
    assert metrics["parameters"] == 54 + 36 + 72 + 4 + 8
    assert metrics["macs"] == 54 * 48 + 36 * 12 + 72 * 12 == 1e6 * metrics["million_macs"]


def test_one_image_is_enough(tmp_path: Path) -> None:
    metrics, folder = measured(Reads(0), tmp_path, ShapesData(1))
    assert metrics["mean_iou_low"] == metrics["mean_iou_high"] == 1
    assert (tmp_path / "figures" / "segmentation_worst.png").stat().st_size > 1_000
    assert folder.read_table("segmentation_images")[0]["shown"] == "chosen, worst"


def test_what_cannot_be_judged_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs data of label maps, as data=camvid; int has none"):
        SegmentationReport().measure(trained_of(Reads(0), 3), RunFolder(tmp_path))
    with pytest.raises(UserError, match="measure.segmentation.baseline_steps=-1 is negative"):
        SegmentationReport(baseline_steps=-1)
    data = ShapesData()
    data.shapes["test"].labels[:] = IGNORED
    with pytest.raises(UserError, match="every label is data.ignore_index=9"):
        SegmentationReport(0).measure(trained_of(Reads(0), data), RunFolder(tmp_path))


def test_a_classifier_is_refused_before_it_is_trained() -> None:
    class Classifier(nn.Module):
        input_shape = (3, 8, 8)

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm2d(3), nn.Linear(3, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.linear(self.norm(images).mean((2, 3)))

    model = Classifier()
    with pytest.raises(UserError, match=r"Classifier gives an image \[5\] scores; use measure=\[classification\]"):
        SegmentationReport().check(model)
    assert model.training and model.norm.num_batches_tracked == 0
    SegmentationReport().check(ThreeLayerCNN(3, width=2, input_shape=(3, 9, 7)))
