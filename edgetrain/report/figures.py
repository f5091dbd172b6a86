"""Generic charts: plain numbers in, PNG bytes out, one style for the whole house.

Markers and line styles differ as well as colours. Axis labels carry the units: "latency (ms)".

A point that is not finite, or not above zero on a logarithmic axis, is left out, and so is a series without points.
When nothing at all is left, every chart raises UserError.
"""

import math
from collections.abc import Collection, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator

from edgetrain.report.canvas import (
    COLOURS,
    DASHES,
    HATCHES,
    MARKERS,
    PLAIN_NUMBERS,
    QUIET,
    WIDTH,
    drawable,
    empty_figure,
    house_style,
    png,
    require,
    sheet,
)

Point = tuple[float, float]
Series = dict[str, list[Point]]

MOST_END_LABELS = 8  # more lines than this get a legend beside the axes
MOST_TICKS = 6  # whole numbers that all stand at an upright axis


@house_style
def line_chart(
    series: Series,
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = False,
    dots: Collection[str] = (),
    bands: Series | None = None,
    reference: dict[str, float] | None = None,
    boxes: dict[str, float] | None = None,
) -> bytes:
    """Lines over a common x axis, each labelled at its end; the series named in `dots` are points without a line.

    `bands` holds (low, high) for every point of a series, drawn as a tint; `reference` names horizontal dashed lines;
    `boxes` names limits on x, each the right edge of a tinted area. Raises ValueError when a band and its series differ
    in length.
    """
    figure, axes = sheet(WIDTH, 3.9, log_x, log_y)
    axes.set(xlabel=x_label, ylabel=y_label)
    ends: list[tuple[float, str, str]] = []
    for number, (name, points) in enumerate(series.items()):
        band = (bands or {}).get(name) or [(y, y) for _, y in points]
        rows = [
            (x, y, low, high)
            for (x, y), (low, high) in zip(points, band, strict=True)
            if drawable(x, log_x) and drawable(y, log_y)
        ]
        if not rows:
            continue
        x, y, low, high = zip(*rows, strict=True)
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        marker = MARKERS[number % len(MARKERS)] if markers or len(rows) == 1 or name in dots else None
        axes.plot(x, y, color=colour, linestyle="" if name in dots else dash, marker=marker, label=name)
        if name in (bands or {}):
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        ends.append((y[-1], name, colour))
    require(ends, series)
    if not log_x and all(float(x).is_integer() for points in series.values() for x, _ in points):
        long = max(x for points in series.values() for x, _ in points) >= 1e5  # numbers that would touch
        axes.xaxis.set_major_locator(MaxNLocator(5 if long else "auto", integer=True))
    if boxes:
        left = axes.get_xlim()[0]
        for name, limit in boxes.items():
            axes.axvspan(left, limit, color=QUIET, alpha=0.09, linewidth=0, zorder=0)
            axes.axvline(limit, color=QUIET, linewidth=0.8, zorder=0)
            axes.annotate(
                name,
                (limit, 1),
                (-4, -4),
                textcoords="offset points",
                ha="right",
                va="top",
                xycoords=("data", "axes fraction"),
                color=QUIET,
                fontsize=9,
            )
        axes.set_xlim(left=left)
    for name, level in (reference or {}).items():
        axes.axhline(level, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.2, label=name)
        ends.append((level, name, QUIET))
    if len(ends) > MOST_END_LABELS:
        figure.legend(loc="outside right upper", fontsize=9)
    elif len(ends) > 1:
        _label_ends(axes, ends)
    return png(figure)


