"""The report of one run: `report.html`, a single file that needs nothing else, and `report.md`, the same in text.

Every block below returns a `Part`, its HTML beside its Markdown, so that the two cannot drift apart. Whatever the run
did not leave behind is said in a sentence; only config.yaml is required. All text from files is escaped, and the
page's own policy forbids scripts and network, so a report from a stranger is safe to open.
"""

import base64
import csv
import html
import math
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from edgetrain.errors import UserError, listing
from edgetrain.folder import Row, RunFolder, write_atomic
from edgetrain.report.figures import line_chart, panel_chart

MOST_TILES = 8  # metrics shown large; the others are in a table to unfold
MOST_PANELS = 9  # logged quantities drawn besides the losses
MOST_FILES = 60  # a sharded checkpoint can have hundreds
REPORTS = {"report.html", "report.md"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
VERDICTS = {"seen": ("good", "✓ seen"), "not seen": ("bad", "✗ not seen"), "undecided": ("note", "? undecided")}
MARKS = {"good": ("{+", "+}"), "bad": ("[-", "-]"), "note": ("(*", "*)")}  # span styles in Markdown


class Part(NamedTuple):
    """One block of the report in both forms."""

    html: str
    markdown: str


def write_report(folder: RunFolder) -> Path:
    """Write report.html and report.md, and the training curves to figures/. Returns the path of report.html.

    Raises UserError when a file of the run is damaged or the report cannot be written.
    """
    try:
        config = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder.path / 'config.yaml'} cannot be read ({error}); is this a run folder?") from error
    name = str(config.get("recipe") or folder.path.parent.name) if isinstance(config, dict) else folder.path.parent.name
    environment = _flat(_read(folder, "environment.json", {}))
    parts = [
        *_opening(folder, name, config, environment),
        *_results(folder),
        *_items(folder),
        *_training(folder),
        *_how_it_was_run(folder, environment),
    ]
    style = files("edgetrain").joinpath("report", "style.css").read_text(encoding="utf-8")
    head = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(name)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
    )
    body = "\n".join(part.html for part in parts)
    write_atomic(folder.path / "report.md", "\n\n".join(part.markdown for part in parts if part.markdown) + "\n")
    write_atomic(folder.path / "report.html", f"{head}{body}\n</body>\n</html>\n")
    return folder.path / "report.html"


# The sections, in order.


def _opening(folder: RunFolder, name: str, config: Any, environment: Row) -> Iterator[Part]:
    yield _heading(1, name)
    if isinstance(config, dict) and config.get("description"):
        yield _paragraph(str(config["description"]))
    try:
        started = datetime.strptime(folder.path.name[:15], "%Y%m%d-%H%M%S")
    except ValueError:  # a folder chosen with out=DIR
        started = datetime.fromtimestamp((folder.path / "config.yaml").stat().st_mtime)
    yield _paragraph(f"Run of {started:%Y-%m-%d %H:%M}.", "quiet")
    if environment.get("command"):
        yield _paragraph("Run again with:", "quiet")
        yield _code(str(environment["command"]))
    else:
        yield _paragraph("The command that made this run was not recorded.", "quiet")


def _results(folder: RunFolder) -> Iterator[Part]:
    yield _heading(2, "Results")
    claims = _read(folder, "claims.json", [])
    if claims:
        names = {"effect": "effect", "paper": "the paper", "measured": "measured", "verdict": "verdict", "note": "note"}
        rows = [{title: claim.get(key) for key, title in names.items()} for claim in claims]
        for row in rows:
            row["measured"] = "not measured" if row["measured"] is None else row["measured"]
        columns = [title for title in names.values() if title != "note" or any(row["note"] for row in rows)]
        yield _table(columns, rows, badges="verdict")
    else:
        yield _paragraph("No claim of a paper was checked in this run.", "quiet")
    metrics = _flat(_read(folder, "metrics.json", {}))
    if not metrics:
        yield _paragraph("No metrics were measured.", "quiet")
        return
    tiles = [(html.escape(key), html.escape(_cell(value))) for key, value in list(metrics.items())[:MOST_TILES]]
    tile_html = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in tiles)
    table = _table(["metric", "value"], [{"metric": key, "value": value} for key, value in metrics.items()])
    every = _details(f"all {len(metrics)} metrics", table).html if len(metrics) > MOST_TILES else ""
    yield Part(f'<dl class="tiles">{tile_html}</dl>{every}', table.markdown)


def _items(folder: RunFolder) -> Iterator[Part]:
    """What the measurements left in report.json, in their order."""
    for item in _read(folder, "report.json", []):
        try:
            kind, name, title, caption = item["kind"], item["name"], item["title"], item.get("caption", "")
            yield _heading(2, title)
            if kind == "figure":
                yield _figure(folder, name, title, caption)
            elif kind == "table":
                yield _csv_table(folder, name, item.get("grey"))
                yield _paragraph(caption, "caption")
            elif kind == "spans":
                yield _spans([(text, style) for text, style in item["spans"]], item["legend"])
                yield _paragraph(caption, "caption")
            else:
                yield _paragraph(f"An item of unknown kind {kind!r} is not shown.", "quiet")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{folder.path / 'report.json'} has a damaged item ({error!r}); run the measurement again"
            ) from error


