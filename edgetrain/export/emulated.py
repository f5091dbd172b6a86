"""Artefacts run on other processors, under an emulator: fewer items, the same numbers, instructions by layer."""

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact, Emulation
from edgetrain.export.judging import held_out
from edgetrain.folder import Row, RunFolder
from edgetrain.report.figures import bar_chart
from edgetrain.tasks.predictions import Predictions

MOST_LAYERS = 8  # with a colour of their own in the figure; of more, kinds have one
CAPTION = (
    "Instructions of one inference, counted in the emulator. They are not cycles and not energy: an emulator has no "
    "caches, no wait states and issues one instruction at a time. A ratio between kernels holds for these flags, this "
    "compiler and this plain source (manifest.json has all three). Every kernel gave the same bytes."
)

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Emulated:
    """What an emulation said of each item, and a row for each layer of one inference."""

    emulation: Emulation
    predictions: Predictions
    layers: list[Row]

    @property
    def name(self) -> str:
        return f"{self.emulation.processor} {self.emulation.kernels}"

    @property
    def instructions(self) -> int:
        return sum(row["instructions"] for row in self.layers)

    def facts(self) -> Row:
        """For manifest.json."""
        each = self.emulation
        return {
            "processor": each.processor,
            "kernels": each.kernels,
            "items": len(self.predictions),
            "accuracy": self.predictions.accuracy,
            "instructions": self.instructions,
            "layers": self.layers,
            **dict(each.facts),
        }


def emulate(target: str, artefact: Artefact, task: Any, data: Any) -> list[Emulated]:
    """Every emulation of an artefact, on the first held-out items.

    Raises UserError when a processor gives other numbers than the artefact gives here.
    """
    done = []
    for emulation in artefact.emulations:
        parts, layers = [], []
        for batch in first_items(task, data, emulation.items):
            inputs = task.inputs(batch)
            found, layers = emulation.run(*inputs)
            expected = artefact.predict(*inputs)
            check_same(target, artefact, emulation, found, expected)
            parts.append(task.judged(lambda *_, logits=found: logits, batch))
        done.append(Emulated(emulation, parts[0].joined(parts), layers))
        console.print(
            f"  {artefact.name} on {emulation.processor} with {emulation.kernels} kernels, emulated: same numbers for "
            f"{len(done[-1].predictions)} items, {done[-1].instructions:,} instructions each"
        )
    return done


def first_items(task: Any, data: Any, items: int) -> list[tuple[Tensor, ...]]:
    """The held-out batches up to so many items, the last one cut."""
    batches = []
    for batch in held_out(task, data):
        batches.append(tuple(value[:items] for value in batch))
        items -= len(batches[-1][0])
        if items <= 0:
            break
    return batches


def check_same(target: str, artefact: Artefact, emulation: Emulation, found: Tensor, expected: Tensor) -> None:
    if torch.equal(found, expected):
        return
    differing = int((found != expected).flatten(1).any(1).sum())
    raise UserError(
        f"export.{target}: {artefact.name} on {emulation.processor} with {emulation.kernels} kernels gives other "
        f"numbers than on this machine for {differing} of {len(found)} items; nothing was exported"
    )


def remove_instructions(target: str, folder: RunFolder) -> None:
    """Of an earlier export; the dot keeps those of a target whose name begins alike."""
    folder.remove_items(f"instructions_{target}.")


def write_instructions(target: str, form: str, emulated: list[Emulated], folder: RunFolder) -> None:
    """tables/instructions_<target>.<form>.csv and its figure: layers down, processors and kernels across."""
    if not emulated:
        return
    rows: list[Row] = []
    for number, layer in enumerate(emulated[0].layers):
        counts = {each.name: each.layers[number]["instructions"] for each in emulated}
        rows.append({key: layer[key] for key in ("layer", "kind", "macs")} | counts)
    total = {each.name: each.instructions for each in emulated}
    rows.append({"layer": "total", "kind": None, "macs": sum(row["macs"] for row in rows), **total})
    name = f"instructions_{target}.{form}"
    folder.add_table(name, rows, f"Instructions of one inference, {form}", CAPTION)
    key = "layer" if len(rows) - 1 <= MOST_LAYERS else "kind"
    series: dict[str, dict[str, float | None]] = {}
    for row in rows[:-1]:
        bars = series.setdefault(row[key], dict.fromkeys(total, 0.0))
        for column in total:
            bars[column] += row[column] / 1e6
    png = bar_chart(series, "million instructions of one inference", stacked=True)
    folder.add_figure(name, png, f"Instructions by {key} on emulated processors, {form}", CAPTION)
