"""Items of a segmentation set as a model sees them, in training and in evaluation, and the batches of both."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from edgetrain.data.images_augmentation import keys_of
from edgetrain.data.order import ResumableLoader
from edgetrain.data.segmentation_augmentation import (
    JointAugmentation,
    Size,
    draws_of,
    resized,
    resized_classes,
)
from edgetrain.data.segmentation_decoding import BrokenFile
from edgetrain.errors import UserError

Item = tuple[Tensor, Tensor]  # image float32 [3, height, width], classes int64 [height, width]


class Source(Protocol):
    """What samples are made of: the pairs of one split, and how they are normalised. size: of a training image."""

    size: list[int]
    ignore_index: int

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]: ...

    def evaluation_size(self, own: Size) -> Size: ...

    def normalised(self, pixels: Tensor) -> Tensor: ...


def padded(source: Source, pixels: Tensor, classes: np.ndarray) -> Item:
    """Normalised and brought to `size` where they are smaller, below and to the right: by the mean colour and by void.

    pixels: float32 or uint8 [3, height, width] of 0 to 255.
    """
    height, width = classes.shape
    image = torch.zeros(3, *source.size)
    image[:, :height, :width] = source.normalised(pixels)
    labels = torch.full(tuple(source.size), source.ignore_index, dtype=torch.int64)
    labels[:height, :width] = torch.from_numpy(classes.astype(np.int64))
    return image, labels


class Training(Dataset):
    """Augmented items of train. `epoch` is what a loader sets.

    A file that turns out broken is fatal, or with `skip` the next one that can be read stands in for it, and `failed`,
    bool [items] and shared with the processes that read, says which.
    """

    def __init__(self, source: Source, items: int, seed: int, augmentation: JointAugmentation, skip: bool) -> None:
        self.source, self.items, self.seed, self.augmentation, self.skip = source, items, seed, augmentation, skip
        self.epoch = 0
        self.failed = torch.zeros(items, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    @torch.no_grad()
    def __getitems__(self, indices: list[int]) -> list[Item]:
        """A batch at once, which is how a DataLoader asks."""
        draws = draws_of(keys_of(self.seed, self.epoch, indices))
        return [
            padded(self.source, *self.augmentation(*self.readable(index), each))
            for index, each in zip(indices, draws, strict=True)
        ]

    def readable(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The pair, or with `skip` the next in order that can be read. Raises UserError when there is none."""
        for step in range(self.items):
            place = (index + step) % self.items
            try:
                return self.source.read("train", place)
            except BrokenFile:
                if not self.skip:
                    raise
                self.failed[place] = True
        raise UserError("none of the training images can be read any more; see whether their disk is still there")


class TrainingLoader(ResumableLoader):
    """Calls `report` with the numbers of the items that could not be read, once it stops, however it stops."""

    def __init__(
        self, samples: Training, seed: int, batch_size: int, workers: int, report: Callable[[list[int]], None]
    ) -> None:
        super().__init__(samples, seed, batch_size, workers)
        self.report = report

    def __iter__(self) -> Iterator[list[Tensor]]:
        try:
            yield from one_sentence(super().__iter__())
        finally:
            self.report(self.dataset.failed.nonzero().flatten().tolist())


class HeldOutLoader(DataLoader):
    """Batches that are whole items of its data set."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        yield from one_sentence(super().__iter__())


def one_sentence(batches: Iterator[list[Tensor]]) -> Iterator[list[Tensor]]:
    """The same batches; of a UserError in another process, which comes with its traceback, the sentence alone."""
    try:
        yield from batches
    except UserError as error:
        raise UserError(
            str(error).strip().split("\n")[-1].removeprefix(f"{BrokenFile.__module__}.BrokenFile: ")
        ) from error


class Plain(Dataset):
    """Items of train without augmentation: resized as in evaluation, and cut around the centre to `size`."""

    def __init__(self, source: Source, items: int) -> None:
        self.source, self.items = source, items

    def __len__(self) -> int:
        return self.items

    @torch.no_grad()
    def __getitem__(self, index: int) -> Item:
        image, classes = self.source.read("train", index)
        whole = self.source.evaluation_size(classes.shape)
        height, width = (min(wanted, there) for wanted, there in zip(self.source.size, whole, strict=True))
        box = ((whole[0] - height) // 2, (whole[1] - width) // 2, height, width)
        pixels = np.array(resized(image, whole, box).transpose(2, 0, 1))
        return padded(self.source, torch.from_numpy(pixels), resized_classes(classes, whole, box))


class HeldOut(Dataset):
    """Items of a split that is judged: the image resized, the classes at their own size."""

    def __init__(self, source: Source, split: str, items: int) -> None:
        self.source, self.split, self.items = source, split, items

    def __len__(self) -> int:
        return self.items

    @torch.no_grad()
    def __getitem__(self, index: int) -> Item:
        image, classes = self.source.read(self.split, index)
        pixels = np.array(resized(image, self.source.evaluation_size(classes.shape)).transpose(2, 0, 1))
        return self.source.normalised(torch.from_numpy(pixels)), torch.from_numpy(classes.astype(np.int64))


class Batches(Dataset):
    """Collated batches of a split in its order, at most batch_size items each, and all of one size."""

    def __init__(self, samples: HeldOut, sizes: Sequence[Size], batch_size: int) -> None:
        self.samples, self.places = samples, runs(sizes, batch_size)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> list[Tensor]:
        return default_collate([self.samples[place] for place in self.places[index]])


def runs(sizes: Sequence[Size], longest: int) -> list[range]:
    """Ranges of neighbours with the same size, none longer than `longest`."""
    starts = [0]
    for place in range(1, len(sizes)):
        if sizes[place] != sizes[place - 1] or place - starts[-1] == longest:
            starts.append(place)
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(sizes)], strict=True)]
