"""The joint augmentation: against torchvision, loops over pixels, and images whose values tell where they were."""

import colorsys
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from edgetrain.data.images_augmentation import keys_of
from edgetrain.data.segmentation_augmentation import (
    COLOUR,
    COLOURS,
    DRAWS,
    FLIP,
    PLACES,
    RATIO,
    JointAugmentation,
    distorted,
    draws_of,
    one_class_fills,
    resized,
    resized_classes,
    scaled_size,
)

IGNORE = 255


def augmentation(**changes) -> JointAugmentation:
    settings = {
        "size": (24, 32),
        "scale": [30, 40],
        "keep_ratio": True,
        "ratio_range": [0.5, 2.0],
        "category_max_ratio": 1.0,
        "flip": 0.5,
        "photometric": False,
        "ignore_index": IGNORE,
    }
    return JointAugmentation(**(settings | changes))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ramp(height: int, width: int, downwards: bool) -> tuple[np.ndarray, np.ndarray]:
    """An image of which a value is twice its column's number, or its row's, and the number as its class."""
    rows, columns = np.mgrid[:height, :width]
    numbers = (rows if downwards else columns).astype(np.uint8)
    return np.repeat(2 * numbers[:, :, None], 3, axis=2), numbers


# Sizes


@pytest.mark.parametrize(
    ("own", "scale", "keep_ratio", "ratio", "expected"),
    [  # ADE20K's 2048 x 512, by hand
        ((512, 683), [512, 2048], True, 1.0, (512, 683)),
        ((1024, 1366), [512, 2048], True, 1.0, (512, 683)),
        ((683, 512), [512, 2048], True, 1.0, (683, 512)),
        ((256, 2048), [512, 2048], True, 1.0, (256, 2048)),
        ((256, 256), [512, 2048], True, 2.0, (1024, 1024)),
        ((1024, 2048), [1024, 2048], True, 0.5, (512, 1024)),
        ((360, 480), [96, 128], True, 1.25, (120, 160)),
        ((360, 500), [96, 128], False, 1.0, (96, 128)),
        ((7, 5), None, True, 1.5, (11, 8)),
        ((1, 3000), [96, 128], True, 1.0, (1, 128)),
    ],
)
def test_scale_limits_both_sides_or_is_the_size(own, scale, keep_ratio, ratio, expected):
    assert scaled_size(own, scale, keep_ratio, ratio) == expected


@pytest.mark.parametrize("size", [(20, 27), (61, 80), (97, 30), (37, 50), (5, 4), (1, 1)])
def test_an_image_is_resized_as_torchvision_does_it_and_a_part_of_it_as_the_whole(size: tuple[int, int]):
    image = noise(37, 50)
    theirs = functional.resize(torch.from_numpy(image).permute(2, 0, 1), list(size), antialias=True).permute(1, 2, 0)
    ours = resized(image, size)
    assert ours.shape == (*size, 3)
    assert np.abs(ours.astype(int) - theirs.numpy()).max() <= 1
    for key in range(8):
        draws = np.random.default_rng(key).random(4)
        height, width = (max(1, int(draw * side)) for draw, side in zip(draws, size, strict=False))
        top, left = int(draws[2] * (size[0] - height + 1)), int(draws[3] * (size[1] - width + 1))
        part = resized(image, size, (top, left, height, width))
        assert np.abs(part.astype(int) - ours[top : top + height, left : left + width]).max() <= 1


@pytest.mark.parametrize("size", [(20, 27), (61, 80), (97, 30), (37, 50), (1, 1)])
def test_classes_are_resized_to_the_nearest_pixel_and_a_part_as_the_whole(size: tuple[int, int]):
    classes = np.random.default_rng(1).integers(0, 200, (37, 50)).astype(np.uint8)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(classes)[None, None].float(), size, mode="nearest-exact")
    assert np.array_equal(resized_classes(classes, size), theirs[0, 0].numpy())
    height, width = (size[0] + 1) // 2, (size[1] + 2) // 3
    box = (size[0] - height, size[1] - width, height, width)
    assert np.array_equal(resized_classes(classes, size, box), theirs[0, 0, -height:, -width:].numpy())


# Image and classes together


@pytest.mark.parametrize("downwards", [False, True])
def test_image_and_classes_stay_aligned_to_a_fraction_of_a_pixel(downwards: bool):
    """A value is twice its pixel's number, which its class says: after any way of moving both, to half a pixel."""
    image, classes = ramp(90, 120, downwards)
    whole = augmentation(scale=[90, 120])
    means, mirrored, ratios = [], 0, set()
    for draws in draws_of(keys_of(0, 0, range(60))):
        colours, cut = whole(image, classes, draws)
        inside = (cut > 3) & (cut < classes.max() - 3)  # at the edges there is nothing to weigh beyond
        away = colours[0].numpy()[inside] / 2 - cut[inside]
        assert np.abs(away).max() < 0.75
        means.append(away.mean())
        mirrored += int(cut[0, 0]) > int(cut[0, -1])
        ratios.add(round(float(draws[RATIO]), 6))
    assert abs(np.mean(means)) < 0.03  # no shift
    assert len(ratios) == 60
    assert mirrored == 0 if downwards else 18 <= mirrored <= 42


