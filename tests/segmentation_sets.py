"""Small segmentation sets, made up: blocks of classes, each of a colour, and void along the lowest row."""

from pathlib import Path

import numpy as np
from audio_sets import write_parquet
from datasets import Features, Image
from image_sets import encoded

FEATURES = Features({"image": Image(), "label": Image()})
COLOURS = np.array([[40, 80, 120], [200, 60, 30], [90, 220, 140], [0, 0, 0]], dtype=np.uint8)
VOID = 3  # a value; 0, 1 and 2 are classes
CAMVID = 11  # classes


def classes_of(take: int, height: int = 12, width: int = 16, classes: int = 3) -> np.ndarray:
    """uint8 [height, width]: blocks, another arrangement for every take; the lowest row is void."""
    generator = np.random.default_rng(take)
    blocks = generator.integers(0, classes, (-(-height // 4), -(-width // 4)), dtype=np.uint8)
    values = blocks.repeat(4, 0).repeat(4, 1)[:height, :width].copy()
    values[-1] = classes
    return values


def picture(values: np.ndarray, take: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]: each value's colour, and a pixel that tells the take."""
    pixels = COLOURS[values % len(COLOURS)].copy()
    pixels[0, 0] = take % 251
    return pixels


def pair(take: int, values: np.ndarray | None = None, **shape: int) -> dict:
    """A row of a table."""
    values = classes_of(take, **shape) if values is None else values
    image, label = encoded(picture(values, take)), encoded(values)
    return {"image": {"bytes": image, "path": f"{take}.png"}, "label": {"bytes": label, "path": f"{take}_label.png"}}


def pairs(takes: range, **shape: int) -> list[dict]:
    return [pair(take, **shape) for take in takes]


def write_pairs(folder: Path, splits: dict[str, list[dict]]) -> Path:
    return write_parquet(folder, splits, FEATURES)


def write_pair_files(
    folder: Path,
    splits: dict[str, range],
    image_files: str = "images/{split}/{name}.png",
    label_files: str = "annotations/{split}/{name}.png",
    names: str = "take_{take}",
    raw: np.ndarray | None = None,
) -> Path:
    """Files after the patterns; raw: the value that stands for each class and, last, for void."""
    for split, takes in splits.items():
        for take in takes:
            values = classes_of(take)
            stored = values if raw is None else raw[values].astype(np.uint8)
            for pattern, pixels in ((image_files, picture(values, take)), (label_files, stored)):
                form = "jpeg" if pattern.endswith("jpg") else "png"
                file = folder / pattern.format(split=split, name=names.format(take=take))
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded(pixels, form))
    return folder


def write_camvid(folder: Path, train: int = 16, held_out: int = 4) -> Path:
    """The columns and values of CamVid, and too few of its rows, at an eighth of its size."""
    shape = {"height": 45, "width": 60, "classes": CAMVID}
    starts = {"train": (0, train), "validation": (train, held_out), "test": (train + held_out, held_out)}
    return write_pairs(
        folder, {name: pairs(range(start, start + count), **shape) for name, (start, count) in starts.items()}
    )


def write_ade20k(folder: Path) -> Path:
    """Its folders and values, three of its classes."""
    splits = {"training": range(8), "validation": range(8, 12)}
    return write_pair_files(folder, splits, "images/{split}/{name}.jpg", raw=np.array([1, 2, 3, 0]))


def write_cityscapes(folder: Path) -> Path:
    """Its folders and ids, three of its classes."""
    patterns = ("leftImg8bit/{split}/{name}_leftImg8bit.png", "gtFine/{split}/{name}_gtFine_labelIds.png")
    splits = {"train": range(8), "val": range(8, 12)}
    return write_pair_files(folder, splits, *patterns, "aachen/aachen_{take}", np.array([7, 8, 11, 0]))
