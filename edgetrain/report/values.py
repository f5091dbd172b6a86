"""Reading what a run left, and writing values for people."""

import csv
import html
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder


def read(folder: RunFolder, name: str, default: Any) -> Any:
    """A JSON file of the default's type, list of mappings or mapping. Raises UserError for anything else."""
    value = folder.read_json(name, default)
    entries = value if isinstance(default, list) else [value]
    if not isinstance(value, type(default)) or not all(isinstance(entry, dict) for entry in entries):
        expected = "a list of mappings" if isinstance(default, list) else "a mapping"
        raise UserError(f"{folder.path / name} should hold {expected}; run the command that made it again")
    return value


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows as text. Raises UserError when a row does not fit the header or the file is not text."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a valid table ({error}); run the command that made it again") from error
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise UserError(f"{path} is damaged: row {number} has not as many cells as the header; make it again")
    return rows


def logged_series(folder: RunFolder) -> dict[str, list[tuple[float, float]]]:
    """Every logged quantity as (step, value), without what only counts: epochs, and units trained on."""
    series: dict[str, list[tuple[float, float]]] = {}
    for step, values in folder.training_curves():
        for name, value in values.items():
            if name == "epoch" or name.endswith("_trained"):
                continue
            series.setdefault(name, []).append((step, value))
    return series


def flat(tree: Row, prefix: str = "") -> Row:
    """Nested mappings, and lists of them, as one, keys joined by dots; a list of words becomes a command line."""
    found: Row = {}
    for key, value in tree.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = shlex.join(map(str, value)) if isinstance(value, list) else value
    return found


def inside(folder: RunFolder, *parts: str) -> Path:
    """A path below the run folder. Raises UserError for a name that leads out of it."""
    path = folder.path.joinpath(*parts).resolve()
    if not path.is_relative_to(folder.path.resolve()):
        raise UserError(f"{folder.path / 'report.json'} names a file outside the run folder: {'/'.join(parts)}")
    return path


def relative(folder: RunFolder, path: Path) -> str:
    return path.relative_to(folder.path.resolve()).as_posix()


def parsed(text: str) -> int | float | str:
    """A cell of a CSV file as the number that it looks like; "007" and "1.2.3" do not."""
    if re.fullmatch(r"-?(0|[1-9]\d{0,30})", text):
        return int(text)
    if re.fullmatch(r"[-+]?(0|[1-9]\d*)(\.\d*)?([eE][-+]?\d+)?|nan|-?inf", text):
        return float(text)
    return text


def cell(value: object) -> str:
    """A value as the report shows it: whole numbers in full, others to 4 significant digits, text as it is."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    rounded = float(f"{value:.4g}")
    if 1e4 <= abs(rounded) < 1e9:
        return f"{rounded:,.0f}"
    return f"{value:.4g}" if rounded == value else f"{value:#.4g}".rstrip(".")  # 2.9996 is 3.000, 3.0 is 3


def mostly_numbers(values: Sequence[object]) -> bool:
    known = [value for value in values if value not in (None, "")]
    numbers = [value for value in known if isinstance(value, int | float) and not isinstance(value, bool)]
    return 2 * len(numbers) > len(known)


def size(number_of_bytes: int) -> str:
    size, units = float(number_of_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def escape(text: str) -> str:
    """Text as Markdown that shows it unchanged: no markup, no HTML, one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*|\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)
