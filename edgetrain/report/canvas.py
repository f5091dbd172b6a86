"""What every chart of the house is drawn on: one style, an empty figure, PNG bytes.

Drawn on matplotlib's own Figure and Agg canvas, never through pyplot: no window, no current figure left behind.
Colours are those of Okabe and Ito (2008), which readers with any colour vision can tell apart.
"""

import io
import math
from collections.abc import Iterable

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from edgetrain.errors import UserError, listing

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#4d4d4d", "#e69f00", "#56b4e9"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
DASHES = ["-", (0, (5, 2)), (0, (1, 1.5))]  # the next style when all colours are used up
HATCHES = ["", "///"]  # the same for bars
QUIET = "#6b7280"  # reference lines, missing cells, axes
DOTS_PER_INCH = 150
WIDTH = 7.2  # inches

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 10.5,
    "text.parse_math": False,  # a "$" in a name is a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#1f2937",
    "axes.labelpad": 6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": "#9ca3af",
    "ytick.color": "#9ca3af",
    "xtick.labelcolor": "#374151",
    "ytick.labelcolor": "#374151",
    "lines.linewidth": 1.9,
    "lines.markersize": 5.5,
    "legend.frameon": False,
}
PLAIN_NUMBERS = "{x:g}"
house_style = rc_context(STYLE)  # as a decorator: the caller's settings are back when the chart returns


def sheet(width: float, height: float, log_x: bool = False, log_y: bool = False) -> tuple[Figure, Axes]:
    """An empty figure, `width` by `height` inches, and its axes."""
    figure = empty_figure(width, height)
    axes = figure.add_subplot(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    return figure, axes


def empty_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                label_log(axis, narrow=len(figure.axes) > 1)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})  # no version: stable bytes
    return file.getvalue()


def label_log(axis: Axis, narrow: bool = False) -> None:
    """Plain numbers, and enough of them: a loss between 2 and 6 spans no power of ten."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    multiples = (1, 2, 5) if decades < (2.5 if narrow else 4) else (1,)
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]) if decades < 1 else LogLocator(subs=multiples))
    axis.set_major_formatter(PLAIN_NUMBERS)
    axis.set_minor_formatter(NullFormatter())


def drawable(value: float, log: bool = False) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def require(drawn: Iterable[object], wanted: Iterable[str]) -> None:
    """Raises UserError when nothing that was wanted could be drawn."""
    if not list(drawn):
        names = listing(wanted) or "no series was given"
        raise UserError(f"there is nothing to draw ({names}): no value is a finite number that fits the axes")
