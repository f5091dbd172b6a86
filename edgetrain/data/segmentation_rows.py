"""Where the pairs of a set are: columns of a table, or folders of files whose names follow a pattern.

    images/{split}/{name}.jpg                    and  annotations/{split}/{name}.png                      ADE20K
    leftImg8bit/{split}/{name}_leftImg8bit.png   and  gtFine/{split}/{name}_gtFine_labelIds.png           Cityscapes

{name} may hold folders, as Cityscapes has one a city; * is any part of a file's or folder's name.
"""

import re
from pathlib import Path

import datasets
import pyarrow as pa

from edgetrain.data.images import SUFFIXES
from edgetrain.data.labelled_rows import SPLITS, check_media, files_with
from edgetrain.data.source import find_local, read_columns
from edgetrain.errors import UserError, listing

Files = dict[str, dict[str, str]]  # of each split, by the name that a pair shares


def find_set(path: str, hub: str | None) -> tuple[str, Path | None]:
    """The name under which a set is read, and where it is, None for the hub: `path`, else `hub` where that is given.

    Raises UserError as find_local does.
    """
    local = find_local(path)
    return (hub, None) if local is None and hub is not None else (path, local)


def pair_rows(
    path: str, local: Path | None, image: str, label: str, image_files: str, label_files: str, without: str | None
) -> tuple[dict[str, pa.Table], list[str]]:
    """Rows of each split, image and label, of which nothing is decoded; and notes on what was left out.

    image, label: columns of a table; image_files, label_files: patterns of a folder's files; without: a split that is
    not looked at. Raises UserError for a set that cannot be read, or of which an image or a label image is missing.
    """
    if local is None or local.is_file() or any(local.rglob("*.parquet")):
        rows = read_columns(path, {"image": image, "label": label}, "image")
        for key, column in (("image", image), ("label", label)):
            check_media(rows["train"].features, path, key, column, datasets.Image)
        tables = {split: each.with_format("arrow")[:] for split, each in rows.items() if split != without}
        return {split: pa.table({"image": each[image], "label": each[label]}) for split, each in tables.items()}, []
    found = [files_of(local, key, pattern) for key, pattern in (("image", image_files), ("label", label_files))]
    images, labels = (
        {SPLITS[split]: names for split, names in each.items() if SPLITS.get(split, without) != without}
        for each in found
    )
    if not images or not labels:
        key, pattern = ("image_files", image_files) if not images else ("label_files", label_files)
        raise UserError(
            f"data.path={path}: no file in {local} matches data.{key}={pattern} with a split of "
            f"{listing(SPLITS)}; set data.image_files and data.label_files, or give parquet files"
        )
    if "train" not in images:
        raise UserError(f"data.path={path} has no train split, only {listing(images)}; put files there")
    check_partners(path, images, labels, image_files, label_files)
    labelled = {file for names in found[1].values() for file in names.values()}
    notes = [
        f"{len(names)} images of {split} were left out: it is none of {listing(SPLITS)}"
        for split, names in found[0].items()
        if split not in SPLITS and labelled.isdisjoint(names.values())
    ]
    return {
        split: pa.table({"image": list(names.values()), "label": [labels[split][name] for name in names]})
        for split, names in images.items()
    }, notes


def files_of(folder: Path, key: str, pattern: str) -> Files:
    """Paths within the folder that match, in alphabetical order. Raises UserError for a pattern without {name}."""
    parts = {re.escape("{split}"): "(?P<split>[^/]+)", re.escape("{name}"): "(?P<name>.+)", re.escape("*"): "[^/]*"}
    expression = re.escape(pattern)
    for written, meant in parts.items():
        expression = expression.replace(written, meant, 1)
    expression = expression.replace(re.escape("*"), "[^/]*")
    if "(?P<name>" not in expression:
        raise UserError(f"data.{key}_files={pattern} has no {{name}}, which says what an image and its label share")
    compiled = re.compile(expression)
    found: Files = {}
    for file in files_with(folder, SUFFIXES):
        within = file.relative_to(folder).as_posix()
        if match := compiled.fullmatch(within):
            named = match.groupdict()
            names = found.setdefault(named.get("split", "train"), {})
            if named["name"] in names:
                raise UserError(
                    f"{names[named['name']]} and {within} both match data.{key}_files={pattern} under one name; "
                    "take one out, or write the pattern more narrowly"
                )
            names[named["name"]] = within
    return found


def check_partners(path: str, images: Files, labels: Files, image_files: str, label_files: str) -> None:
    """Raises UserError for an image without its label image, and the other way round."""
    for split in sorted(images.keys() | labels.keys()):
        ours, theirs = images.get(split, {}), labels.get(split, {})
        for what, other, have, lack, pattern in (
            ("image", "label image", ours, theirs, label_files),
            ("label image", "image", theirs, ours, image_files),
        ):
            alone = sorted(have.keys() - lack.keys())
            if alone:
                raise UserError(
                    f"data.path={path}: {len(alone)} {what}s of {split} have no {other}, the first {have[alone[0]]}; "
                    f"put it where {pattern} says, or take them out"
                )
