"""What a model said of every judged image, pixel by pixel: a confusion matrix an image, from which all is counted."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetrain.errors import UserError
from edgetrain.folder import Row

RESAMPLES = 2000
SEED = 0


class Areas(NamedTuple):
    """Pixels of each class, float64 [..., classes]: rightly found, true, and predicted."""

    both: Tensor
    true: Tensor
    predicted: Tensor

    def iou(self) -> Tensor:
        """float64 [..., classes]; NaN for a class that is neither there nor predicted."""
        union = self.true + self.predicted - self.both
        return torch.where(union > 0, self.both / union, torch.nan)

    def mean_iou(self) -> Tensor:
        """float64 [...], over the classes that are there or predicted; NaN where none is."""
        return self.iou().nanmean(-1)


@dataclass(frozen=True)
class MaskPredictions:
    """One entry an image, in the order of the data. Pixels whose label is the ignore index are in none of the numbers.

    confusion: int64 [n, classes, classes], pixels by true (row) and predicted (column) class; loss: float32 [n], mean
    nats a counted pixel, 0 for an image that has none; digest: int64 [n], a hash of the whole predicted mask.
    """

    confusion: Tensor
    loss: Tensor
    digest: Tensor

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def pixels(self) -> Tensor:
        """Counted pixels of each image: int64 [n]"""
        return self.confusion.sum((1, 2))

    @property
    def accuracy(self) -> float:
        """Share of all counted pixels that are right; NaN when there are none."""
        return (self.confusion.diagonal(dim1=1, dim2=2).sum() / self.confusion.sum()).item()

    pixel_accuracy = accuracy

    @property
    def mean_loss(self) -> float:
        """nats a counted pixel, all images together; NaN when there are none"""
        return ((self.loss.double() * self.pixels).sum() / self.pixels.sum()).item()

    @property
    def iou(self) -> Tensor:
        """Of each class, over the pixels of all images together: float64 [classes], NaN where it is in neither."""
        return self._summed().iou()

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that are there or predicted, as mmsegmentation reports it."""
        return self._summed().mean_iou().item()

    def scores(self) -> Row:
        return {"mean_iou": self.mean_iou, "accuracy": self.accuracy, "loss": self.mean_loss}

    def first(self, images: int) -> "MaskPredictions":
        return self.at(range(images))

    def at(self, places: Sequence[int]) -> "MaskPredictions":
        """Of the images at these places; a place beyond the last one is left out."""
        kept = [place for place in places if place < len(self)]
        return MaskPredictions(self.confusion[kept], self.loss[kept], self.digest[kept])

    def same(self, other: "MaskPredictions") -> Tensor:
        """Images of which both predict the same mask: bool [n]"""
        return self.digest == other.digest

    def always(self, label: int) -> "MaskPredictions":
        """What predicting one class everywhere says of the same images; without probabilities, its loss is NaN."""
        confusion = torch.zeros_like(self.confusion)
        confusion[:, :, label] = self.confusion.sum(2)
        return MaskPredictions(confusion, torch.full_like(self.loss, torch.nan), torch.full_like(self.digest, label))

    def compared_with(self, reference: "MaskPredictions") -> Row:
        """The same images in pairs: differs, the masks that do; change of the mean IoU, its interval and p.

        The 95% interval is the percentile bootstrap's over images; p is that of a paired randomisation test, in which
        each image's two answers are exchanged or not (two-sided). Both draw 2,000 times, always alike.
        """
        if len(self) != len(reference) or not len(self):
            raise UserError(
                f"{len(self)} and {len(reference)} images cannot be compared in pairs; judge both on the same images"
            )
        mine, theirs = self.areas(), reference.areas()
        change = self.mean_iou - reference.mean_iou
        generator = torch.Generator().manual_seed(SEED)
        drawn = torch.randint(len(self), (RESAMPLES, len(self)), generator=generator)
        times = torch.zeros(RESAMPLES, len(self)).scatter_add_(1, drawn, torch.ones(1).expand(drawn.shape)).double()
        resampled = weighted(mine, times).mean_iou() - weighted(theirs, times).mean_iou()
        tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
        low, high = resampled[~resampled.isnan()].quantile(tails).tolist() if not resampled.isnan().all() else (0, 0)
        swapped = torch.randint(2, (RESAMPLES, len(self)), generator=generator).double()
        one = Areas(*(a + b for a, b in zip(weighted(theirs, swapped), weighted(mine, 1 - swapped), strict=True)))
        other = Areas(*(a + b for a, b in zip(weighted(mine, swapped), weighted(theirs, 1 - swapped), strict=True)))
        as_large = ((one.mean_iou() - other.mean_iou()).abs() >= abs(change) * (1 - 1e-9)).sum().item()
        return {
            "differs": int((~self.same(reference)).sum()),
            "change": change,
            "change_low": low,
            "change_high": high,
            "p": (1 + as_large) / (1 + RESAMPLES),
        }

    def identity(self) -> tuple[str, list[int]]:
        """Plain values that are the same for the same answers about the same images."""
        return hashlib.sha256(self.confusion.numpy().tobytes()).hexdigest(), self.digest.tolist()

    def columns(self) -> dict[str, list[Any]]:
        """For a CSV file, a row an image. confusion: `true>predicted:pixels` of the pairs that there are."""
        return {
            "classes": [self.confusion.shape[1]] * len(self),
            "pixels": self.pixels.tolist(),
            "right": self.confusion.diagonal(dim1=1, dim2=2).sum(1).tolist(),
            "loss": self.loss.tolist(),
            "mask": self.digest.tolist(),
            "confusion": [sparse(each) for each in self.confusion],
        }

    @classmethod
    def of_rows(cls, rows: list[dict[str, str]]) -> "MaskPredictions":
        """From the rows of that file, every value as text."""
        confusion = torch.stack([dense(row["confusion"], int(row["classes"])) for row in rows])
        loss = torch.tensor([float(row["loss"]) for row in rows])
        return cls(confusion, loss, torch.tensor([int(row["mask"]) for row in rows]))

    @classmethod
    def joined(cls, parts: list["MaskPredictions"]) -> "MaskPredictions":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("confusion", "loss", "digest")))

    @classmethod
    def of_logits(cls, logits: Tensor, labels: Tensor, ignore_index: int) -> "MaskPredictions":
        """logits [n, classes, h, w], labels int64 [n, h, w], on any device.

        Raises UserError for a label that is neither a class nor the ignore index.
        """
        each = [
            of_image(*pair, ignore_index) for pair in zip(logits.split(1), labels.to(logits.device), strict=True)
        ]  # one image at a time: float32 maps of 150 classes are large
        confusion, loss, digest = zip(*each, strict=True)
        return cls(torch.stack(confusion), torch.tensor(loss), torch.tensor(digest))

    def areas(self) -> Areas:
        """Of each image: [n, classes]"""
        counts = self.confusion.double()
        return Areas(counts.diagonal(dim1=1, dim2=2), counts.sum(2), counts.sum(1))

    def _summed(self) -> Areas:
        return Areas(*(each.sum(0) for each in self.areas()))