def _training(folder: RunFolder) -> Iterator[Part]:
    """Curves over the steps, from Lightning's CSVLogger: sparse columns, a row per logging call."""
    yield _heading(2, "Training")
    series = _logged_series(folder)
    drawable = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    losses = {n: points for n, points in drawable.items() if points and re.search(r"(^|/)loss(_step|_epoch)?$", n)}
    others = {n: points for n, points in drawable.items() if len(points) > 1 and n not in losses}
    if losses:
        write_atomic(folder.path / "figures" / "training_loss.png", line_chart(losses, "step", "loss"))
        yield _figure(folder, "training_loss", "Loss during training", "Loss against the optimiser's step.")
    else:
        yield _paragraph("No training curve was logged.", "quiet")
    if others:
        panels = dict(list(others.items())[:MOST_PANELS])
        write_atomic(folder.path / "figures" / "training_other.png", panel_chart(panels, "step"))
        left_out = list(others)[MOST_PANELS:]
        caption = f"Not drawn: {listing(left_out)}; see logs/." if left_out else ""
        yield _figure(folder, "training_other", "Other quantities logged during training", caption)
    for name, points in series.items():
        lost = [step for step, value in points if not math.isfinite(value)]
        if lost:
            where = f"{len(lost)} of {len(points)} rows, first at step {lost[0]:g}"
            yield _paragraph(f"{name} was not a finite number in {where}.")


