"""The loss of resized scores against torch's resizing and cross-entropy, value and gradient, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgetrain.ops import resized_cross_entropy as module
from edgetrain.ops.hard_examples import HardExamples
from edgetrain.ops.resized_cross_entropy import resized_cross_entropy

CLASSES, IGNORED = 5, 255
SIZES = {
    "four times": ((6, 8), (24, 32)),
    "as they are": ((7, 5), (7, 5)),
    "no whole factor": ((5, 7), (13, 33)),
    "one place": ((1, 1), (9, 4)),
    "smaller": ((12, 20), (5, 7)),
}


def batch(small: tuple[int, int], large: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (2, *large), generator=drawn)
    labels[torch.rand(labels.shape, generator=drawn) < 0.2] = IGNORED
    return (3 * torch.randn(2, CLASSES, *small, generator=drawn)).to(dtype).requires_grad_(), labels


def reference(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    resized = F.interpolate(scores, labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(resized, labels, weights, ignore_index=IGNORED)


@pytest.fixture(params=[1, 700, 2**20], ids=["row by row", "some rows", "at once"])
def band(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.BAND, "cpu", request.param)


@pytest.mark.usefixtures("band")
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.0, 1.0, 3.0]])
@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradient_are_torchs(size: str, weights: list[float] | None) -> None:
    scores, labels = batch(*SIZES[size])
    weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    found, expected = resized_cross_entropy(scores, labels, IGNORED, weights), reference(scores, labels, weights)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    (ours,), (theirs,) = (torch.autograd.grad(2.5 * loss, scores) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("band")
def test_hard_examples_are_chosen_among_the_resized_pixels() -> None:
    scores, labels = batch(*SIZES["four times"])
    resized = F.interpolate(scores, labels.shape[1:], mode="bilinear")
    nats = F.cross_entropy(resized, labels, ignore_index=IGNORED, reduction="none")
    expected = nats.flatten().topk(2 * 60).values.mean()
    found = resized_cross_entropy(scores, labels, IGNORED, None, HardExamples(1e-9, 60))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    (ours,), (theirs,) = (torch.autograd.grad(loss, scores) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_scores_of_half_precision_are_summed_in_float32() -> None:
    scores, labels = batch(*SIZES["four times"], torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = resized_cross_entropy(scores, labels, IGNORED)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(reference(scores.detach().double(), labels).item(), rel=1e-5)
    found.backward()
    assert scores.grad.dtype == torch.bfloat16


def test_large_scores_neither_overflow_nor_vanish() -> None:
    scores, labels = batch(*SIZES["four times"], torch.float32)
    far = (scores.detach() * 1e4).requires_grad_()
    found = resized_cross_entropy(far, labels, IGNORED)
    assert found.item() == pytest.approx(reference(far, labels).item(), rel=1e-5)


def test_without_a_gradient_none_is_computed() -> None:
    scores, labels = batch(*SIZES["four times"])
    assert not resized_cross_entropy(scores.detach(), labels, IGNORED).requires_grad
    with torch.no_grad():
        assert not resized_cross_entropy(scores, labels, IGNORED).requires_grad


def test_scores_of_the_labels_size_are_never_in_memory() -> None:
    """The largest tensor of a step at 512 x 512 is a band and not the 39 million scores of all pixels."""
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple) else (out,):
                largest = max(largest, each.untyped_storage().nbytes() if isinstance(each, Tensor) else 0)
            return out

    scores, labels = torch.randn(1, 150, 128, 128, requires_grad=True), torch.randint(150, (1, 512, 512))
    with Largest():
        resized_cross_entropy(scores, labels, IGNORED).backward()
    assert largest <= 4 * 150 * 128 * 128  # the gradient of the scores
