"""The report of one run: `report.html`, a single file that needs nothing else, and `report.md`, the same in text.

Every block below returns a `Part`, its HTML beside its Markdown, so that the two cannot drift apart. Whatever the run
did not leave behind is said in a sentence; only config.yaml is required. All text from files is escaped, and the
page's own policy forbids scripts and network, so a report from a stranger is safe to open.
"""

import html
import math
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from edgetrain.errors import UserError, listing
from edgetrain.folder import Row, RunFolder, write_atomic
from edgetrain.report.blocks import Part, code, csv_table, details, document, figure, heading, paragraph, spans, table
from edgetrain.report.figures import line_chart, panel_chart
from edgetrain.report.values import cell, flat, logged_series, read, relative, size

MOST_TILES = 8  # metrics shown large; the others are in a table to unfold
MOST_PANELS = 9  # logged quantities drawn besides the losses
MOST_FILES = 60  # a sharded checkpoint can have hundreds
REPORTS = {"report.html", "report.md"}


def write_report(folder: RunFolder) -> Path:
    """Write report.html and report.md, and the training curves to figures/. Returns the path of report.html.

    Raises UserError when a file of the run is damaged or the report cannot be written.
    """
    try:
        config = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder.path / 'config.yaml'} cannot be read ({error}); is this a run folder?") from error
    name = str(config.get("recipe") or folder.path.parent.name) if isinstance(config, dict) else folder.path.parent.name
    environment = flat(read(folder, "environment.json", {}))
    parts = [
        *_opening(folder, name, config, environment),
        *_results(folder),
        *_items(folder),
        *([] if folder.is_study else _training(folder)),  # its runs have reports of their own
        *_how_it_was_run(folder, environment),
    ]
    page = document(name, parts)
    write_atomic(folder.path / "report.md", page.markdown)
    write_atomic(folder.path / "report.html", page.html)
    return folder.path / "report.html"


# The sections, in order.


def _opening(folder: RunFolder, name: str, config: Any, environment: Row) -> Iterator[Part]:
    yield heading(1, name)
    if isinstance(config, dict) and config.get("description"):
        yield paragraph(str(config["description"]))
    try:
        started = datetime.strptime(folder.path.name[:15], "%Y%m%d-%H%M%S")
    except ValueError:  # a folder chosen with out=DIR
        started = datetime.fromtimestamp((folder.path / "config.yaml").stat().st_mtime)
    yield paragraph(f"Run of {started:%Y-%m-%d %H:%M}.", "quiet")
    if environment.get("command"):
        yield paragraph("Run again with:", "quiet")
        yield code(str(environment["command"]))
    else:
        yield paragraph("The command that made this run was not recorded.", "quiet")


def _results(folder: RunFolder) -> Iterator[Part]:
    yield heading(2, "Results")
    claims = read(folder, "claims.json", [])
    if claims:
        names = {"effect": "effect", "paper": "the paper", "measured": "measured", "verdict": "verdict", "note": "note"}
        rows = [{title: claim.get(key) for key, title in names.items()} for claim in claims]
        for row in rows:
            row["measured"] = "not measured" if row["measured"] is None else row["measured"]
        columns = [title for title in names.values() if title != "note" or any(row["note"] for row in rows)]
        yield table(columns, rows, badges="verdict")
    else:
        yield paragraph("No claim of a paper was checked in this run.", "quiet")
    metrics = flat(read(folder, "metrics.json", {}))
    if not metrics:
        yield paragraph("No metrics were measured.", "quiet")
        return
    tiles = [(html.escape(key), html.escape(cell(value))) for key, value in list(metrics.items())[:MOST_TILES]]
    tile_html = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in tiles)
    listed = table(["metric", "value"], [{"metric": key, "value": value} for key, value in metrics.items()])
    every = details(f"all {len(metrics)} metrics", listed).html if len(metrics) > MOST_TILES else ""
    yield Part(f'<dl class="tiles">{tile_html}</dl>{every}', listed.markdown)


def _items(folder: RunFolder) -> Iterator[Part]:
    """What the measurements left in report.json, in their order."""
    for item in read(folder, "report.json", []):
        try:
            kind, name, title, caption = item["kind"], item["name"], item["title"], item.get("caption", "")
            yield heading(2, title)
            if kind == "figure":
                yield figure(folder, name, title, caption)
            elif kind == "table":
                yield csv_table(folder, name, item.get("grey"))
                yield paragraph(caption, "caption")
            elif kind == "spans":
                yield spans([(text, style) for text, style in item["spans"]], item["legend"])
                yield paragraph(caption, "caption")
            else:
                yield paragraph(f"An item of unknown kind {kind!r} is not shown.", "quiet")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{folder.path / 'report.json'} has a damaged item ({error!r}); run the measurement again"
            ) from error


def _training(folder: RunFolder) -> Iterator[Part]:
    """Curves over the steps, from Lightning's CSVLogger: sparse columns, a row per logging call."""
    yield heading(2, "Training")
    series = logged_series(folder)
    drawable = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    losses = {n: points for n, points in drawable.items() if points and re.search(r"(^|/)loss(_step|_epoch)?$", n)}
    others = {n: points for n, points in drawable.items() if len(points) > 1 and n not in losses}
    if losses:
        write_atomic(folder.path / "figures" / "training_loss.png", line_chart(losses, "step", "loss"))
        yield figure(folder, "training_loss", "Loss during training", "Loss against the optimiser's step.")
    else:
        yield paragraph("No training curve was logged.", "quiet")
    if others:
        panels = dict(list(others.items())[:MOST_PANELS])
        write_atomic(folder.path / "figures" / "training_other.png", panel_chart(panels, "step"))
        left_out = list(others)[MOST_PANELS:]
        caption = f"Not drawn: {listing(left_out)}; see logs/." if left_out else ""
        yield figure(folder, "training_other", "Other quantities logged during training", caption)
    for name, points in series.items():
        lost = [step for step, value in points if not math.isfinite(value)]
        if lost:
            where = f"{len(lost)} of {len(points)} rows, first at step {lost[0]:g}"
            yield paragraph(f"{name} was not a finite number in {where}.")


def _how_it_was_run(folder: RunFolder, environment: Row) -> Iterator[Part]:
    yield heading(2, "How it was run")
    if environment:
        yield table(["environment", "value"], [{"environment": key, "value": environment[key]} for key in environment])
    else:
        yield paragraph("The environment was not recorded.", "quiet")
    yield details("the full configuration", code((folder.path / "config.yaml").read_text(encoding="utf-8")))
    kept = [path for path in sorted(folder.path.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    kept = [path for path in kept if path.name not in REPORTS and folder.path / "runs" not in path.parents]
    rows = [{"file": relative(folder, path), "size": size(path.stat().st_size)} for path in kept[:MOST_FILES]]
    yield table(["file", "size"], rows, right={"size"})
    if len(kept) > MOST_FILES:
        yield paragraph(f"and {len(kept) - MOST_FILES} more files.", "caption")
