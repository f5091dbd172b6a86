"""Small image sets, made up: a colour a label, a gradient and a bright corner so that turns and mirrors show."""

import io
from pathlib import Path

import numpy as np
from audio_sets import write_parquet
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as Pillow

LABELS = ["red", "green", "blue"]
FEATURES = Features({"image": Image(), "label": ClassLabel(names=LABELS)})


def picture(label: int, take: int, height: int = 8, width: int = 8) -> np.ndarray:
    """uint8 [height, width, 3], of a colour, another for every take."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.repeat((3 * rows + 2 * columns + 5 * take)[:, :, None] % 64, 3, axis=2)
    pixels[:, :, label % 3] += 100 + 10 * (label // 3)
    pixels[0, 0] = 255
    pixels[0, 1] = take
    return pixels.astype(np.uint8)


def encoded(pixels: np.ndarray, form: str = "png", **options) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def rows_of(takes: range, labels: int = 3, **shape: int) -> list[dict]:
    return [
        {"image": {"bytes": encoded(picture(label, take, **shape)), "path": f"{label}_{take}.png"}, "label": label}
        for take in takes
        for label in range(labels)
    ]


def write_images(folder: Path, splits: dict[str, list[dict]], features: Features = FEATURES) -> Path:
    return write_parquet(folder, splits, features)


def write_files(folder: Path, splits: dict[str, range]) -> Path:
    """<split>/<label>/<take>.png or .jpg; a split "" lies in the folder itself."""
    for split, takes in splits.items():
        for label, name in enumerate(LABELS):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for take in takes:
                form = ("png", "jpeg")[take % 2]
                (place / f"{take}.{form}").write_bytes(encoded(picture(label, take), form))
    return folder


def write_cifar10(folder: Path, train: int = 100, test: int = 10) -> Path:
    """The columns of CIFAR-10, and too few of its rows: so many of each class."""
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    features = Features({"image": Image(), "label": ClassLabel(names=names), "number": Value("int32")})
    rows = rows_of(range(train + test), labels=10, height=32, width=32)
    rows = [row | {"number": number} for number, row in enumerate(rows)]
    return write_parquet(folder, {"train": rows[: 10 * train], "test": rows[10 * train :]}, features)


def write_imagenet(folder: Path, train: int = 90) -> Path:
    """The splits and columns of ImageNet-1k and its 1,000 classes, of which a few have an image; test has no labels."""
    features = Features({"image": Image(), "label": ClassLabel(names=[f"class {number}" for number in range(1000)])})
    rows = [row for take in range(train) for row in rows_of(range(take, take + 1), 1, height=40, width=48 + take % 9)]
    rows = [row | {"label": number % 1000} for number, row in enumerate(rows)]
    splits = {"train": rows[10:], "validation": rows[:8], "test": [row | {"label": -1} for row in rows[8:10]]}
    return write_parquet(folder, splits, features)
