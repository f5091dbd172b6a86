"""Mixup and CutMix of a batch are torchvision's, with numbers that a seed gives."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from edgetrain.ops.mixing import box, mixed_inputs, mixed_labels

IMAGES = torch.randn(5, 3, 12, 9, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 2, 0])


def shares(mixup: float, cutmix: float, switch: float = 0.5, count: int = 2000) -> np.ndarray:
    return np.array([mixed_inputs(IMAGES[:2, :, :2, :2], mixup, cutmix, switch, (0, n))[1] for n in range(count)])


@pytest.mark.parametrize("number", range(8))
def test_mixup_is_torchvisions(number: int) -> None:
    inputs, share = mixed_inputs(IMAGES, 0.8, 0.0, 0.5, (3, number))
    reference = v2.MixUp(alpha=0.8, num_classes=3)
    params = {"lam": share, "labels": LABELS, "batch_size": 5}
    assert torch.allclose(inputs, reference.transform(IMAGES, params), atol=1e-6)
    assert torch.allclose(mixed_labels(LABELS, share, 3), reference.transform(LABELS, params), atol=1e-6)


@pytest.mark.parametrize("number", range(8))
def test_cutmix_is_torchvisions(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision makes box and share of the same three draws."""
    draws = np.random.default_rng([3, number])
    drawn = float(draws.beta(1.0, 1.0))
    numbers = [torch.tensor([int(draws.integers(9))]), torch.tensor([int(draws.integers(12))])]
    reference = v2.CutMix(alpha=1.0, num_classes=3)
    monkeypatch.setattr(reference._dist, "sample", lambda shape: torch.tensor(drawn, dtype=torch.float64))
    monkeypatch.setattr(torch, "randint", lambda high, size: numbers.pop(0))
    params = reference.make_params([IMAGES]) | {"labels": LABELS, "batch_size": 5}
    inputs, share = mixed_inputs(IMAGES, 0.0, 1.0, 0.5, (3, number))
    assert share == pytest.approx(params["lam_adjusted"])
    assert torch.equal(inputs, reference.transform(IMAGES, params))
    assert torch.allclose(mixed_labels(LABELS, share, 3), reference.transform(LABELS, params), atol=1e-6)


def test_the_share_of_the_labels_is_that_of_the_pixels_that_stayed() -> None:
    ones = torch.arange(4.0)[:, None, None, None].expand(4, 1, 16, 16)
    for number in range(40):
        inputs, share = mixed_inputs(ones, 0.0, 1.0, 0.5, (number,))
        stayed = (inputs == ones).flatten(1).float().mean(1)
        assert torch.allclose(stayed, torch.full((4,), share), atol=1e-6)


def test_a_box_is_cut_where_it_leaves_the_image() -> None:
    """A quarter stays: half of 0.75 ** 0.5 of each side around the corner pixel, of which a quarter is inside."""

    class Corner:
        def integers(self, high: int) -> int:
            return 0

    assert box(0.25, 100, 200, Corner()) == (0, 43, 0, 86)
    assert box(1.0, 100, 200, Corner()) == (0, 0, 0, 0)


def test_shares_are_drawn_from_the_beta_distribution() -> None:
    """Mean 1/2, variance 1 / (4 (2 alpha + 1))."""
    for alpha in (0.2, 0.8, 3.0):
        drawn = shares(alpha, 0.0)
        variance = 1 / (4 * (2 * alpha + 1))
        assert drawn.mean() == pytest.approx(0.5, abs=4 * (variance / 2000) ** 0.5)
        assert drawn.var() == pytest.approx(variance, rel=0.15)


def test_the_kind_is_switched_as_often_as_asked_for() -> None:
    """Of 2 x 2 pixels a cut leaves a share of 0, 1/4, 1/2, 3/4 or 1."""
    cut = np.isin(shares(0.8, 1.0, switch=0.3), [0, 0.25, 0.5, 0.75, 1.0])
    assert cut.mean() == pytest.approx(0.3, abs=4 * (0.21 / 2000) ** 0.5)


def test_what_is_drawn_is_a_function_of_the_seeds() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (mixed_inputs(IMAGES, 0.8, 1.0, 0.5, seeds)[0] for seeds in ((1, 2), (1, 2), (2, 1)))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(IMAGES, torch.randn(5, 3, 12, 9, generator=torch.Generator().manual_seed(0)))  # left as it was
