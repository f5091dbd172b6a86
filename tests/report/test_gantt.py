"""Gantt charts are PNG bytes in the house's style, and say what is missing instead of crashing."""

import io
import math
import struct

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from edgetrain.errors import UserError
from edgetrain.report.canvas import COLOURS
from edgetrain.report.gantt import Bar, gantt_chart

BARS = [Bar("left", "a", "conv1", 0, 4), Bar("left", "b", "fc", 4, 6), Bar("right", "a", "conv2", 4, 7)]


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


def test_a_gantt_chart_is_7_inches_wide_and_grows_with_its_rows() -> None:
    width, height = size(gantt_chart(BARS, "time (ms)"))
    assert width == 1080
    more = [bar._replace(row=f"{bar.row} {n}") for n in range(3) for bar in BARS]
    assert size(gantt_chart(more, "time (ms)"))[1] == height + round(4 * 0.46 * 150)


def test_every_bar_its_colour_its_place_and_the_deadline_are_seen() -> None:
    drawn = gantt_chart(BARS, "time (ms)")
    assert drawn == gantt_chart(list(BARS), "time (ms)")
    for other in (
        [BARS[0]._replace(end=3), *BARS[1:]],
        [BARS[0]._replace(group="b"), *BARS[1:]],
        [BARS[0]._replace(name="conv9"), *BARS[1:]],
        [BARS[0], BARS[1]._replace(row="right"), BARS[2]],
    ):
        assert gantt_chart(other, "time (ms)") != drawn
    assert gantt_chart(BARS, "time (ms)", reference={"deadline": 6.5}) != drawn


def test_rows_come_in_the_order_given_and_idle_ones_are_seen() -> None:
    drawn = gantt_chart(BARS, "time (ms)")
    assert gantt_chart(BARS, "time (ms)", rows=["left", "right"]) == drawn
    assert gantt_chart(BARS, "time (ms)", rows=["right", "left"]) != drawn
    assert size(gantt_chart(BARS, "time (ms)", rows=["idle"]))[1] > size(drawn)[1]


def test_a_deadline_without_end_is_not_drawn() -> None:
    assert gantt_chart(BARS, "time (ms)", reference={"deadline": math.inf}) == gantt_chart(BARS, "time (ms)")


def test_a_bar_is_as_long_as_its_work_wherever_it_starts() -> None:
    """Blue pixels of a bar of 2 in a chart that reaches to 6."""
    early, late, longer = (coloured(Bar("left", "a", "", *span)) for span in ((0, 2), (3, 5), (0, 4)))
    assert late == pytest.approx(early, rel=0.02)
    assert longer == pytest.approx(2 * early, rel=0.02)


def coloured(bar: Bar) -> int:
    picture = imread(io.BytesIO(gantt_chart([bar], "time (ms)", rows=["left"], reference={"end": 6})))
    picture = picture[picture.shape[0] // 3 :]  # below the legend
    return int((np.abs(picture[..., :3] - to_rgb(COLOURS[0])) < 0.02).all(axis=-1).sum())


def test_names_are_left_out_where_there_are_too_many() -> None:
    many = [Bar("left", "a", "name", 0, 100), *(Bar("left", "a", "", n, n + 1) for n in range(100, 160))]
    renamed = [many[0]._replace(name="other"), *many[1:]]
    assert gantt_chart(many, "time (ms)") == gantt_chart(renamed, "time (ms)")
    assert gantt_chart(many[:60], "time (ms)") != gantt_chart(renamed[:60], "time (ms)")


@pytest.mark.parametrize("bars", [[], [Bar("left", "a", "x", 1, 1)], [Bar("left", "a", "x", 0, math.inf)]])
def test_nothing_to_draw_is_a_user_error(bars: list[Bar]) -> None:
    with pytest.raises(UserError, match="nothing to draw"):
        gantt_chart(bars, "time (ms)")
