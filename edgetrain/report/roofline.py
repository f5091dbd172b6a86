"""Rooflines (Williams et al. 2009): what every layer attains, under the two limits of its device."""

import math

from edgetrain.errors import UserError
from edgetrain.report.canvas import COLOURS, MARKERS, QUIET, WIDTH, empty_figure, house_style, png

Points = dict[str, list[tuple[float, float]]]  # kind of layer -> (intensity, rate)


@house_style
def roofline_chart(
    panels: dict[str, tuple[Points, float | None, float | None]], x_label: str, y_label: str, *, columns: int = 2
) -> bytes:
    """A panel for every device: points (intensity, rate) by kind, the highest rate, and the memory's bandwidth.

    Without a bandwidth the roof is flat, without a highest rate there is none. Points that are not finite and positive
    are left out, and so is a device without points; raises UserError when none is left.
    """
    shown = {
        device: ({kind: kept for kind, points in kinds.items() if (kept := _positive(points))}, peak, bandwidth)
        for device, (kinds, peak, bandwidth) in panels.items()
    }
    shown = {device: panel for device, panel in shown.items() if panel[0]}
    if not shown:
        raise UserError("there is nothing to draw: no device has a layer with a rate and an intensity above zero")
    kinds = list(dict.fromkeys(kind for points, *_ in shown.values() for kind in points))
    styles = {kind: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, kind in enumerate(kinds)}
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = empty_figure(WIDTH, 0.9 + 2.9 * rows)
    handles = {}
    for number, (device, (points, peak, bandwidth)) in enumerate(shown.items()):
        axes = figure.add_subplot(rows, columns, number + 1, xscale="log", yscale="log")
        axes.set_title(device, loc="left", fontsize=10, color="#1f2937")
        for kind, pairs in points.items():
            colour, marker = styles[kind]
            x, y = zip(*pairs, strict=True)
            line = axes.plot(x, y, linestyle="", marker=marker, color=colour, markeredgecolor="white", markersize=6.5)
            handles.setdefault(kind, line[0])
        if peak:
            axes.plot(*zip(*roof(peak, bandwidth, *axes.get_xlim()), strict=True), color=QUIET, linewidth=1.4)
    figure.supxlabel(x_label, fontsize=9.5, color="#1f2937")
    figure.supylabel(y_label, fontsize=9.5, color="#1f2937")
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=6, fontsize=9)
    return png(figure)


def _positive(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if 0 < x < math.inf and 0 < y < math.inf]


def roof(peak: float, bandwidth: float | None, low: float, high: float) -> list[tuple[float, float]]:
    """The line from intensity `low` to `high` under both limits, drawn on to where it bends."""
    if not bandwidth:
        return [(low, peak), (high, peak)]
    ridge = peak / bandwidth
    low, high = min(low, ridge), max(high, 2 * ridge)
    return [(low, low * bandwidth), (ridge, peak), (high, peak)]
