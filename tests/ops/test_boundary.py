"""The boundary F-measure against cases worked by hand, a pixel-by-pixel reference and SciPy's distance transform."""

import math

import pytest
import torch
from torch import Tensor

from edgetrain.ops.boundary import boundary_f, offsets_within, outlines

IGNORED = 255


def halves(height: int, width: int, edge: int) -> Tensor:
    """Class 0 left of column `edge`, class 1 from there on."""
    return (torch.arange(width) >= edge).long().expand(height, width).clone()


def blobs(seed: int, height: int = 23, width: int = 31, classes: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, classes, height // 4 + 1, width // 4 + 1, generator=generator)
    labels = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0].argmax(0)
    labels[torch.rand(height, width, generator=generator) < 0.03] = IGNORED
    return labels


def reference(truth: Tensor, predicted: Tensor, classes: int, tolerance: float) -> list[float]:
    """Straight from the definition, every pixel with every other."""
    height, width = truth.shape
    distance = tolerance * math.sqrt(height**2 + width**2)

    def outline(labels: Tensor, name: int) -> list[tuple[int, int]]:
        found = []
        for row in range(height):
            for column in range(width):
                if labels[row, column] != name or truth[row, column] == IGNORED:
                    continue
                beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
                beside = [(r, c) for r, c in beside if 0 <= r < height and 0 <= c < width and truth[r, c] != IGNORED]
                if any(labels[r, c] != name for r, c in beside):
                    found.append((row, column))
        return found

    def share(mine: list, theirs: list) -> float:
        hits = sum(any(math.dist(a, b) <= distance for b in theirs) for a in mine)
        return hits / len(mine) if mine else 0.0

    scores = []
    for name in range(classes):
        real, said = outline(truth, name), outline(predicted, name)
        precision, recall = share(said, real), share(real, said)
        f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        scores.append(f if real or said else math.nan)
    return scores


def test_the_outline_is_what_lies_beside_another_class() -> None:
    """A 2 x 2 square of class 1 in a 4 x 5 image, at the image's left edge, which is no outline."""
    labels = torch.zeros(4, 5, dtype=torch.long)
    labels[1:3, 0:2] = 1
    assert outlines(labels, torch.ones(4, 5, dtype=torch.bool)).tolist() == [
        [0, 0, -1, -1, -1],
        [1, 1, 0, -1, -1],
        [1, 1, 0, -1, -1],
        [0, 0, -1, -1, -1],
    ]


def test_beside_what_is_not_counted_there_is_no_outline() -> None:
    truth = halves(3, 6, 3)
    truth[:, 3] = IGNORED
    assert (outlines(truth, truth != IGNORED) == -1).all()
    assert boundary_f(truth, halves(3, 6, 3), 2, IGNORED).isnan().all()


def test_an_edge_that_is_moved_counts_up_to_the_distance() -> None:
    """30 x 40 pixels have a diagonal of 50: a tolerance of 0.04 is 2 pixels."""
    truth = halves(30, 40, 20)
    assert boundary_f(truth, truth, 2, IGNORED, 0.04).tolist() == [1, 1]
    assert boundary_f(truth, halves(30, 40, 22), 2, IGNORED, 0.04).tolist() == [1, 1]
    assert boundary_f(truth, halves(30, 40, 23), 2, IGNORED, 0.04).tolist() == [0, 0]
    assert boundary_f(truth, halves(30, 40, 22), 2, IGNORED, 0.0399).tolist() == [0, 0]


def test_precision_and_recall_are_worked_by_hand() -> None:
    """Truth: a line of outline. Prediction: the same, and another one far away: precision 1/2, recall 1, F 2/3."""
    truth, predicted = halves(30, 40, 10), halves(30, 40, 10)
    predicted[:, 30:] = 0
    # Class 0: true outline column 9; predicted columns 9 and 30. Class 1: true 10; predicted 10 and 29.
    assert boundary_f(truth, predicted, 3, IGNORED).tolist()[:2] == pytest.approx([2 / 3, 2 / 3])
    assert boundary_f(truth, predicted, 3, IGNORED)[2].isnan()
    predicted[:15, 30:] = 2  # a class of the prediction alone scores nothing
    assert boundary_f(truth, predicted, 3, IGNORED)[2] == 0


@pytest.mark.parametrize("tolerance", [0.0075, 0.03, 0.06])
def test_it_is_the_definition_pixel_by_pixel(tolerance: float) -> None:
    for seed in range(3):
        truth, predicted = blobs(seed), blobs(seed)
        predicted[5:12] = blobs(seed + 100)[5:12]
        predicted[predicted == IGNORED] = 0
        found = boundary_f(truth, predicted, 5, IGNORED, tolerance).tolist()
        assert found == pytest.approx(reference(truth, predicted, 5, tolerance), nan_ok=True)


def test_it_is_what_distance_transforms_say() -> None:
    transform = pytest.importorskip("scipy.ndimage").distance_transform_edt
    truth, predicted = blobs(7, 120, 160), blobs(8, 120, 160)
    predicted[predicted == IGNORED] = 0
    counted = truth != IGNORED
    real, said = outlines(truth, counted), outlines(predicted, counted)
    expected = []
    for name in range(4):
        shares = []
        for mine, theirs in ((said, real), (real, said)):
            away = transform((theirs != name).numpy())
            shares.append((away[(mine == name).numpy()] <= 0.02 * 200).mean())
        expected.append(2 * shares[0] * shares[1] / (shares[0] + shares[1]))
    assert boundary_f(truth, predicted, 4, IGNORED, 0.02).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("distance", "number"), [(0.5, 1), (1, 5), (1.5, 9), (2, 13), (2.3, 21)])
def test_offsets_fill_the_circle(distance: float, number: int) -> None:
    offsets = offsets_within(distance)
    assert len(offsets) == number
    assert offsets[0].tolist() == [0, 0]


def test_images_of_one_pixel_and_of_one_class_have_no_outline() -> None:
    for height, width in ((1, 1), (1, 5), (4, 4)):
        labels = torch.zeros(height, width, dtype=torch.long)
        assert boundary_f(labels, labels, 2, IGNORED).isnan().all()