def _how_it_was_run(folder: RunFolder, environment: Row) -> Iterator[Part]:
    yield _heading(2, "How it was run")
    if environment:
        yield _table(["environment", "value"], [{"environment": key, "value": environment[key]} for key in environment])
    else:
        yield _paragraph("The environment was not recorded.", "quiet")
    yield _details("the full configuration", _code((folder.path / "config.yaml").read_text(encoding="utf-8")))
    kept = [path for path in sorted(folder.path.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    kept = [path for path in kept if path.name not in REPORTS]
    rows = [{"file": _relative(folder, path), "size": _size(path.stat().st_size)} for path in kept[:MOST_FILES]]
    yield _table(["file", "size"], rows, right={"size"})
    if len(kept) > MOST_FILES:
        yield _paragraph(f"and {len(kept) - MOST_FILES} more files.", "caption")


# The blocks: each in both forms.


def _heading(level: int, text: str) -> Part:
    return Part(f"<h{level}>{html.escape(text)}</h{level}>", f"{'#' * level} {_escape(text)}")


def _paragraph(text: str, style: str = "") -> Part:
    return Part(f'<p class="{style}">{html.escape(text)}</p>', _escape(text)) if text else Part("", "")


def _code(text: str) -> Part:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Part(f"<pre>{html.escape(text.rstrip())}</pre>", f"{fence}\n{text.rstrip()}\n{fence}")


def _details(summary: str, part: Part) -> Part:
    fold = f"<details>\n<summary>{html.escape(summary)}</summary>\n"
    return Part(f"{fold}{part.html}\n</details>", f"{fold}\n{part.markdown}\n\n</details>")


def _figure(folder: RunFolder, name: str, title: str, caption: str) -> Part:
    path = _inside(folder, "figures", f"{name}.png")
    if not path.is_file():
        return _paragraph(f"The figure figures/{name}.png is missing.", "quiet")
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
    figcaption = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    link = f"![{_escape(title)}]({quote(_relative(folder, path))})"
    return Part(f"<figure>{image}{figcaption}</figure>", f"{link}\n\n{_escape(caption)}".strip())


def _csv_table(folder: RunFolder, name: str, grey: str | None) -> Part:
    path = _inside(folder, "tables", f"{name}.csv")
    if not path.is_file():
        return _paragraph(f"The table tables/{name}.csv is missing.", "quiet")
    rows = _read_csv(path)
    if not rows:
        return _paragraph(f"The table tables/{name}.csv is empty.", "quiet")
    greyed = {number for number, row in enumerate(rows) if row.get(grey or "", "").lower() in ("true", "1", "yes")}
    parsed = [{column: _parsed(text) for column, text in row.items()} for row in rows]
    table = _table([column for column in rows[0] if column != grey], parsed, greyed=greyed)
    if not greyed:
        return table
    note = _paragraph(f"Greyed: {grey}.", "caption").html
    return Part(f"{table.html}\n{note}", f"{table.markdown}\n\n{_escape(f'In italics: {grey}.')}")


def _table(
    columns: Sequence[str],
    rows: Sequence[Row],
    *,
    greyed: Collection[int] = (),
    badges: str | None = None,
    right: Collection[str] = (),
) -> Part:
    """Columns of numbers, and those named in `right`, stand right.

    `greyed` holds the numbers of the rows to grey; `badges` names the column of verdicts.
    """
    numeric = {column for column in columns if _mostly_numbers([row.get(column) for row in rows])} | set(right)
    classes = {column: ' class="number"' if column in numeric else "" for column in columns}
    head = "".join(f"<th{classes[column]}>{html.escape(column)}</th>" for column in columns)
    lines = [
        "| " + " | ".join(_escape(column) for column in columns) + " |",
        "|" + "|".join("---:" if column in numeric else "---" for column in columns) + "|",
    ]
    body = []
    for number, row in enumerate(rows):
        cells = {column: _cell(row.get(column)) for column in columns}
        shown = {column: html.escape(text) for column, text in cells.items()}
        if badges:
            style, cells[badges] = VERDICTS.get(cells[badges], ("note", cells[badges]))
            shown[badges] = f'<span class="badge {style}">{html.escape(cells[badges])}</span>'
        row_class = ' class="grey"' if number in greyed else ""
        body.append(f"<tr{row_class}>{''.join(f'<td{classes[c]}>{shown[c]}</td>' for c in columns)}</tr>")
        texts = [_escape(cells[column]) for column in columns]
        lines.append("| " + " | ".join(f"*{text}*" if row_class and text else text for text in texts) + " |")
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n</table>"
    return Part(f'<div class="scroll" tabindex="0">{table}</div>', "\n".join(lines))


def _spans(spans: Sequence[tuple[str, str]], legend: dict[str, str]) -> Part:
    """Running text; the Markdown has marks around what the HTML colours."""
    coloured, marked = "", ""
    for text, style in spans:
        coloured += f'<span class="{style}">{html.escape(text)}</span>' if style in MARKS else html.escape(text)
        before, after = MARKS.get(style, ("", ""))
        marked += before + text + after
    keys = [f'<span class="{html.escape(style)}">{html.escape(meaning)}</span>' for style, meaning in legend.items()]
    meanings = [
        f"`{'text'.join(MARKS[style])}` {_escape(meaning)}" if style in MARKS else f"`text` {_escape(meaning)}"
        for style, meaning in legend.items()
    ]
    body = Part(f'<pre class="spans">{coloured}</pre>', _code(marked).markdown)
    return Part(f'{body.html}\n<p class="legend">{"".join(keys)}</p>', f"{body.markdown}\n\n{'; '.join(meanings)}")


# Reading and writing values.


def _read(folder: RunFolder, name: str, default: Any) -> Any:
    """A JSON file of the default's type, list of mappings or mapping. Raises UserError for anything else."""
    value = folder.read_json(name, default)
    entries = value if isinstance(default, list) else [value]
    if not isinstance(value, type(default)) or not all(isinstance(entry, dict) for entry in entries):
        expected = "a list of mappings" if isinstance(default, list) else "a mapping"
        raise UserError(f"{folder.path / name} should hold {expected}; run the command that made it again")
    return value


def _read_csv(path: Path) -> list[dict[str, str]]:
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


def _logged_series(folder: RunFolder) -> dict[str, list[tuple[float, float]]]:
    """Every logged quantity as (step, value)."""
    series: dict[str, list[tuple[float, float]]] = {}
    for step, values in folder.training_curves():
        for name, value in values.items():
            series.setdefault(name, []).append((step, value))
    return series


def _flat(tree: Row, prefix: str = "") -> Row:
    """Nested mappings as one, keys joined by dots; a list of words becomes a command line."""
    flat: Row = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = shlex.join(map(str, value)) if isinstance(value, list) else value
    return flat


def _inside(folder: RunFolder, *parts: str) -> Path:
    """A path below the run folder. Raises UserError for a name that leads out of it."""
    path = folder.path.joinpath(*parts).resolve()
    if not path.is_relative_to(folder.path.resolve()):
        raise UserError(f"{folder.path / 'report.json'} names a file outside the run folder: {'/'.join(parts)}")
    return path


def _relative(folder: RunFolder, path: Path) -> str:
    return path.relative_to(folder.path.resolve()).as_posix()


def _parsed(text: str) -> int | float | str:
    """A cell of a CSV file as the number that it looks like; "007" and "1.2.3" do not."""
    if re.fullmatch(r"-?(0|[1-9]\d{0,30})", text):
        return int(text)
    if re.fullmatch(r"[-+]?(0|[1-9]\d*)(\.\d*)?([eE][-+]?\d+)?|nan|-?inf", text):
        return float(text)
    return text


def _cell(value: object) -> str:
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


def _mostly_numbers(values: Sequence[object]) -> bool:
    known = [value for value in values if value not in (None, "")]
    numbers = [value for value in known if isinstance(value, int | float) and not isinstance(value, bool)]
    return 2 * len(numbers) > len(known)


def _size(number_of_bytes: int) -> str:
    size, units = float(number_of_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def _escape(text: str) -> str:
    """Text as Markdown that shows it unchanged: no markup, no HTML, one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*|\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)
