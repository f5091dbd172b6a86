"""How good label maps are: beside trivial answers, by class, along outlines, image by image, and to look at."""

from typing import Any

import torch
from torch import nn

from edgetrain.errors import UserError
from edgetrain.evaluation.segmentation_baseline import trained_baseline
from edgetrain.evaluation.segmentation_drawing import draw_classes, draw_confusion, draw_pictures
from edgetrain.evaluation.segmentation_judging import (
    DRAWS,
    Judged,
    chosen_places,
    judged,
    mean_iou_interval,
    per_image_iou,
    worst_places,
)
from edgetrain.folder import Row, RunFolder
from edgetrain.hardware.exported_graph import evaluating
from edgetrain.hardware.tracing import trace
from edgetrain.models.quantized import QuantizedModel, float_network
from edgetrain.tasks.mask_predictions import MaskPredictions

PRIOR, BASELINE, MODEL = "class prior", "three-layer CNN", "model"
SCORES = (
    "mean_iou: mean intersection over union of the classes, over all pixels together, with the 95% interval of "
    f"{DRAWS:,} bootstrap draws of the images (too narrow where they are frames of one video, as such are alike); "
    "accuracy: share of the counted pixels that are right; boundary_f: F-measure of the outlines within 0.75% of the "
    "diagonal (Csurka et al. 2013), mean over classes, then images; loss: nats a pixel; macs: of one image of "
)
CLASSES = (
    "iou: intersection over union over all test pixels; boundary_f: of the class's outlines, mean over images; pixels: "
    "of the class in the truth, and their share of those that count."
)
IMAGES = (
    "mean_iou: over the classes that are in the image or predicted there; shown: `chosen` by index alone, before any "
    "training, and the `worst`."
)


WITHOUT_MODEL = {"boundary_f": 0.0, "loss": None, "parameters": 0, "macs": 0}  # one class has no outline
GAIN = {"over_cnn": "change", "over_cnn_low": "change_low", "over_cnn_high": "change_high"}


