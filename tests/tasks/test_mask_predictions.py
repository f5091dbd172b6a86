"""Confusion matrices of images: every number counted from them equals a loop over pixels and torchmetrics."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.tasks.mask_predictions import MaskPredictions, digest_of

CLASSES, IGNORED = 4, 255


def drawn(images: int = 5, seed: int = 0, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits [n, 4, 6, 7] that lean to the labels, and labels [n, 6, 7] of classes 0 to 2, a fifth not counted."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (images, 6, 7), generator=generator)
    generator.manual_seed(seed + 1)
    logits = noise * torch.randn(images, CLASSES, 6, 7, generator=generator)
    logits.scatter_add_(1, labels[:, None], torch.ones(images, 1, 6, 7))
    labels[torch.rand(labels.shape, generator=generator.manual_seed(9)) < 0.2] = IGNORED
    return logits, labels


def judged(**how: float) -> MaskPredictions:
    return MaskPredictions.of_logits(*drawn(**how), IGNORED)


# Worked by hand: truth 0 0 1 / 1 1 2 / 2 x x (x is not counted), answers 0 1 1 / 1 1 2 / 0 2 0.
TRUTH = torch.tensor([[0, 0, 1], [1, 1, 2], [2, IGNORED, IGNORED]])
ANSWERS = torch.tensor([[0, 1, 1], [1, 1, 2], [0, 2, 0]])


def test_a_case_of_nine_pixels_worked_by_hand() -> None:
    """Class 0: 1 of 3 pixels in the union, 1: 3 of 4, 2: 1 of 2; 3 is in neither, so it is in no mean."""
    logits = 5.0 * torch.nn.functional.one_hot(ANSWERS, 4).permute(2, 0, 1)[None].float()
    found = MaskPredictions.of_logits(logits, TRUTH[None], IGNORED)
    assert found.confusion[0].tolist() == [[1, 1, 0, 0], [0, 3, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert found.iou.tolist() == pytest.approx([1 / 3, 3 / 4, 1 / 2, math.nan], nan_ok=True)
    assert found.mean_iou == pytest.approx((1 / 3 + 3 / 4 + 1 / 2) / 3)
    assert found.accuracy == found.pixel_accuracy == pytest.approx(5 / 7)
    right, wrong = math.log(1 + 3 * math.exp(-5)), math.log(1 + 3 * math.exp(-5)) + 5
    assert found.loss.tolist() == pytest.approx([(5 * right + 2 * wrong) / 7])
    assert found.pixels.tolist() == [7]
    always = found.always(1)
    assert always.confusion[0].tolist() == [[0, 2, 0, 0], [0, 3, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]
    assert (always.accuracy, always.mean_iou) == pytest.approx((3 / 7, (3 / 7) / 3))


def test_everything_equals_a_loop_over_pixels() -> None:
    logits, labels = drawn()
    found = MaskPredictions.of_logits(logits, labels, IGNORED)
    confusion = torch.zeros(len(labels), CLASSES, CLASSES, dtype=torch.int64)
    nats: list[list[float]] = [[] for _ in labels]
    for image, row, column in torch.cartesian_prod(torch.arange(5), torch.arange(6), torch.arange(7)).tolist():
        true = int(labels[image, row, column])
        if true == IGNORED:
            continue
        scores = logits[image, :, row, column].tolist()
        confusion[image, true, scores.index(max(scores))] += 1
        nats[image].append(math.log(sum(map(math.exp, scores))) - scores[true])
    assert torch.equal(found.confusion, confusion)
    assert found.loss.tolist() == pytest.approx([sum(each) / len(each) for each in nats])
    flat = [value for each in nats for value in each]
    assert found.mean_loss == pytest.approx(sum(flat) / len(flat))
    summed = confusion.sum(0).tolist()
    for label, iou in enumerate(found.iou.tolist()):
        union = sum(summed[label]) + sum(row[label] for row in summed) - summed[label][label]
        assert iou == pytest.approx(summed[label][label] / union)


def test_confusion_and_iou_are_torchmetrics() -> None:
    logits, labels = drawn()
    found = MaskPredictions.of_logits(logits, labels, IGNORED)
    confusion = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORED)
    assert torch.equal(found.confusion.sum(0), confusion(logits.argmax(1), labels))
    jaccard = MulticlassJaccardIndex(CLASSES, average="none", ignore_index=IGNORED)
    assert found.iou.tolist() == pytest.approx(jaccard(logits.argmax(1), labels).tolist())


def test_the_mean_iou_is_of_all_pixels_not_a_mean_over_images() -> None:
    """Class 0: 1 of 1 pixels in one image and 1 of 9 in the other, 2 of 10 together; class 1 is in the other alone."""
    confusion = torch.tensor([[[1, 0], [0, 0]], [[1, 8], [0, 1]]])
    found = MaskPredictions(confusion, torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    assert found.iou.tolist() == pytest.approx([2 / 10, 1 / 9])
    assert found.mean_iou == pytest.approx((2 / 10 + 1 / 9) / 2)
    assert found.at([0]).mean_iou == 1


def test_an_image_without_counted_pixels_weighs_nothing() -> None:
    logits, labels = drawn()
    labels[2] = IGNORED
    found = MaskPredictions.of_logits(logits, labels, IGNORED)
    others = found.at([0, 1, 3, 4])
    assert found.loss[2] == 0
    assert (found.mean_loss, found.accuracy, found.mean_iou) == (others.mean_loss, others.accuracy, others.mean_iou)


@pytest.mark.parametrize("wrong", [4, -1, 254])
def test_a_label_that_is_no_class_is_a_sentence(wrong: int) -> None:
    logits, labels = drawn()
    labels[1, 2, 3] = wrong
    with pytest.raises(UserError, match=f"labelled {wrong}, but the model has classes 0 to 3.*ignore_index is 255"):
        MaskPredictions.of_logits(logits, labels, IGNORED)


def test_an_ignore_index_within_the_classes_or_below_zero_works_too() -> None:
    logits, labels = drawn()
    of_255 = MaskPredictions.of_logits(logits, labels, IGNORED)
    for index in (-1, 3):  # class 3 is in no label
        other = MaskPredictions.of_logits(logits, labels.masked_fill(labels == IGNORED, index), index)
        assert torch.equal(other.confusion, of_255.confusion)
        assert torch.equal(other.loss, of_255.loss)


def test_logits_of_16_bits_are_judged_in_32() -> None:
    logits, labels = drawn()
    half = logits.bfloat16()
    assert torch.equal(
        MaskPredictions.of_logits(half, labels, IGNORED).loss,
        MaskPredictions.of_logits(half.float(), labels, IGNORED).loss,
    )


def test_a_mask_is_known_by_its_digest_and_one_pixel_changes_it() -> None:
    mask = torch.randint(3, (6, 7))
    other = mask.clone()
    other[5, 6] += 1
    assert digest_of(mask) == digest_of(mask.clone())
    assert len({digest_of(mask), digest_of(other), digest_of(mask.view(7, 6)), digest_of(mask.flip(0))}) == 4
    logits, labels = drawn()
    changed = logits.clone()
    changed[3, :, 0, 0] *= -1  # the least likely class
    found, reference = (MaskPredictions.of_logits(each, labels, IGNORED) for each in (changed, logits))
    assert found.same(reference).tolist() == [True, True, True, False, True]
    assert found.compared_with(reference)["differs"] == 1


def test_parts_join_and_are_taken_apart() -> None:
    whole = judged()
    again = whole.joined([whole.at([0]), whole.at([1, 2]), whole.at([3, 4])])
    assert len(again) == 5
    for one, other in ((again, whole), (whole.first(99), whole), (whole.first(2), whole.at([0, 1]))):
        assert torch.equal(one.confusion, other.confusion)
        assert torch.equal(one.loss, other.loss)
        assert torch.equal(one.digest, other.digest)


def test_a_csv_file_holds_all_that_is_counted(tmp_path: Path) -> None:
    logits, labels = drawn()
    labels[2] = IGNORED  # nothing in its confusion
    found = MaskPredictions.of_logits(logits, labels, IGNORED)
    folder = RunFolder.create("toy", str(tmp_path / "run"))
    columns = found.columns()
    folder.write_table("masks", [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    again = MaskPredictions.of_rows(folder.read_table("masks"))
    assert torch.equal(again.confusion, found.confusion)
    assert torch.equal(again.loss, found.loss)
    assert torch.equal(again.digest, found.digest)
    assert again.identity() == found.identity() != judged().identity()
    assert [int(row["pixels"]) for row in folder.read_table("masks")] == found.pixels.tolist()


def test_identity_knows_the_answers_and_the_truth() -> None:
    logits, labels = drawn()
    one = MaskPredictions.of_logits(logits, labels, IGNORED)
    other = MaskPredictions.of_logits(logits, labels.masked_fill(labels == 0, 1), IGNORED)
    assert torch.equal(one.digest, other.digest)
    assert one.identity() != other.identity()


def test_a_comparison_with_itself_finds_nothing() -> None:
    one = judged()
    assert one.compared_with(one) == {"differs": 0, "change": 0, "change_low": 0, "change_high": 0, "p": 1}


def test_a_change_in_every_image_is_seen_and_has_its_sign() -> None:
    better, worse = judged(images=20, noise=0.2), judged(images=20, noise=2.0)
    up, down = better.compared_with(worse), worse.compared_with(better)
    assert up["change"] == pytest.approx(better.mean_iou - worse.mean_iou)
    assert up["change"] == -down["change"] > 0
    assert 0 < up["change_low"] < up["change"] < up["change_high"]
    assert (down["change_low"], down["change_high"]) == pytest.approx((-up["change_high"], -up["change_low"]))
    assert up["p"] == down["p"] == pytest.approx(1 / 2001)  # exchanging answers never gives as much


def test_the_p_of_two_images_is_of_four_exchanges() -> None:
    """Both better by the same confusion: only exchanging none or both gives as much, which is half of all."""
    good, bad = torch.tensor([[9, 1], [1, 9]]), torch.tensor([[5, 5], [5, 5]])
    digest = torch.tensor([1, 2])
    one = MaskPredictions(torch.stack([good, good]), torch.zeros(2), digest)
    other = MaskPredictions(torch.stack([bad, bad]), torch.zeros(2), digest)
    assert one.compared_with(other)["p"] == pytest.approx(0.5, abs=0.04)


def test_the_interval_holds_about_as_often_as_it_says() -> None:
    """Two models of equal worth on 40 images: 0 is within the interval in most of 40 draws, about 95%."""
    pool = [MaskPredictions.of_logits(*drawn(images=40, seed=seed), IGNORED) for seed in range(41)]
    compared = [one.compared_with(other) for one, other in pairwise(pool)]
    holds = sum(each["change_low"] <= 0 <= each["change_high"] for each in compared)
    assert 33 <= holds <= 40
    assert sum(each["p"] < 0.05 for each in compared) <= 7


def test_other_images_are_not_compared() -> None:
    with pytest.raises(UserError, match="5 and 4 images cannot be compared"):
        judged().compared_with(judged(images=4))
