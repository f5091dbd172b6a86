"""Runs beside each other: what differs in their configuration, their environment and their metrics."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder, write_atomic
from edgetrain.report.blocks import Part, document, heading, paragraph, table
from edgetrain.report.terminal import print_table
from edgetrain.report.values import flat, read

ABSENT = "–"
# What differs between any two runs, or says how a run is presented and not what it does.
UNCOMPARED = {
    "configuration": ("out", "resume", "description", "smoke", "claims"),
    "environment": ("command", "started", "finished", "wall_seconds", "resumed"),
}


@dataclass(frozen=True)
class Comparison:
    """One row a run, called a, b, ...; then, for each kind of fact, the rows that differ and how many are equal."""

    runs: list[Row]
    differing: dict[str, list[Row]]
    equal: dict[str, int]

    @property
    def letters(self) -> list[str]:
        return [row["run"] for row in self.runs]


def compare(paths: Sequence[str]) -> Comparison:
    """Two or more run folders, of one recipe or of several. Raises UserError for a path that is no run folder."""
    if len(paths) < 2 or len(paths) > len(string.ascii_lowercase):
        raise UserError(f"compare=[{','.join(paths)}]: name two or more run folders, as in compare=[RUN,RUN]")
    folders = [RunFolder.open(path.strip()) for path in paths]
    letters = list(string.ascii_lowercase[: len(folders)])
    facts: dict[str, list[Row]] = {
        "configuration": [flat(_config(folder)) for folder in folders],
        "environment": [flat(read(folder, "environment.json", {})) for folder in folders],
        "metrics": [flat(read(folder, "metrics.json", {})) for folder in folders],
    }
    runs = [
        {
            "run": letter,
            "recipe": config.get("recipe"),
            "finished": environment.get("finished", "not finished"),
            "folder": path.strip(),
        }
        for letter, path, config, environment in zip(
            letters, paths, facts["configuration"], facts["environment"], strict=True
        )
    ]
    differing: dict[str, list[Row]] = {}
    equal: dict[str, int] = {}
    for kind, columns in facts.items():
        keys = dict.fromkeys(key for column in columns for key in column)
        values = {
            key: [column.get(key, ABSENT) for column in columns]
            for key in keys
            if key.partition(".")[0] not in UNCOMPARED.get(kind, ())
        }
        unequal = {key: row for key, row in values.items() if not all(_same(value, row[0]) for value in row)}
        differing[kind] = [{kind: key, **dict(zip(letters, row, strict=True))} for key, row in unequal.items()]
        equal[kind] = len(values) - len(unequal)
    for row in differing["metrics"]:
        row.update(_distances(row, letters))
    return Comparison(runs, differing, equal)


def _config(folder: RunFolder) -> Row:
    path = folder.path / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error}); the file was damaged") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} does not hold a configuration; the file was damaged")
    return config


def _same(one: Any, other: Any) -> bool:
    return one == other or (one != one and other != other)  # two NaN are the same outcome


def _distances(row: Row, letters: Sequence[str]) -> Row:
    """Each later run's number against the first's: difference and ratio; nothing where one is no number."""
    first, *others = letters
    found: Row = {}
    for letter in others:
        pair = row[first], row[letter]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in pair)
        found[f"{letter} - {first}"] = pair[1] - pair[0] if numbers else None
        found[f"{letter} / {first}"] = pair[1] / pair[0] if numbers and pair[0] else None
    return found


def parts(comparison: Comparison) -> list[Part]:
    """The comparison as blocks of a page."""
    found = [heading(1, "Runs compared"), table(["run", "recipe", "finished", "folder"], comparison.runs)]
    for kind, rows in comparison.differing.items():
        found.append(heading(2, kind.capitalize()))
        if rows:
            found.append(table(list(rows[0]), rows, right=set(comparison.letters) if kind == "metrics" else ()))
        found.append(paragraph(_summary(comparison, kind), "caption"))
    return found


def print_comparison(comparison: Comparison) -> None:
    """The same on the terminal."""
    print_table(["run", "recipe", "finished", "folder"], comparison.runs)
    for kind, rows in comparison.differing.items():
        print()
        if rows:
            print_table(list(rows[0]), rows, right=set(comparison.letters) if kind == "metrics" else ())
        print(_summary(comparison, kind))


def _summary(comparison: Comparison, kind: str) -> str:
    differ, equal = len(comparison.differing[kind]), comparison.equal[kind]
    if not differ and not equal:
        return f"{kind}: none recorded"
    return f"{kind}: {differ} differ{'s' if differ == 1 else ''}, {equal} equal"


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write compare.html and compare.md into `out`. Returns the path of compare.html."""
    page = document("Runs compared", parts(comparison))
    write_atomic(out / "compare.md", page.markdown)
    write_atomic(out / "compare.html", page.html)
    return out / "compare.html"