def test_the_random_ratio_covers_its_range_and_cuts_lie_everywhere():
    image, classes = ramp(60, 80, False)
    places, ratios = [], []
    for draws in draws_of(keys_of(1, 0, range(400))):
        _, cut = augmentation(flip=0.0, scale=[60, 80])(image, classes, draws)
        ratios.append(
            (int(cut[0, -1]) - int(cut[0, 0])) / (cut.shape[1] - 1)
        )  # columns of the image a pixel: 1 / ratio
        places.append((int(cut[0, 0]) + int(cut[0, -1])) / 2)
    assert min(ratios) == pytest.approx(0.5, abs=0.04)
    assert max(ratios) == pytest.approx(2.0, abs=0.04)
    assert np.mean([1 / ratio for ratio in ratios]) == pytest.approx(1.25, abs=0.08)  # uniform in 0.5 to 2
    assert np.mean(places) == pytest.approx(39.5, abs=2)
    assert min(places) < 12
    assert max(places) > 67


def test_without_chance_the_augmentation_is_a_resize():
    image, classes = noise(30, 40), np.random.default_rng(0).integers(0, 3, (30, 40)).astype(np.uint8)
    colours, cut = augmentation(size=(30, 40), ratio_range=[1.0, 1.0], flip=0.0)(image, classes, np.full(DRAWS, 0.99))
    assert np.array_equal(colours.permute(1, 2, 0).numpy(), image)
    assert np.array_equal(cut, classes)
    mirrored, cut = augmentation(size=(30, 40), ratio_range=[1.0, 1.0], flip=1.0)(image, classes, np.full(DRAWS, 0.99))
    assert np.array_equal(mirrored.permute(1, 2, 0).numpy(), image[:, ::-1])
    assert np.array_equal(cut, classes[:, ::-1])


@pytest.mark.parametrize("own", [(1, 1), (1, 40), (40, 1), (3, 500)])
def test_sides_of_a_pixel_survive(own: tuple[int, int]):
    for draws in draws_of(keys_of(0, 0, range(20))):
        colours, cut = augmentation(photometric=True)(noise(*own), np.zeros(own, np.uint8), draws)
        assert colours.shape[1:] == cut.shape
        assert 1 <= cut.shape[0] <= 24
        assert 1 <= cut.shape[1] <= 32
        assert torch.isfinite(colours).all()


# The category-max-ratio rule


def slow_cut(classes: np.ndarray, whole: tuple[int, int], size: tuple[int, int], share: float, places: np.ndarray):
    """The rule as MMSegmentation words it: of the counted pixels, more than one class and none with `share` of them."""
    rows, columns = (
        [floor(Fraction(2 * place + 1, 2) * own / new) for place in range(new)]
        for own, new in zip(classes.shape, whole, strict=True)
    )
    resized_whole = classes[np.ix_(rows, columns)]
    for attempt in range(11):  # one cut, and ten more
        top = int(places[2 * attempt] * (max(whole[0] - size[0], 0) + 1))
        left = int(places[2 * attempt + 1] * (max(whole[1] - size[1], 0) + 1))
        cut = resized_whole[top : top + size[0], left : left + size[1]]
        labels, counts = np.unique(cut, return_counts=True)
        counts = counts[labels != IGNORE]
        if len(counts) > 1 and counts.max() / counts.sum() < share:
            break
    return (top, left, *cut.shape), cut, attempt


def test_cuts_are_drawn_again_as_the_rule_says():
    classes = np.zeros((60, 80), dtype=np.uint8)
    classes[:, 50:] = 1
    classes[40:, :20] = 2
    classes[:, 20:30] = IGNORE
    attempts = []
    for draws in draws_of(keys_of(2, 0, range(200))):
        whole = scaled_size((60, 80), None, True, 0.5 + 1.5 * draws[RATIO])
        expected, cut, attempt = slow_cut(classes, whole, (24, 32), 0.75, draws[PLACES:])
        box, found = augmentation(category_max_ratio=0.75).cut(classes, whole, draws[PLACES:])
        assert box == expected
        assert np.array_equal(found, cut)
        attempts.append(attempt)
    assert {0, 1, 2, 3} <= set(attempts)


