"""Charts are PNG bytes in one style, and say what is missing instead of crashing."""

import io
import math
import struct

import matplotlib
import pytest
from matplotlib.image import imread

from edgetrain.errors import UserError
from edgetrain.report.figures import bar_chart, heatmap, line_chart, panel_chart, parallel_chart, scatter_chart, upright

NAN = math.nan
LINE = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.5)]


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


CHARTS = {
    "line": lambda: line_chart(
        {"a": LINE, "b": LINE[:1]}, "step", "loss (nats)", markers=True, reference={"floor": 1.2}
    ),
    "line with a band": lambda: line_chart({"a": LINE}, "step", "loss", bands={"a": [(2, 4), (1, 3), (1, 2)]}),
    "many lines": lambda: line_chart({f"run {n}": [(x, y + n) for x, y in LINE] for n in range(20)}, "step", "loss"),
    "narrow log": lambda: line_chart({"a": LINE}, "step", "loss", log_x=True, log_y=True),
    "wide log": lambda: line_chart({"a": [(1, 1e-6), (1e9, 1e6)]}, "step", "loss", log_x=True, log_y=True),
    "panels": lambda: panel_chart({"lr": LINE, "tokens/s": LINE, "memory (GiB)": LINE, "norm": LINE}, "step"),
    "boxes": lambda: line_chart({"a": [(20, 1), (300, 2)]}, "KB", "", log_x=True, boxes={"small": 80, "large": 500}),
    "bars": lambda: bar_chart({"int8": {"x": 1.0, "y": None}, "float32": {"x": 4.0, "y": 2.0}}, "energy (mJ)"),
    "bars with spread": lambda: bar_chart({"a": {"x": 1.0, "y": 2.0}}, "loss", spread={"a": {"x": 0.1}}),
    "stacked bars": lambda: bar_chart({"a": {"x": 1.0}, "b": {"x": 2.0}}, "energy (mJ)", stacked=True),
    "heat map": lambda: heatmap([[0.5, None], [NAN, 0.25]], [1, 2], [4, 8], "draft length", "exit layer"),
    "flat heat map": lambda: heatmap([[1.0]], ["a"], ["b"], "x", "y", ".0f", value_label="accepted"),
    "scatter": lambda: scatter_chart({"a": LINE}, "modelled (ms)", "measured (ms)", diagonal="equal"),
    "dots": lambda: line_chart({"a": LINE, "b": LINE}, "trial", "loss", dots=["a"]),
    "parallel": lambda: parallel_chart(
        {"rate": [0.1, 1.0, 10.0], "model": ["a", "b", "a"], "loss": [3, 2, NAN]}, log=["rate"]
    ),
    "bounds": lambda: scatter_chart({"a": LINE}, "x", "y", log_x=True, log_y=True, bounds={"a": [4.0, 3.0, 2.0]}),
}


@pytest.mark.parametrize("name", CHARTS)
def test_chart_is_png_wide_enough_to_read(name: str) -> None:
    width, height = size(CHARTS[name]())
    assert 500 <= width <= 1100 and 150 <= height <= 2000


@pytest.mark.parametrize("name", ["line", "heat map"])
def test_same_numbers_give_same_bytes(name: str) -> None:
    assert CHARTS[name]() == CHARTS[name]()


def test_line_chart_is_7_inches_at_150_dots() -> None:
    assert size(line_chart({"a": LINE}, "step", "loss")) == (1080, 585)


def test_bar_chart_grows_with_its_categories() -> None:
    few, many = ({"a": {str(n): 1.0 for n in range(count)}} for count in (2, 20))
    assert size(bar_chart(many, "s"))[1] > 2 * size(bar_chart(few, "s"))[1]


def test_series_without_a_finite_point_is_left_out() -> None:
    assert line_chart({"a": LINE, "b": [(1, NAN)], "c": []}, "x", "y") == line_chart({"a": LINE}, "x", "y")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: line_chart({}, "x", "y"),
        lambda: line_chart({"loss": [(1, NAN), (2, math.inf)]}, "x", "y"),
        lambda: line_chart({"loss": [(1, 0.0), (2, -1.0)]}, "x", "y", log_y=True),
        lambda: panel_chart({"loss": []}, "x"),
        lambda: bar_chart({"loss": {"a": None}}, "y"),
        lambda: bar_chart({}, "y"),
        lambda: bar_chart({}, "y", stacked=True),
        lambda: heatmap([[None, NAN]], [1, 2], [1], "x", "y", value_label="loss"),
        lambda: heatmap([], [], [], "x", "y"),
        lambda: scatter_chart({"loss": [(NAN, 1)]}, "x", "y"),
    ],
)
def test_nothing_to_draw_is_a_user_error(draw) -> None:
    with pytest.raises(UserError, match="nothing to draw"):
        draw()


def test_band_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError):
        line_chart({"a": LINE}, "x", "y", bands={"a": [(0, 1)]})


def test_grid_that_does_not_fit_its_ticks_is_refused() -> None:
    with pytest.raises(ValueError, match="2 by 1 ticks"):
        heatmap([[1.0]], [1], [1, 2], "x", "y")


def test_upright_axes_reach_from_the_lowest_to_the_highest_and_words_have_places() -> None:
    assert upright([1.0, 10.0, 100.0], log=True)[0] == pytest.approx([0, 0.5, 1])
    assert upright([1.0, 10.0, 100.0], log=False)[0] == pytest.approx([0, 1 / 11, 1])
    assert upright([64, 192, 128], log=False)[1] == [(0, "64"), (0.5, "128"), (1, "192")]
    assert upright(["b", "a", "b"], log=False) == ([0.75, 0.25, 0.75], [(0.25, "a"), (0.75, "b")])
    assert upright([2, 2], log=True) == ([0.5, 0.5], [(0.5, "2")])


def test_the_best_row_of_a_parallel_chart_is_that_of_the_good_end() -> None:
    """Which row is thick depends on which end is good, and not on the order of the rows."""
    low, high = ({"x": [1, 2], "loss": losses} for losses in ([3.0, 5.0], [5.0, 3.0]))
    swapped = {"x": [2, 1], "loss": [5.0, 3.0]}
    assert parallel_chart(low) == parallel_chart(swapped)
    assert parallel_chart(low) != parallel_chart(low, low_is_good=False)
    assert parallel_chart(low) != parallel_chart(high)


def test_dollar_signs_are_text_not_formulas() -> None:
    assert size(line_chart({r"$\broken{": LINE, "b": LINE}, "cost ($)", "$x"))


def test_corner_is_white_and_settings_are_restored() -> None:
    before = dict(matplotlib.rcParams)
    pixels = imread(io.BytesIO(line_chart({"a": LINE}, "x", "y")))
    assert (pixels[0, 0] == 1).all()
    assert dict(matplotlib.rcParams) == before


def test_pyplot_holds_no_figure() -> None:
    import matplotlib.pyplot as pyplot

    line_chart({"a": LINE}, "x", "y")
    assert pyplot.get_fignums() == []
