"""Rooflines: what is drawn, and what is left out."""

import io

import matplotlib.image
import pytest

from edgetrain.errors import UserError
from edgetrain.report.roofline import roof, roofline_chart

POINTS = {"conv": [(10.0, 1e9), (float("inf"), 1e9), (2.0, 0.0)], "linear": [(0.5, 2e7)]}


def pixels(png: bytes):
    return matplotlib.image.imread(io.BytesIO(png))


def test_a_roof_and_its_bandwidth_change_the_picture():
    flat = pixels(roofline_chart({"d": (POINTS, 2e9, None)}, "x", "y"))
    slanted = pixels(roofline_chart({"d": (POINTS, 2e9, 1e8)}, "x", "y"))
    bare = pixels(roofline_chart({"d": (POINTS, None, None)}, "x", "y"))
    assert flat.shape == slanted.shape == bare.shape
    assert (flat != slanted).any() and (flat != bare).any()


def test_devices_without_a_point_get_no_panel():
    one = pixels(roofline_chart({"d": (POINTS, 1e9, 1e8)}, "x", "y"))
    same = pixels(roofline_chart({"d": (POINTS, 1e9, 1e8), "empty": ({"conv": [(0.0, 1.0)]}, 1e9, None)}, "x", "y"))
    assert (one == same).all()
    with pytest.raises(UserError, match="nothing to draw"):
        roofline_chart({"empty": ({}, 1e9, None)}, "x", "y")


def test_a_roof_rises_with_the_bandwidth_and_bends_at_the_peak():
    assert roof(100.0, 10.0, 1.0, 50.0) == [(1.0, 10.0), (10.0, 100.0), (50.0, 100.0)]
    assert roof(100.0, 10.0, 1.0, 5.0)[-1] == (20.0, 100.0)  # the bend is seen though all points are left of it
    assert roof(100.0, 10.0, 12.0, 50.0)[0] == (10.0, 100.0)
    assert roof(100.0, None, 1.0, 50.0) == [(1.0, 100.0), (50.0, 100.0)]