def test_an_image_of_one_class_or_of_none_takes_the_eleventh_cut():
    for classes in (np.zeros((60, 80), np.uint8), np.full((60, 80), IGNORE, np.uint8)):
        draws = draws_of(keys_of(3, 0, [0]))[0]
        box, found = augmentation(category_max_ratio=0.75).cut(classes, (60, 80), draws[PLACES:])
        assert box[:2] == (int(draws[PLACES + 20] * 37), int(draws[PLACES + 21] * 49))
        assert PLACES + 22 == DRAWS
        assert found.shape == (24, 32)
        box, _ = augmentation(category_max_ratio=1.0).cut(classes, (60, 80), draws[PLACES:])
        assert box[:2] == (int(draws[PLACES] * 37), int(draws[PLACES + 1] * 49))


@pytest.mark.parametrize(
    ("pixels", "fills"),
    [
        ([0] * 74 + [1] * 26, False),
        ([0] * 75 + [1] * 25, True),  # three quarters are too much
        ([0] * 30 + [1] * 10 + [IGNORE] * 60, True),
        ([0] * 29 + [1] * 11 + [IGNORE] * 60, False),
        ([0] * 40, True),
        ([IGNORE] * 40, True),
        ([IGNORE] * 30 + [5] * 10, True),
    ],
)
def test_void_counts_for_nothing_in_the_rule(pixels: list[int], fills: bool):
    assert one_class_fills(np.array([pixels], dtype=np.uint8), 0.75, IGNORE) is fills


# Colours


def slowly_distorted(image: np.ndarray, draws: list[float]) -> np.ndarray:
    """Pixel by pixel, with colorsys for HSV; image: [height, width, 3] of 0 to 255."""
    brighter, delta, first, contrasted, alpha, saturated, factor, turned, angle = draws
    out = np.zeros_like(image)
    for place in np.ndindex(image.shape[:2]):
        colour = [float(value) for value in image[place]]
        if brighter < 0.5:
            colour = [min(255, max(0, value - 32 + 64 * delta)) for value in colour]
        if contrasted < 0.5 and first < 0.5:
            colour = [min(255, value * (0.5 + alpha)) for value in colour]
        hue, saturation, value = colorsys.rgb_to_hsv(*(each / 255 for each in colour))
        if saturated < 0.5:
            saturation = min(1, saturation * (0.5 + factor))
        if turned < 0.5:
            hue = (hue + (-18 + 36 * angle) / 180) % 1
        colour = [255 * each for each in colorsys.hsv_to_rgb(hue, saturation, value)]
        if contrasted < 0.5 and first >= 0.5:
            colour = [min(255, each * (0.5 + alpha)) for each in colour]
        out[place] = colour
    return out


def test_colours_are_distorted_as_a_loop_over_pixels_does_it():
    image = noise(5, 6).astype(np.float64)
    image[0, :3] = [[0, 0, 0], [255, 255, 255], [128, 128, 128]]
    tensor = torch.from_numpy(image.transpose(2, 0, 1)).float()
    changed = set()
    for draws in draws_of(keys_of(4, 0, range(80)))[:, COLOUR:PLACES]:
        ours = distorted(tensor.clone(), draws).permute(1, 2, 0).numpy()
        assert np.abs(ours - slowly_distorted(image, draws.tolist())).max() < 0.05
        changed.add(tuple((draws < 0.5)[[0, 2, 3, 5, 7]].tolist()))
    assert len(changed) > 25  # of the 32 ways


def test_contrast_and_hue_are_torchvisions():
    image = torch.from_numpy(noise(9, 7).transpose(2, 0, 1)).float()
    off = {place: 0.9 for place in (0, 3, 5, 7)}

    def draws(**on: float) -> np.ndarray:
        numbers = np.zeros(COLOURS)
        for place, value in off.items():
            numbers[place] = value
        for place, value in on.items():
            numbers[int(place[1:])] = value
        return numbers

    assert torch.equal(distorted(image, draws()), image)
    for last in (0.0, 0.9):
        ours = distorted(image, draws(_3=0.0, _4=0.8, _2=last))
        assert torch.allclose(ours / 255, functional.adjust_brightness(image / 255, 1.3), atol=1e-5)
    ours = distorted(image, draws(_7=0.0, _8=0.25))
    assert torch.allclose(ours / 255, functional.adjust_hue(image / 255, -0.05), atol=1e-5)
    grey = distorted(torch.full((3, 4, 4), 90.0), draws(_5=0.0, _6=0.99, _7=0.0, _8=0.9))
    assert torch.allclose(grey, torch.tensor(90.0))  # has neither hue nor saturation


def test_each_decision_has_a_draw_of_its_own():
    draws = np.concatenate([draws_of(keys_of(0, epoch, range(2000))) for epoch in range(2)]).reshape(2, 2000, DRAWS)
    flat = draws.transpose(0, 2, 1).reshape(2 * DRAWS, 2000)
    assert np.abs(np.corrcoef(flat) - np.eye(2 * DRAWS)).max() < 5 / 2000**0.5
    assert (RATIO, FLIP, COLOUR, PLACES) == (0, 1, 2, 11)
    assert 0 <= flat.min() < 0.001
    assert 0.999 < flat.max() < 1