@house_style
def panel_chart(series: Series, x_label: str, *, columns: int = 3) -> bytes:
    """Small panels, one a series, each with its own y axis: for quantities in different units."""
    drawn = {name: [p for p in points if drawable(p[0]) and drawable(p[1])] for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    require(drawn, series)
    columns = min(columns, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = empty_figure(WIDTH, 0.4 + 1.75 * rows)
    for number, (name, points) in enumerate(drawn.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.plot(*zip(*points, strict=True), color=COLOURS[0], linewidth=1.5, marker="o" if len(points) == 1 else None)
        axes.set_title(name, loc="left", fontsize=9.5, color="#1f2937")
        axes.tick_params(labelsize=8.5)
        axes.locator_params(nbins=4)
        axes.yaxis.set_major_formatter(PLAIN_NUMBERS)
    figure.supxlabel(x_label, fontsize=9.5, color="#1f2937")
    return png(figure)


@house_style
def bar_chart(
    series: dict[str, dict[str, float | None]],
    value_label: str,
    *,
    stacked: bool = False,
    log: bool = False,
    spread: dict[str, dict[str, float]] | None = None,
    reference: dict[str, float] | None = None,
    value_format: str = ".3g",
) -> bytes:
    """Horizontal bars, so that names stay readable: `series` maps a colour's name to {category: value}.

    Each bar has its number at the end; stacked bars have their total. A value of None leaves its place empty.
    `spread` holds the half length of an error bar, in the value's unit; `reference` names vertical dashed lines.
    """
    categories = list(dict.fromkeys(category for values in series.values() for category in values))
    bars_per_category = 1 if stacked else len(series)
    figure, axes = sheet(WIDTH, 1.1 + 0.32 * len(categories) * (bars_per_category + 0.5), log_x=log)
    thickness = 0.8 / max(bars_per_category, 1)
    left = dict.fromkeys(categories, 0.0)
    drawn = []
    for number, (name, values) in enumerate(series.items()):
        shown = {c: value for c, value in values.items() if value is not None and drawable(value, log)}
        if not shown:
            continue
        drawn.append(name)
        shift = 0 if stacked else thickness * (number - (len(series) - 1) / 2)
        places = [categories.index(category) + shift for category in shown]
        starts = [left[category] for category in shown] if stacked else None
        errors = [spread[name].get(category, 0.0) for category in shown] if name in (spread or {}) else None
        bars = axes.barh(
            places,
            list(shown.values()),
            height=thickness * 0.92,
            left=starts,
            xerr=errors,
            color=COLOURS[number % len(COLOURS)],
            hatch=HATCHES[number // len(COLOURS) % len(HATCHES)],
            edgecolor="white",
            linewidth=0.4,
            error_kw={"ecolor": QUIET, "capsize": 2.5, "elinewidth": 1.2},
            label=name,
        )
        left |= {category: left[category] + value for category, value in shown.items()}
        if not stacked:
            axes.bar_label(bars, [format(value, value_format) for value in shown.values()], padding=3, fontsize=9)
    require(drawn, series)
    if stacked:
        for place, total in enumerate(left.values()):
            axes.annotate(
                format(total, value_format), (total, place), (3, 0), textcoords="offset points", va="center", fontsize=9
            )
    for name, level in (reference or {}).items():
        axes.axvline(level, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.2, label=name)
    axes.set(xlabel=value_label, yticks=range(len(categories)), yticklabels=categories)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    below = [value for values in series.values() for value in values.values() if value is not None and value < 0]
    if below and not log:
        low, high = axes.get_xlim()
        axes.set_xlim(left=min(low, min(below) - 0.14 * (high - low)))  # room for their numbers
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    if len(drawn) > 1 or reference:
        figure.legend(loc="outside upper left", ncols=4, fontsize=9.5)
    return png(figure)


@house_style
def heatmap(
    values: Sequence[Sequence[float | None]],
    x_ticks: Sequence[object],
    y_ticks: Sequence[object],
    x_label: str,
    y_label: str,
    value_format: str = ".2f",
    *,
    value_label: str = "",
) -> bytes:
    """A grid with the number printed in every cell; None, or a value that is not finite, is a hatched grey cell.

    `values[row][column]` belongs to `y_ticks[row]` and `x_ticks[column]`; the first row is at the top. `value_label`
    names the colour scale. Raises ValueError when the grid does not fit its ticks.
    """
    if len(values) != len(y_ticks) or any(len(row) != len(x_ticks) for row in values):
        raise ValueError(f"a heat map of {len(y_ticks)} by {len(x_ticks)} ticks needs a grid of that size")
    grid = [[value if value is not None and math.isfinite(value) else math.nan for value in row] for row in values]
    finite = [value for row in grid for value in row if math.isfinite(value)]
    require(finite, [value_label or "the grid"])
    column = max(0.72, *(0.11 * len(str(tick)) for tick in x_ticks))  # inches, so that neighbours' names stay apart
    margin = max(1.9, *(1.1 + 0.085 * len(str(tick)) for tick in y_ticks))
    row = 0.46 if len(y_ticks) <= 12 else 0.3
    crowded = margin + column * len(x_ticks) > WIDTH  # their names would run into each other
    figure, axes = sheet(max(3.6, min(WIDTH, margin + column * len(x_ticks))), 1.2 + row * len(y_ticks))
    image = axes.imshow(grid, cmap="Blues", aspect="auto")
    low, high = min(finite), max(finite)
    for row, cells in enumerate(grid):
        for column, value in enumerate(cells):
            if math.isnan(value):
                corner = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, facecolor="#e5e7eb", edgecolor="#9ca3af", hatch="///", lw=0))
                continue
            colour = "white" if high > low and (value - low) / (high - low) > 0.65 else "#1f2937"
            axes.text(column, row, format(value, value_format), ha="center", va="center", color=colour, fontsize=9.5)
    axes.set(xlabel=x_label, ylabel=y_label)
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(range(len(x_ticks)), [str(tick) for tick in x_ticks], **slanted)
    axes.set_yticks(range(len(y_ticks)), [str(tick) for tick in y_ticks])
    axes.set_xticks([i - 0.5 for i in range(1, len(x_ticks))], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, len(y_ticks))], minor=True)
    axes.grid(False)
    axes.grid(True, which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, label=value_label, pad=0.02, aspect=22)
    bar.outline.set_visible(False)
    return png(figure)


