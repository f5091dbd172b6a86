"""The figures of the measure `segmentation`: bars by class, confusions, images beside truth and prediction."""

from typing import Any

import numpy as np
import torch

from edgetrain.evaluation.segmentation_judging import Judged, Picture, chosen_places, worst_places
from edgetrain.folder import Row, RunFolder
from edgetrain.report.figures import bar_chart, heatmap
from edgetrain.report.images import coloured, picture_grid
from edgetrain.tasks.mask_predictions import MaskPredictions

MOST_LABELS = 20  # of more classes no confusion matrix is drawn
MOST_BARS = 40  # classes, those with the most pixels
MOST_COLOURS = 36  # classes of a legend, those with the most pixels in its pictures
TITLES = ("image", "truth", "prediction")


def draw_classes(found: dict[str, Judged], labels: list[str], folder: RunFolder) -> None:
    """Bars of the IoU of each class, in their order, for everything that was judged, the last one first."""
    pixels = next(iter(found.values())).predictions.confusion.sum((0, 2))  # of the truth, the same for all
    shown = sorted(pixels.argsort(descending=True, stable=True)[:MOST_BARS].tolist())
    bars = {}
    for name, each in reversed(found.items()):
        iou = each.predictions.iou.tolist()
        bars[name] = {labels[label]: iou[label] for label in shown}
    figure = bar_chart(bars, "IoU", value_format=".2f")
    which = f" The {len(shown)} classes with the most pixels." if len(shown) < len(labels) else ""
    caption = f"Intersection over union of each class over all test pixels.{which}"
    folder.add_figure("segmentation_classes", figure, "IoU of each class", caption)


def draw_confusion(predictions: MaskPredictions, labels: list[str], folder: RunFolder) -> None:
    """Unless there are too many classes to read."""
    if len(labels) > MOST_LABELS:
        return
    counts = predictions.confusion.sum(0)
    totals = counts.sum(1, keepdim=True)
    shares = torch.where(totals > 0, counts / totals.clamp(min=1), torch.nan)
    figure = heatmap(shares.tolist(), labels, labels, "taken for", "class", value_label="share of the class's pixels")
    caption = "Share of the test pixels of each class (row) that the model takes for each class; a row adds up to 1."
    folder.add_figure("segmentation_confusion", figure, "What is taken for what", caption)


def draw_pictures(found: Judged, rows: list[Row], data: Any, folder: RunFolder) -> None:
    """The images chosen by index, and the worst. rows: mean_iou and accuracy of every image."""
    chosen, worst = chosen_places(len(found)), worst_places(found.predictions)
    by_index = (
        f"Validation images {', '.join(map(str, chosen))} of {len(found)}, chosen by index alone before any training: "
        "evenly spaced over the split."
    )
    lowest = f"Validation images {', '.join(map(str, worst))}, which have the lowest mean IoU, the lowest first."
    draw(found, rows, chosen, data, folder, "segmentation_chosen", "Images chosen by index", by_index, across=2)
    if worst:
        draw(found, rows, worst, data, folder, "segmentation_worst", "The worst images", lowest, across=1)


def draw(
    found: Judged,
    rows: list[Row],
    places: list[int],
    data: Any,
    folder: RunFolder,
    name: str,
    title: str,
    caption: str,
    across: int,
) -> None:
    pictures = {place: found.pictures[place] for place in places}
    groups = {said(place, rows[place]): arrays(each, data) for place, each in pictures.items()}
    legend, left_out = colours_of(list(pictures.values()), data)
    grid = picture_grid(groups, TITLES, legend, hatched="not counted", across=across)
    rest = f" {left_out} classes with fewer pixels here are not in the legend." if left_out else ""
    folder.add_figure(name, grid, title, caption + rest)


def said(place: int, row: Row) -> str:
    if row["mean_iou"] is None:
        return f"image {place}: no pixel counts"
    return f"image {place}: mIoU {row['mean_iou']:.2f}, accuracy {row['accuracy']:.2f}"


def arrays(picture: Picture, data: Any) -> list[np.ndarray]:
    """The image, and both maps in the data's colours; where the truth does not count, it is hatched."""
    image = picture.image.permute(1, 2, 0).numpy()
    return [image, *(coloured(each.numpy(), data.palette) for each in (picture.truth, picture.predicted))]


def colours_of(pictures: list[Picture], data: Any) -> tuple[dict[str, list[int]], int]:
    """Names and colours of the classes that are to be seen, in the data's order; and how many had to be left out."""
    counts = torch.zeros(len(data.labels), dtype=torch.int64)
    for picture in pictures:
        for labels in (picture.truth, picture.predicted):
            known = labels[(labels >= 0) & (labels < len(counts))]
            counts += known.bincount(minlength=len(counts))
    order = counts.argsort(descending=True, stable=True)
    seen = [label for label in order.tolist() if counts[label]]
    kept = sorted(seen[:MOST_COLOURS])
    return {data.labels[label]: data.palette[label] for label in kept}, len(seen) - len(kept)