def weighted(areas: Areas, times: Tensor) -> Areas:
    """Sums over images. areas [n, classes]; times: float64 [draws, n], how often each image is in a draw."""
    return Areas(*(times @ each for each in areas))


def of_image(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, float, int]:
    """Confusion int64 [classes, classes], mean nats and digest. logits [1, classes, h, w], labels int64 [h, w]."""
    classes = logits.shape[1]
    check_labels(labels, classes, ignore_index)
    counted = labels != ignore_index
    predicted = logits[0].argmax(0)
    pairs = labels[counted] * classes + predicted[counted]
    confusion = pairs.bincount(minlength=classes**2).view(classes, classes)
    nats = F.cross_entropy(logits.float(), labels[None], ignore_index=ignore_index, reduction="none")
    loss = nats.double().sum().item() / max(1, int(counted.sum()))
    return confusion.cpu(), loss, digest_of(predicted)


def check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raises UserError for a label that is neither a class nor the ignore index."""
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise UserError(
            f"a pixel is labelled {int(wrong[0])}, but the model has classes 0 to {classes - 1} and data.ignore_index "
            f"is {ignore_index}; make the data's label mapping and the model's num_classes agree"
        )


def digest_of(mask: Tensor) -> int:
    """64 bits of a hash of a mask's size and values, as a signed number: int64 [h, w]"""
    values = mask.to(torch.int32).cpu().contiguous().numpy()
    key = repr(values.shape).encode() + values.astype("<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little", signed=True)


def sparse(confusion: Tensor) -> str:
    places = confusion.nonzero().tolist()
    return " ".join(f"{true}>{predicted}:{int(confusion[true, predicted])}" for true, predicted in places)


def dense(text: str, classes: int) -> Tensor:
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for entry in text.split():
        place, _, count = entry.partition(":")
        true, _, predicted = place.partition(">")
        confusion[int(true), int(predicted)] = int(count)
    return confusion
