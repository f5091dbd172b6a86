"""Gantt charts: what runs where, and when."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgetrain.report.canvas import COLOURS, QUIET, WIDTH, house_style, png, require, sheet

MOST_LABELS = 60  # bars with their names in them; more would be unreadable
CHARACTER = 0.011  # of the chart's width, that a letter in a bar takes


class Bar(NamedTuple):
    """A piece of work: the row it is in, what gives it its colour, its name, and from when to when."""

    row: str
    group: str
    name: str
    start: float
    end: float


@house_style
def gantt_chart(
    bars: list[Bar], x_label: str, *, rows: Sequence[str] = (), reference: dict[str, float] | None = None
) -> bytes:
    """A row for each machine, a colour for each group; names where they fit into their bars.

    `rows` come first, idle ones too; `reference` names upright dashed lines, as a deadline. Bars that are not finite
    are left out, those without a length are not seen; raises UserError when nothing is left.
    """
    drawn = [bar for bar in bars if math.isfinite(bar.start) and math.isfinite(bar.end) and bar.end > bar.start]
    require(drawn, dict.fromkeys(bar.row for bar in bars))
    rows = list(dict.fromkeys([*rows, *(bar.row for bar in drawn)]))
    groups = list(dict.fromkeys(bar.group for bar in drawn))
    figure, axes = sheet(WIDTH, 1.15 + 0.46 * len(rows))
    lines = {name: at for name, at in (reference or {}).items() if math.isfinite(at)}
    width = max([bar.end for bar in drawn] + list(lines.values()))
    for number, group in enumerate(groups):
        own = [bar for bar in drawn if bar.group == group]
        axes.barh(
            [rows.index(bar.row) for bar in own],
            [bar.end - bar.start for bar in own],
            left=[bar.start for bar in own],
            height=0.62,
            color=COLOURS[number % len(COLOURS)],
            edgecolor="white",
            linewidth=0.6,
            label=group,
        )
    for bar in drawn if len(drawn) <= MOST_LABELS else ():
        if (bar.end - bar.start) / width > CHARACTER * (len(bar.name) + 1):
            middle = (bar.start + bar.end) / 2
            axes.text(middle, rows.index(bar.row), bar.name, ha="center", va="center", color="white", fontsize=8)
    for name, at in lines.items():
        axes.axvline(at, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.2, label=name)
    axes.set(xlabel=x_label, xlim=(0, width * 1.02), yticks=range(len(rows)), yticklabels=rows)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    if len(groups) > 1 or lines:
        figure.legend(loc="outside upper left", ncols=4, fontsize=9.5)
    return png(figure)
