"""What is said of a segmentation set: shares of the classes, baselines, sizes, and what is odd about them."""

from typing import Any

import numpy as np

from edgetrain.data.labelled import MOST_LABELS
from edgetrain.data.preview import Preview, content_keys, duplicate_rows
from edgetrain.errors import listing
from edgetrain.folder import Row


def pixel_facts(data: Any) -> dict[str, Any]:
    """What a SegmentationData's facts hold beside those of labelled items.

    class_pixels: each class's share of a split's counted pixels. majority_mean_iou: mean IoU on test of always
    answering train's most frequent class, over the classes that either has. test_is: what stands for the test split.
    """
    tested, most = data.class_pixels("test"), int(data.class_pixels("train").argmax())
    present = len(set(np.flatnonzero(tested).tolist()) | {most})
    shares = {name: dict(zip(data.labels, data.shares(name).tolist(), strict=True)) for name in data.splits}
    return {
        "majority_mean_iou": float(tested[most] / tested.sum() / present),
        "class_pixels": shares,
        "empty_classes": empty_classes(data),
        "broken": dict(data.broken),
        "test_is": data.test_is,
    }


def empty_classes(data: Any) -> list[str]:
    """Names of the classes that have no pixel in train."""
    return [data.labels[number] for number in np.flatnonzero(data.class_pixels("train") == 0)]


def preview(data: Any, samples: int) -> Preview:
    """The first images that a run of a SegmentationData trains on, shares, shorter sides, and repeated contents."""
    order = data.train_dataloader().sampler
    places, train = data.places_of("train"), data.splits["train"].items
    texts = []
    for index, _ in zip(order, range(samples), strict=False):
        height, width = data.store.sizes[places[index]].tolist()
        present = np.count_nonzero(data.store.pixels[places[index], :-1])
        texts.append(f"{width}x{height}  {present} classes {train[index].where}")
    lengths = {name: data.store.sizes[data.places_of(name)].min(1) for name in data.splits}
    keys = {name: content_keys(pair.key for pair in split.items) for name, split in data.splits.items()}
    notes = data.dropped_notes() + class_notes(data)
    duplicates = duplicate_rows("images", keys)
    return Preview(texts, split_rows(data), lengths, "pixels of the shorter side", duplicates, notes)


def split_rows(data: Any) -> list[Row]:
    """How many images a split has, and each class's share of the counted pixels in per cent."""
    rows = []
    for name, split in data.splits.items():
        shares = (100 * data.shares(name)).round(3).tolist()
        by_label: Row = {f"{label} %": share for label, share in zip(data.labels, shares, strict=True)}
        if len(data.labels) > MOST_LABELS:
            present = np.count_nonzero(data.class_pixels(name))
            by_label = {"classes": present, "rarest %": min(shares), "most %": max(shares)}
        rows.append({"split": name, "images": len(split.items)} | by_label)
    return rows


def class_notes(data: Any) -> list[str]:
    """Sentences on classes without a pixel, label images without a class, broken pairs, and what stands for test."""
    notes = list(data.notes)
    if empty := empty_classes(data):
        notes.append(f"train: classes without a pixel, which cannot be learned: {listing(empty)}")
    for name in data.splits:
        void = int((data.store.pixels[data.places_of(name)][:, :-1].sum(1) == 0).sum())
        if void:
            notes.append(f"{name}: {void} label images are all void; nothing of them is counted")
        if data.broken[name]:
            notes.append(f"{name}: {data.broken[name]} images left out because they cannot be decoded")
    if data.test == "validation":
        notes.append("test: the validation split stands for it, so what is chosen on validation looks better on it")
    return notes