class SegmentationReport:
    """The measure `segmentation`, on the test split of data with label maps; its pictures are of validation.

    baseline_steps: optimiser steps of a ThreeLayerCNN of as many parameters, trained beside; None: as many as the run
    had; 0: none. seed: of the bootstrap. Raises UserError for a negative number of steps.
    """

    def __init__(self, baseline_steps: int | None = None, seed: int = 0) -> None:
        if baseline_steps is not None and baseline_steps < 0:
            raise UserError(
                f"measure.segmentation.baseline_steps={baseline_steps} is negative; 0 leaves the baseline out"
            )
        self.baseline_steps, self.seed = baseline_steps, seed

    def check(self, model: nn.Module) -> None:
        """Raises UserError for a model that gives no map of scores."""
        network = float_network(model)
        shape = getattr(network, "input_shape", None)
        if shape is None:
            return
        parameter = next(network.parameters())
        with evaluating(network), torch.no_grad():
            output = network(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
        if getattr(output, "ndim", 4) != 4:
            raise UserError(
                f"measure.segmentation judges a class for every pixel, but {type(network).__name__} gives an image "
                f"{list(output.shape[1:])} scores; use measure=[classification], or a model as model=segmenter"
            )

    def measure(self, trained: Any, folder: RunFolder) -> dict[str, float]:
        """Tables `segmentation`, `segmentation_classes`, `segmentation_images`; figures of classes and of pictures.

        segmentation/mean_iou, _low, _high, accuracy, loss, boundary_f, parameters, macs, million_macs, iou_<class>;
        prior_ and cnn_ mean_iou and accuracy; over_cnn, _low, _high: what the mean IoU is above the baseline's, image
        by image; trained: 1 when it is above both baselines', else 0. Of a quantised model also differs and what it
        lost against the float model: lost, _low, _high, float_mean_iou. Raises UserError for data without label maps.
        """
        data, task = trained.data, trained.task
        if not hasattr(data, "class_pixels"):
            raise UserError(
                f"measure.segmentation needs data of label maps, as data=camvid; {type(data).__name__} has none"
            )
        data.setup("test")
        network = float_network(trained.model)
        models: dict[str, nn.Module] = {MODEL: network}
        if isinstance(trained.model, QuantizedModel):
            models[trained.model.scheme.name] = trained.model
        steps = self.steps(trained, folder)
        if steps:
            count = sum(parameter.numel() for parameter in network.parameters())
            models = {BASELINE: trained_baseline(trained, count, steps)} | models
        length, last = len(data.splits["test"].items), list(models)[-1]
        found = {name: judged(task, model.eval(), data, "test") for name, model in models.items()}
        label = int(data.class_pixels("train").argmax())
        prior = found[last].predictions.always(label)
        rows: list[Row] = [{"model": PRIOR} | self.scores(prior) | WITHOUT_MODEL]
        for name, each in found.items():
            rows.append({"model": name} | self.scores(each.predictions) | outline_and_loss(each))
            rows[-1] |= sizes(models[name] if name == BASELINE else network, task)
        metrics = {key: value for key, value in rows[-1].items() if key != "model"}
        metrics["million_macs"] = None if metrics["macs"] is None else metrics["macs"] / 1e6
        metrics |= {"prior_mean_iou": prior.mean_iou, "prior_accuracy": prior.accuracy}
        if steps:
            baseline = found[BASELINE].predictions
            metrics |= {"cnn_mean_iou": baseline.mean_iou, "cnn_accuracy": baseline.accuracy}
            gain = found[last].predictions.compared_with(baseline)
            metrics |= {name: gain[key] for name, key in GAIN.items()}
        if last != MODEL:
            change = found[last].predictions.compared_with(found[MODEL].predictions)
            rows[-1] |= change
            metrics |= lost(change) | {"float_mean_iou": found[MODEL].predictions.mean_iou}
        metrics["trained"] = int(metrics["mean_iou"] > max(prior.mean_iou, metrics.get("cnn_mean_iou", 0.0)))
        folder.add_table(
            "segmentation",
            rows,
            "Segmentation of held-out images",
            f"{verdict(metrics, steps)} On the {length} images of the test split. {PRIOR}: always "
            f"{data.labels[label]}, which has most training pixels. {SCORES}{size_of_example(task)} pixels.",
        )
        by_class = classes(found[last], data.labels)
        folder.add_table("segmentation_classes", by_class, "Each class", f"{CLASSES} Of the last model above.")
        draw_classes(found, data.labels, folder)
        draw_confusion(found[last].predictions, data.labels, folder)
        seen = judged(task, models[last], data, "validation", pictures_kept=True)
        by_image = images(seen)
        folder.add_table("segmentation_images", by_image, "Each validation image", IMAGES)
        draw_pictures(seen, by_image, data, folder)
        metrics |= {f"iou_{row['class'].replace(' ', '_')}": row["iou"] for row in by_class if row["iou"] is not None}
        return {f"segmentation/{name}": value for name, value in metrics.items() if value is not None}

    def steps(self, trained: Any, folder: RunFolder) -> int:
        """The baseline's: as set, else those that the run took, else those that it was asked for."""
        if self.baseline_steps is not None:
            return self.baseline_steps
        taken = folder.read_json("metrics.json", {}).get("steps")
        return int(taken or max(0, trained.config.trainer.get("max_steps", 0)))

    def scores(self, predictions: MaskPredictions) -> Row:
        low, high = mean_iou_interval(predictions, self.seed)
        return {
            "mean_iou": predictions.mean_iou,
            "mean_iou_low": low,
            "mean_iou_high": high,
            "accuracy": predictions.accuracy,
        }


def outline_and_loss(found: Judged) -> Row:
    return {"boundary_f": number(found.mean_boundary_f), "loss": found.predictions.mean_loss}


def sizes(model: nn.Module, task: Any) -> Row:
    """Parameters and multiply-accumulates of one example; no MACs of a model that cannot be traced."""
    row: Row = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    try:
        return row | {"macs": trace(model, task.example_inputs()).macs}
    except UserError:
        return row | {"macs": None}


def size_of_example(task: Any) -> str:
    return " x ".join(map(str, task.example_inputs()[0].shape[-2:]))


def lost(change: Row) -> Row:
    """What mean IoU quantising took, from the paired change."""
    turned = {"lost": "change", "lost_low": "change_high", "lost_high": "change_low"}
    return {"differs": change["differs"]} | {name: 0 - change[key] for name, key in turned.items()}


def verdict(metrics: Row, steps: int) -> str:
    """The sentence that the table begins with."""
    against = f"the class prior's {metrics['prior_mean_iou']:.3f}"
    if steps:
        against += (
            f" and the {metrics['cnn_mean_iou']:.3f} of a {BASELINE} with as many parameters after {steps} steps; from "
            f"that it is {metrics['over_cnn']:+.3f} away (95% interval {metrics['over_cnn_low']:+.3f} to "
            f"{metrics['over_cnn_high']:+.3f}, paired by image)"
        )
    if metrics["trained"]:
        return f"The model's mean IoU, {metrics['mean_iou']:.3f}, is above {against}."
    return f"Not trained: the model's mean IoU, {metrics['mean_iou']:.3f}, does not exceed {against}."


def number(value: float) -> float | None:
    """None for what is not there, which a table leaves empty."""
    return None if value != value else value


def classes(found: Judged, labels: list[str]) -> list[Row]:
    """A row a class: class, iou, boundary_f, pixels, share."""
    pixels = found.predictions.confusion.sum((0, 2))
    outlines = found.outlines.nanmean(0).tolist()
    total = int(pixels.sum())
    return [
        {"class": label, "iou": number(iou), "boundary_f": number(outline), "pixels": count, "share": count / total}
        for label, iou, outline, count in zip(
            labels, found.predictions.iou.tolist(), outlines, pixels.tolist(), strict=True
        )
    ]


def images(found: Judged) -> list[Row]:
    """A row an image: image (its index in the split), mean_iou, accuracy, boundary_f, loss, shown."""
    predictions = found.predictions
    right = predictions.confusion.diagonal(dim1=1, dim2=2).sum(1) / predictions.pixels  # nan where none counts
    columns = (per_image_iou(predictions), right, found.outlines.nanmean(1), predictions.loss)
    chosen, worst = chosen_places(len(found)), worst_places(predictions)
    return [
        {
            "image": place,
            "mean_iou": number(iou),
            "accuracy": number(accuracy),
            "boundary_f": number(outline),
            "loss": loss,
            "shown": ", ".join(["chosen"] * (place in chosen) + ["worst"] * (place in worst)),
        }
        for place, (iou, accuracy, outline, loss) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        )
    ]