@house_style
def scatter_chart(
    series: Series,
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    diagonal: str | None = None,
    bounds: dict[str, list[float]] | None = None,
) -> bytes:
    """Points; `diagonal` names a dashed line y = x; `bounds` gives points a tick at the y that they may not cross.

    Raises ValueError when a series and its bounds differ in length.
    """
    figure, axes = sheet(WIDTH, 4.4, log_x, log_y)
    axes.set(xlabel=x_label, ylabel=y_label)
    drawn = []
    for number, (name, points) in enumerate(series.items()):
        limits = (bounds or {}).get(name) or [math.nan] * len(points)
        pairs = zip(points, limits, strict=True)
        rows = [(x, y, limit) for (x, y), limit in pairs if drawable(x, log_x) and drawable(y, log_y)]
        if not rows:
            continue
        drawn.append(name)
        x, y, limit = zip(*rows, strict=True)
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.vlines(x, y, limit, color=colour, alpha=0.35, linewidth=1)
        axes.plot(x, limit, linestyle="", marker="_", color=colour, markersize=11, markeredgewidth=1.8)
        axes.plot(x, y, linestyle="", marker=marker, color=colour, markeredgecolor="white", markersize=7, label=name)
    require(drawn, series)
    if bounds:
        axes.plot([], [], linestyle="", marker="_", color=QUIET, markersize=11, markeredgewidth=1.8, label="bound")
    if diagonal:
        low, high = max(axes.get_xlim()[0], axes.get_ylim()[0]), min(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([low, high], [low, high], color=QUIET, linestyle=(0, (4, 3)), linewidth=1.2, label=diagonal)
    if len(drawn) > 1 or diagonal or bounds:
        figure.legend(loc="outside upper left", ncols=4, fontsize=9.5)
    return png(figure)


@house_style
def parallel_chart(
    columns: dict[str, Sequence[float | str]], *, log: Collection[str] = (), low_is_good: bool = True
) -> bytes:
    """Upright axes, one a column, and a line across them for every row, dark to light from the best of the last column.

    Columns of text have a place for each word; those named in `log` are logarithmic; the best row is drawn thick.
    Raises ValueError when columns differ in length.
    """
    rows = list(zip(*columns.values(), strict=True))
    rows = [
        row
        for row in rows
        if all(isinstance(v, str) or drawable(v, n in log) for n, v in zip(columns, row, strict=True))
    ]
    require(rows, columns)
    rows.sort(key=lambda row: row[-1] if low_is_good else -row[-1])
    figure, axes = sheet(max(WIDTH, 1.25 * len(columns)), 3.9)
    heights = []
    for place, (name, values) in enumerate(zip(columns, zip(*rows, strict=True), strict=True)):
        ups, ticks = upright(values, name in log)
        heights.append(ups)
        axes.plot([place, place], [0, 1], color=QUIET, linewidth=1, zorder=1)
        for up, text in ticks:
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
            axes.text(place - 0.03, up, text, ha="right", va="center", fontsize=8.5, zorder=4, bbox=box)
    for number, ups in reversed(list(enumerate(zip(*heights, strict=True)))):
        colour = colormaps["viridis"](0.9 * number / max(1, len(rows) - 1))
        axes.plot(range(len(columns)), ups, color=colour, linewidth=1.2 if number else 3.2, alpha=0.9, zorder=2)
    axes.set_xticks(range(len(columns)), list(columns), fontsize=9.5)
    axes.set(yticks=[], xlim=(-0.45, len(columns) - 0.85), ylim=(-0.06, 1.06))
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return png(figure)


def upright(values: Sequence[float | str], log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights of the values between 0 and 1, and (height, text) of the ticks."""
    if any(isinstance(value, str) for value in values):
        words = list(dict.fromkeys(map(str, values)))
        at = {word: (number + 0.5) / len(words) for number, word in enumerate(sorted(words))}
        return [at[str(value)] for value in values], [(up, word) for word, up in at.items()]
    low, high = min(values), max(values)
    if low == high:
        return [0.5] * len(values), [(0.5, f"{low:g}")]
    scale = math.log if log else float
    locator = LogLocator(subs=(1, 2, 5)) if log and high / low > 10 else MaxNLocator(5)
    marks = [mark for mark in locator.tick_values(low, high) if low <= mark <= high]
    few = sorted(set(values))
    if len(few) <= MOST_TICKS and all(float(value).is_integer() for value in few):
        marks = few
    marks = marks if len(marks) > 1 else [low, high]

    def up(value: float) -> float:
        return (scale(value) - scale(low)) / (scale(high) - scale(low))

    return [up(value) for value in values], [(up(mark), f"{mark:.4g}") for mark in marks]


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Write (y, text, colour) at the right edge, pushed apart where two would overlap."""
    axes.margins(x=0.02)
    low, high = axes.transScale.transform([(1, y) for y in axes.get_ylim()])[:, 1]
    gap = 0.065  # of the axes' height: one line of text
    placed = []
    for y, text, colour in sorted(ends):
        height = (axes.transScale.transform((1, y))[1] - low) / (high - low)
        placed.append([max(height, placed[-1][0] + gap) if placed else height, text, colour])
    ceiling = 1.0
    for label in reversed(placed):
        label[0] = min(label[0], ceiling)
        ceiling = label[0] - gap
    for height, text, colour in placed:
        axes.text(1.015, height, text, color=colour, transform=axes.transAxes, va="center", fontsize=9.5)
