"""Maps in colours, and grids of pictures: the pixels are where they belong, and the file can be read."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from edgetrain.errors import UserError
from edgetrain.report.images import coloured, legend_columns, picture_grid

RED, GREEN, BLUE = [255, 0, 0], [0, 160, 0], [0, 0, 255]


def plain(colour: list[int], height: int = 30, width: int = 40) -> np.ndarray:
    return np.broadcast_to(np.uint8(colour), (height, width, 3))


def pixels(png: bytes) -> np.ndarray:
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)


def centre_of(image: np.ndarray, colour: list[int]) -> tuple[float, float]:
    """Of the pixels of a colour: row and column, as shares of the image."""
    rows, columns = (np.abs(image - colour).max(-1) < 10).nonzero()
    return rows.mean() / image.shape[0], columns.mean() / image.shape[1]


def test_numbers_take_their_colours() -> None:
    found = coloured(np.array([[0, 2], [1, 0]]), [RED, GREEN, BLUE])
    assert found.dtype == np.uint8
    assert found.tolist() == [[RED, BLUE], [GREEN, RED]]


@pytest.mark.parametrize("number", [-1, 2, 255])
def test_numbers_without_a_colour_are_hatched_in_grey(number: int) -> None:
    numbers = np.zeros((80, 90), dtype=np.int64)
    numbers[20:60, 30:70] = number
    found = coloured(numbers, [RED, BLUE])
    assert (found[numbers == 0] == RED).all()
    inside = found[20:60, 30:70]
    assert (inside[..., 0] == inside[..., 1]).all() and (inside[..., 1] == inside[..., 2]).all()
    assert sorted(np.unique(inside)) == [176, 255]
    assert (np.diff(inside[0, :, 0].astype(int)) != 0).sum() > 5  # stripes, not one area


def test_pictures_stand_in_the_order_of_their_groups_and_titles() -> None:
    groups = {"first": [plain(RED), plain(GREEN)], "second": [plain(BLUE), plain([255, 0, 255])]}
    one_column = pixels(picture_grid(groups, ["left", "right"], width=5.0))
    places = [centre_of(one_column, colour) for colour in (RED, GREEN, BLUE, [255, 0, 255])]
    assert places[0][0] == places[1][0] < places[2][0] == places[3][0]
    assert places[0][1] == places[2][1] < places[1][1] == places[3][1]
    two = pixels(picture_grid(groups, ["left", "right"], across=2, width=5.0))
    columns = [centre_of(two, colour)[1] for colour in (RED, GREEN, BLUE, [255, 0, 255])]
    assert columns == sorted(columns)
    assert len({centre_of(two, colour)[0] for colour in (RED, GREEN, BLUE)}) == 1


def test_pictures_keep_their_shape() -> None:
    image = pixels(picture_grid({"": [plain(RED, 30, 60)]}, ["image"], width=4.0))
    rows, columns = (np.abs(image - RED).max(-1) < 10).nonzero()
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(2, rel=0.02)


def test_the_legend_shows_its_colours_below_the_pictures() -> None:
    legend = {"grass": GREEN, "water": BLUE}
    image = pixels(picture_grid({"": [plain(RED)]}, ["image"], legend, hatched="not counted"))
    assert centre_of(image, GREEN)[0] > centre_of(image, RED)[0] + 0.3
    assert centre_of(image, GREEN)[1] < centre_of(image, BLUE)[1]
    without = pixels(picture_grid({"": [plain(RED)]}, ["image"]))
    assert without.shape[0] < image.shape[0]


def test_a_legend_has_as_many_columns_as_fit() -> None:
    assert legend_columns(["sky", "road"], 7.0) == 2
    assert 4 < legend_columns(["pedestrian"] * 30, 7.0) < 8
    assert legend_columns(["a name that is as long as a line" * 3] * 3, 7.0) == 1
    assert legend_columns([], 7.0) == 1


def test_fifteen_photographs_beside_maps_stay_below_a_file_of_one_and_a_half_megabytes() -> None:
    noise = np.random.default_rng(0)
    smooth = noise.integers(0, 256, (45, 60, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    groups = {f"image {number}": [smooth, plain(RED, 360, 480), plain(BLUE, 360, 480)] for number in range(12)}
    png = picture_grid(groups, ["image", "truth", "prediction"], across=2)
    assert len(png) < 1.5e6
    assert 1_000 < pixels(png).shape[1] < 1_500


def test_same_pictures_give_same_bytes() -> None:
    assert picture_grid({"a": [plain(RED)]}, ["x"]) == picture_grid({"a": [plain(RED)]}, ["x"])


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="there is nothing to draw"):
        picture_grid({}, ["image"])
    with pytest.raises(ValueError, match="a: 1 pictures for 2 titles"):
        picture_grid({"a": [plain(RED)]}, ["image", "truth"])
