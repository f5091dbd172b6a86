"""Rows of a set with a column of recordings or images and one of labels: of tables, or folders named by their label."""

from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import datasets
from datasets import Dataset

from edgetrain.data.source import TEXT, read_columns, with_columns
from edgetrain.errors import UserError, listing, nearest

SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLITS |= {"dev": "validation", "test": "test", "testing": "test"}


def files_with(folder: Path, suffixes: set[str]) -> list[Path]:
    """In alphabetical order, at any depth; hidden files and folders are not looked into."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def labelled_files(path: str, folder: Path, suffixes: set[str], column: str) -> dict[str, Dataset]:
    """Splits of <split>/<label>/... or <label>/..., then all train, as rows of `column` (a path within it) and label.

    datasets reads such folders too, but recordings only with FFmpeg. Raises UserError for a file in no label's folder.
    """
    rows: dict[str, dict[str, list[str]]] = {}
    files = files_with(folder, suffixes)
    parted = all(file.relative_to(folder).parts[0] in SPLITS for file in files)
    for file in files:
        above = file.relative_to(folder).parts[:-1]
        split = SPLITS[above[0]] if parted else "train"
        if len(above) < 1 + parted:
            raise UserError(
                f"data.path={path}: {file} is in no folder named by its label; arrange the files as "
                "<split>/<label>/<file> or <label>/<file>"
            )
        columns = rows.setdefault(split, {column: [], "label": []})
        columns[column].append(str(file.relative_to(folder)))
        columns["label"].append(above[parted])
    return {split: Dataset.from_dict(columns) for split, columns in rows.items()}


def read_rows(
    path: str, local: Path | None, columns: dict[str, str], suffixes: set[str], kind: str
) -> dict[str, Dataset]:
    """Rows of each split with the columns that keys of `data` name, {key: column}; nothing is decoded.

    local: where the set is, None for the hub; suffixes: of its files, where it is a folder of files; kind: the key, and
    the column of such files: audio or image. Raises UserError for a set that cannot be read or lacks a column.
    """
    tabled = local is None or local.is_file() or any(local.rglob("*.parquet"))
    if not tabled and files_with(local, suffixes):
        return with_columns(labelled_files(path, local, suffixes, kind), path, columns)
    return read_columns(path, columns, kind)


def tested_on(rows: dict[str, Dataset], split: str, path: str) -> dict[str, Dataset]:
    """The rows with `split` for test, and no other held-out split; as they are where it is test.

    Raises UserError for a split that the set lacks.
    """
    if split == "test":
        return rows
    if split not in rows or split == "train":
        held = [name for name in rows if name != "train"]
        raise UserError(
            f"data.test_split={split} is no held-out split of data.path={path}; it has {listing(held) or 'none'}"
        )
    return {"train": rows["train"], "test": rows[split]}


def open_stored(stored: Any, local: Path | None, path: str, where: str) -> BinaryIO:
    """What a row holds: bytes and a path, or one of them alone; a path is relative to the set.

    Raises UserError when no such file is there.
    """
    content, name = (stored.get("bytes"), stored.get("path")) if isinstance(stored, dict) else (None, stored)
    content = stored if isinstance(stored, bytes) else content
    if content is not None:
        return BytesIO(content)
    base = local.parent if local and local.is_file() else local or Path()
    try:
        return (base / name).open("rb")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"data.path={path}: {where}: no such file is there; put it there, or take the row out"
        ) from error


def place_of(stored: Any, row: int, split: str) -> str:
    """How messages name a row."""
    name = stored.get("path") if isinstance(stored, dict) else stored if isinstance(stored, str) else None
    return f"row {row} of {split}" + (f" ({name})" if name else "")


def check_features(features: datasets.Features, path: str, kind: str, column: str, label: str, media: type) -> None:
    """Raises UserError for a column `kind` that holds neither media nor files' names, and for labels that are none.

    media: the feature of such a column, datasets.Audio or datasets.Image.
    """
    check_media(features, path, kind, column, media)
    if not isinstance(features[label], datasets.ClassLabel | datasets.Value):
        raise UserError(f"data.label={label} of data.path={path} holds no labels, but {features[label]}")


def check_media(features: datasets.Features, path: str, key: str, column: str, media: type) -> None:
    """Raises UserError for the column that data.`key` names when it holds neither media nor files' names."""
    feature = features[column]
    plain = isinstance(feature, datasets.Value) and feature.dtype in (*TEXT, "binary", "large_binary")
    if not (plain or isinstance(feature, media) or (isinstance(feature, dict) and {"bytes", "path"} <= feature.keys())):
        what = "recordings" if media is datasets.Audio else "images"
        raise UserError(f"data.{key}={column} of data.path={path} holds no {what} or files' names")


def label_names(rows: Dataset, label: str, path: str, split: str) -> list[str]:
    """The label of each row, as text. Raises UserError for a row without one, or with a number that has no name."""
    feature, values = rows.features[label], rows[label][:]
    known = feature.names if isinstance(feature, datasets.ClassLabel) else None
    for row, value in enumerate(values):
        if value is None or value == "" or (known and not 0 <= value < len(known)):
            raise UserError(
                f"data.path={path}: row {row} of {split} has no {label} that the set knows; label it, or take it out"
            )
    return [known[value] if known else str(value) for value in values]


def ordered_labels(feature: Any, found: set[str], given: list[str] | None, path: str) -> list[str]:
    """Labels in the order of the model's outputs: `given`, else the set's own, else the alphabet's.

    feature: of train's labels; found: those that any row has. Raises UserError when those given are not the set's.
    """
    own = list(feature.names) if isinstance(feature, datasets.ClassLabel) else sorted(found)
    labels = own if given is None else given
    unheard, unnamed = sorted(set(labels) - {*own, *found}), sorted(found - set(labels))
    if unheard or len(set(labels)) < len(labels):
        wrong = f"{unheard[0]}, which {path} does not have{nearest(unheard[0], own)}" if unheard else "one twice"
        raise UserError(f"data.labels names {wrong}; its labels are {listing(own)}")
    if unnamed:
        raise UserError(f"data.labels does not name {listing(unnamed)}, which {path} has; add it to the list")
    return labels
