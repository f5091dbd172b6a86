"""Any set of images with a label each: a hub name, parquet files, or a folder of folders named by their label.

    file -> pixels of one size (images_decoding.py) -> augmentation, in training (images_augmentation.py)
        -> (pixels / 255 - mean) / std -> input_augmentation, in training

Decoded images stand in the cache, computed once for the whole set, however it is split; what follows is computed where
batches are read, a batch at a time. With `random_resized_crop` training reads the files themselves, at every epoch
anew: a crop of the original has pixels that the cached size has lost.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import file_digest
from typing import Any, BinaryIO, ClassVar, Literal

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgetrain.data.channel_statistics import check_given, statistics
from edgetrain.data.images_augmentation import Augmentation, Keys, keys_of, mixed, one_by_one, resized_crop
from edgetrain.data.images_decoding import TOGETHER, Decoder, Interpolation, LabelledImage, original_size
from edgetrain.data.images_keys import kept_keys
from edgetrain.data.labelled import LabelledData, Split, disjoint, parted, thinned
from edgetrain.data.labelled_rows import (
    check_features,
    label_names,
    open_stored,
    ordered_labels,
    place_of,
    read_rows,
    tested_on,
)
from edgetrain.data.preview import Preview, content_keys, duplicate_rows
from edgetrain.data.source import find_local
from edgetrain.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
LARGEST_CACHE = 2**32  # bytes of decoded images; those of a larger set are decoded whenever they are asked for
CROP, INPUTS = np.uint64(2**32), np.uint64(2**33)  # added to an image's key: draws apart from those of augmentation
STATISTICS = 5_000  # images of train, evenly spaced over it, that give mean and std where the cache holds none


@dataclass(eq=False, repr=False, kw_only=True)
class ImageData(LabelledData):
    """Batches (float32 [batch, channels, height, width], labels int64 [batch]). Other arguments are LabelledData's.

    path: hub name, parquet file, or folder (source.py says where a relative name is looked for). image, label: columns;
        a folder of image files has columns of these names.
    labels: their order, as the model's outputs have it; None takes the set's own, else alphabetical order.
    size: height and width of an image in pixels; others are scaled and cut. channels: 3 for RGB, 1 for grey.
    mean, std: of each channel, of pixels in [0, 1]; None computes them from train.
    crop: share of each side that the cut around the centre keeps of the scaled image. interpolation: of all scaling.
    random_resized_crop: smallest and largest share of an original's area that a training image is cut from, with sides
        in proportions of 3/4 to 4/3, and scaled to `size`; None: training images are cut as all others.
    augmentation: torchvision transforms (v2) of training images, uint8 [channels, height, width] to the same.
    input_augmentation: the same of what the model gets, float32 after mean and std.
    test_split: the set's split that is judged as test, where its own has no labels; what else is held out is not read.
    """

    item: ClassVar[str] = "image"

    size: list[int]
    image: str = "image"
    label: str = "label"
    labels: list[str] | None = None
    channels: Literal[1, 3] = 3
    mean: list[float] | None = None
    std: list[float] | None = None
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"
    random_resized_crop: list[float] | None = None
    augmentation: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    input_augmentation: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    test_split: str = "test"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"data.size={self.size} is not the height and width of an image, in pixels")
        check_given(self.mean, self.std, self.channels)
        if not 0 < self.crop <= 1:
            raise UserError(f"data.crop={self.crop} is outside 0 to 1; 1 keeps all that covers data.size")
        share = self.random_resized_crop
        if share is not None and not (len(share) == 2 and 0 < share[0] <= share[1] <= 1):
            raise UserError(
                f"data.random_resized_crop={share} is not the smallest and largest share of an image's area, as "
                "[0.08, 1.0]; null: training images are cut as all others"
            )
        self.augment = Augmentation(self.augmentation)
        self.augment_inputs = Augmentation(self.input_augmentation, "data.input_augmentation", torch.float32)
        for augmentation in (self.augment, self.augment_inputs):
            augmentation.check(self.shape)
        self.decoder = Decoder(self.path, self.open, self.shape[1:], self.channels, self.crop, self.interpolation)
        self.stored: dict[str, pa.ChunkedArray] = {}  # what each row of each split holds of its image

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return (self.channels, *self.size)

    def prepare_data(self) -> None:
        """Fill the cache once a machine, so that the other processes find it; what cannot be read fails here."""
        self.setup()
        _ = self.cached, self.statistics

    def find_splits(self) -> dict[str, Split]:
        self.local = find_local(self.path)
        columns = {"image": self.image, "label": self.label}
        rows = tested_on(read_rows(self.path, self.local, columns, SUFFIXES, "image"), self.test_split, self.path)
        features = rows["train"].features
        check_features(features, self.path, "image", self.image, self.label, datasets.Image)
        names = {split: label_names(each, self.label, self.path, split) for split, each in rows.items()}
        found = {name for each in names.values() for name in each}
        self.labels = ordered_labels(features[self.label], found, self.labels, self.path)
        self.stored = {split: each.with_format("arrow")[:][self.image] for split, each in rows.items()}
        return disjoint(parted({split: self._images(split, names[split]) for split in rows}))

    def _images(self, split: str, names: list[str]) -> list[LabelledImage]:
        numbers = {name: number for number, name in enumerate(self.labels)}
        where = [place_of(named(scalar), row, split) for row, scalar in enumerate(self.stored[split])]
        keys = kept_keys(
            self._keys(split, where), len(names), self.path, self.local, split, self.test_split, self.image
        )
        return [
            LabelledImage(numbers[name], key, place, (split, row))
            for row, (name, key, place) in enumerate(zip(names, keys, where, strict=True))
        ]

    def _keys(self, split: str, where: list[str]) -> Iterator[bytes]:
        """A hash of each image's file."""
        for row, place in enumerate(where):
            with open_stored(self._stored(split, row), self.local, self.path, place) as file:
                yield file_digest(file, "sha256").digest()

    def _stored(self, split: str, row: int) -> Any:
        return self.stored[split][row].as_py()

    def open(self, image: LabelledImage) -> BinaryIO:
        """The file of (split, row)."""
        split, row = image.content
        return open_stored(self._stored(split, row), self.local, self.path, image.where)

    def samples(self, split: str) -> "Samples":
        return Samples(self, split)

    def training_samples(self) -> "Samples":
        return Samples(self, "train", augmented=True)

    @cached_property
    def cached(self) -> Tensor | None:
        """Pixels of the distinct images, memory-mapped uint8 [images, *shape]; None where they are too many."""
        if len(self.distinct) * int(np.prod(self.shape)) > LARGEST_CACHE:
            return None
        return self.decoder.cached(self.distinct)

    def pixels(self, images: Sequence[LabelledImage]) -> Tensor:
        """Of these, uint8 [n, *shape], from the cache where they fit into it."""
        if self.cached is None:
            return self.decoder(images)
        return self.cached[[self.places[image.key] for image in images]]

    def crops(self, images: Sequence[LabelledImage], keys: Keys) -> Tensor:
        """Of training images, uint8 [n, *shape]: as all others, or cut at random from the originals."""
        if self.random_resized_crop is None:
            return self.pixels(images)
        transform = resized_crop(self.shape[1:], self.random_resized_crop, self.interpolation)
        return one_by_one(transform, map(self.decoder.original, images), mixed(keys + CROP))

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """mean and std, float32 [channels, 1, 1]: as given, else of train, with four digits.

        Raises UserError when a channel has one value only.
        """
        return statistics(self.mean, self.std, self._moments, self.path)

    def _moments(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over all pixels of train."""
        images = thinned(self.splits["train"].items, STATISTICS if self.cached is None else None)
        counts = np.zeros((self.channels, 256), dtype=np.int64)
        for start in range(0, len(images), TOGETHER):
            pixels = self.pixels(images[start : start + TOGETHER]).numpy()
            for channel, counted in enumerate(counts):
                counted += np.bincount(pixels[:, channel].ravel(), minlength=256)
        values = np.arange(256) / 255
        means = (counts * values).sum(1) / counts.sum(1)
        squares = (counts * (values - means[:, None]) ** 2).sum(1) / counts.sum(1)
        return np.round(means, 4).tolist(), np.round(np.sqrt(squares), 4).tolist()

    def normalised(self, pixels: Tensor) -> Tensor:
        """float32 of uint8 [n, *shape]."""
        mean, std = self.statistics
        return pixels.float().div_(255).sub_(mean).div_(std)

    def preprocessing(self) -> dict[str, Any]:
        """What happens to an image before the model, as plain values."""
        mean, std = (each.flatten().tolist() for each in self.statistics)
        over = "" if self.crop == 1 else f" over {self.crop}, rounded down"
        return {
            "height": self.size[0],
            "width": self.size[1],
            "channels": "RGB" if self.channels == 3 else "grey",
            "layout": "channels, height, width",
            "other_sizes": f"scaled to cover the size{over}, {self.interpolation} with antialiasing, cut around the "
            "centre",
            "amplitude": "(pixels / 255 - mean) / std, by channel",
            "mean": [round(value, 6) for value in mean],
            "std": [round(value, 6) for value in std],
        }

    def facts(self) -> dict[str, Any]:
        """LabelledData's, and mean and std of the channels."""
        said = self.preprocessing()
        return super().facts() | {"mean": said["mean"], "std": said["std"]}

    def preview(self, samples: int = 10) -> Preview:
        """The first images that a run trains on, sizes, images of each label, shorter sides, and repeated contents."""
        order = self.train_dataloader().sampler
        train = self.splits["train"].items
        chosen = [train[index] for index, _ in zip(order, range(samples), strict=False)]
        texts = [
            f"{'x'.join(map(str, self._original_size(image)))}  {self.labels[image.label]} {image.where}"
            for image in chosen
        ]
        lengths = {
            name: np.array([min(self._original_size(image)) for image in split.items])
            for name, split in self.splits.items()
        }
        keys = {name: content_keys(image.key for image in split.items) for name, split in self.splits.items()}
        duplicates, notes = duplicate_rows("images", keys), self.dropped_notes()
        return Preview(texts, self.split_rows(), lengths, "pixels of the shorter side", duplicates, notes)

    def _original_size(self, image: LabelledImage) -> tuple[int, int]:
        """Width and height of its file."""
        with self.open(image) as file:
            return original_size(file)


def named(stored: pa.Scalar) -> Any:
    """What a row holds of its image, without the bytes, which would all be read."""
    if isinstance(stored, pa.StructScalar):
        return {"path": stored["path"].as_py()}
    return stored.as_py() if isinstance(stored, pa.StringScalar | pa.LargeStringScalar) else None


class Samples(Dataset):
    """(input, label) of each image of a split. `epoch` is what a loader sets; only augmented samples depend on it."""

    def __init__(self, data: ImageData, split: str, augmented: bool = False) -> None:
        self.data, self.images, self.augmented = data, data.splits[split].items, augmented
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    @torch.no_grad()
    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """A batch at once, which is how a DataLoader asks."""
        data, images = self.data, [self.images[index] for index in indices]
        if self.augmented:
            keys = keys_of(data.seed, self.epoch, indices)
            inputs = data.normalised(data.augment(data.crops(images, keys), keys))
            inputs = data.augment_inputs(inputs, keys + INPUTS)
        else:
            inputs = data.normalised(data.pixels(images))
        return list(zip(inputs, (image.label for image in images), strict=True))
