"""Grids of pictures: arrays of pixels in, PNG bytes out, in the style of the charts.

Maps of numbers are coloured by a palette; a pixel whose number has no colour is hatched.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.patches import Patch

from edgetrain.report.canvas import QUIET, empty_figure, house_style, png, require

Colour = Sequence[int]  # red, green and blue, each 0 to 255

LIGHT, DARK = 255, 176  # grey values of the hatching
STRIPES = 40  # of the hatching, over the height of a map
INK = "#1f2937"
LEGEND_LINE = 0.24  # inches
HEADING = 0.28  # inches, above the pictures of a group
SPACE = 0.05  # inches, between the pictures of a group
GAP, MARGIN = 0.22, 0.12  # inches, between groups side by side, and around everything


def coloured(numbers: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """Integers [height, width] as uint8 [height, width, 3]: number i in palette[i], any number without one hatched."""
    height, width = numbers.shape
    period = max(2, round(height / STRIPES))
    rows, columns = np.mgrid[:height, :width]
    stripes = np.where((rows + columns) // period % 2, LIGHT, DARK).astype(np.uint8)
    known = (numbers >= 0) & (numbers < len(palette))
    colours = np.asarray(palette, dtype=np.uint8).reshape(-1, 3)
    return np.where(known[..., None], colours[np.where(known, numbers, 0)], stripes[..., None])


@house_style
def picture_grid(
    groups: Mapping[str, Sequence[np.ndarray]],
    titles: Sequence[str],
    legend: Mapping[str, Colour] | None = None,
    *,
    hatched: str | None = None,
    across: int = 1,
    width: float = 8.6,
) -> bytes:
    """Groups of pictures, such as image, truth and prediction, each below its caption, which is its key.

    groups: pictures uint8 [height, width, 3], in every group as many as `titles` names, which stand above the first
    groups. legend: colours with their names; hatched: what hatched pixels are. across: groups side by side; width: of
    the whole in inches. Raises UserError without a group, ValueError when a group does not fit the titles.
    """
    require(groups, ["pictures"])
    for caption, pictures in groups.items():
        if len(pictures) != len(titles):
            raise ValueError(f"{caption}: {len(pictures)} pictures for {len(titles)} titles")
    across = min(across, len(groups))
    lines = math.ceil(len(groups) / across)
    each = (
        (width - 2 * MARGIN - GAP * (across - 1)) / across / len(titles)
    )  # inches of a picture and the space beside it
    ratio = max(picture.shape[0] / picture.shape[1] for pictures in groups.values() for picture in pictures)
    tall = (each - SPACE) * min(ratio, 2.5)
    handles = [
        Patch(facecolor=np.asarray(c) / 255, edgecolor=QUIET, lw=0.4, label=n) for n, c in (legend or {}).items()
    ]
    if hatched is not None:
        handles.append(Patch(facecolor="white", edgecolor="#8a8a8a", hatch="/////", lw=0, label=hatched))
    per_line = legend_columns([str(handle.get_label()) for handle in handles], width - 2 * MARGIN)
    legend_height = LEGEND_LINE * math.ceil(len(handles) / per_line) + 0.1 if handles else 0.0
    height = 2 * MARGIN + HEADING + lines * (tall + HEADING) + legend_height
    figure = empty_figure(width, height)
    figure.set_layout_engine("none")  # every place is known
    for number, (caption, pictures) in enumerate(groups.items()):
        line, place = divmod(number, across)
        left = MARGIN + place * (each * len(titles) + GAP)
        bottom = height - MARGIN - HEADING - line * (tall + HEADING) - HEADING - tall
        figure.text(left / width, (bottom + tall + 0.07) / height, caption, fontsize=9, color=INK, va="bottom")
        for column, picture in enumerate(pictures):
            box = ((left + column * each) / width, bottom / height, (each - SPACE) / width, tall / height)
            axes = figure.add_axes(box)
            axes.imshow(picture, interpolation="antialiased", aspect="equal")
            axes.set_axis_off()
            if line == 0:
                centre = (left + (column + 0.5) * each - SPACE / 2) / width
                figure.text(
                    centre,
                    1 - MARGIN / height,
                    titles[column],
                    fontsize=10.5,
                    color=INK,
                    ha="center",
                    va="top",
                    weight="bold",
                )
    if handles:
        figure.legend(
            handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.05 / height), ncols=per_line, fontsize=9,
            handlelength=1.4, handleheight=1.0, columnspacing=1.4, borderpad=0, borderaxespad=0.2,
        )  # fmt: skip
    return png(figure)


def legend_columns(names: Sequence[str], width: float) -> int:
    """How many names of 9 points, each beside its patch, stand in one line of so many inches."""
    longest = max(map(len, names), default=1)
    return max(1, min(len(names), int(width / (0.5 + 0.075 * longest))))
