"""Any set of images with a class a pixel: a hub name, parquet files, or folders of images and of label images.

    files -> pixels and classes (segmentation_decoding.py, segmentation_labels.py), read once (segmentation_store.py)
        -> resized, cut, mirrored, distorted, in training (segmentation_augmentation.py); resized, in evaluation
        -> (pixels / 255 - mean) / std

In evaluation the classes keep the size of their file, so that a figure is of the pixels that were labelled.
"""

import warnings
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import file_digest
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgetrain.data.channel_statistics import Moments, check_given, statistics
from edgetrain.data.labelled import LabelledData, Split, disjoint, parted
from edgetrain.data.labelled_rows import open_stored, place_of
from edgetrain.data.packed import digest
from edgetrain.data.preview import Preview
from edgetrain.data.segmentation_augmentation import JointAugmentation, Size, scaled_size
from edgetrain.data.segmentation_decoding import BrokenFile, Pair, PairReader
from edgetrain.data.segmentation_facts import pixel_facts, preview, split_rows
from edgetrain.data.segmentation_labels import LabelMap, palette_of
from edgetrain.data.segmentation_rows import find_set, pair_rows
from edgetrain.data.segmentation_samples import Batches, HeldOut, HeldOutLoader, Plain, Training, TrainingLoader
from edgetrain.data.segmentation_settings import check_settings
from edgetrain.data.segmentation_store import Store, opened
from edgetrain.errors import UserError, listing
from edgetrain.folder import Row


@dataclass(eq=False, repr=False, kw_only=True)
class SegmentationData(LabelledData):
    """Batches (float32 [batch, 3, height, width], classes int64 [batch, height, width]). Others are LabelledData's.

    path: hub name, parquet file, or folder; hub: the hub name where nothing is at `path`. image, label: columns;
        image_files, label_files: patterns of a folder's files (segmentation_rows.py).
    labels: names of the classes, in order. palette: a colour a class; None takes PASCAL VOC's.
    label_map, reduce_zero_label, void, ignore_index: what a value of a label image is (segmentation_labels.py).
    test: own takes the set's test split, or cuts one from train; validation takes validation for it.
    size: height and width of a training image in pixels. scale, keep_ratio: to what images are resized before, and in
        evaluation (scaled_size); None is their own size. ratio_range, category_max_ratio, flip, photometric:
        JointAugmentation's.
    mean, std: of each channel, of pixels in [0, 1]; None computes them from train.
    skip_broken: leave out pairs that cannot be decoded, instead of stopping.
    """

    item: ClassVar[str] = "image"

    size: list[int]
    labels: list[str] | None = None
    hub: str | None = None
    image: str = "image"
    label: str = "label"
    image_files: str = "images/{split}/{name}.*"
    label_files: str = "annotations/{split}/{name}.png"
    palette: list[list[int]] | None = None
    label_map: dict[int, int | None] | None = None
    reduce_zero_label: bool = False
    void: list[int] = field(default_factory=list)
    ignore_index: int = 255
    test: Literal["own", "validation"] = "own"
    scale: list[int] | None = None
    keep_ratio: bool = True
    ratio_range: list[float] = field(default_factory=lambda: [0.5, 2.0])
    category_max_ratio: float = 0.75
    flip: float = 0.5
    photometric: bool = True
    mean: list[float] | None = None
    std: list[float] | None = None
    skip_broken: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self)
        check_given(self.mean, self.std, 3)
        self.classes = LabelMap(
            self.path, self.num_classes, self.label_map, self.reduce_zero_label, self.void, self.ignore_index
        )
        self.labels = self.labels or [f"class {number}" for number in range(self.num_classes)]
        self.palette = self.palette or palette_of(self.num_classes)
        self.name, self.local, self.notes = self.path, None, []
        self.stored: dict[str, pa.Table] = {}  # what each row of each split holds of its image and label
        self.broken: dict[str, int] = {}  # pairs of each split that were left out

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a training image: channels, height, width."""
        return (3, *self.size)

    def prepare_data(self) -> None:
        """Fill the cache once a machine, so that the other processes find it; what cannot be read fails here."""
        self.setup()
        _ = self.statistics

    def find_splits(self) -> dict[str, Split]:
        self.name, self.local = find_set(self.path, self.hub)
        without = "test" if self.test == "validation" else None
        columns = (self.image, self.label, self.image_files, self.label_files)
        self.stored, self.notes = pair_rows(self.name, self.local, *columns, without)
        pairs = {split: self._pairs(split, rows) for split, rows in self.stored.items()}
        if without is None:
            return disjoint(parted(pairs))
        found = disjoint(parted(pairs | {without: []}))
        return found | {without: found["validation"]}

    def _pairs(self, split: str, rows: pa.Table) -> list[Pair]:
        pairs = []
        for row, (image, label) in enumerate(zip(rows["image"], rows["label"], strict=True)):
            image_place, label_place = (place_of(each.as_py(), row, split) for each in (image, label))
            with open_stored(image.as_py(), self.local, self.name, image_place) as file:
                key = file_digest(file, "sha256").digest()
            with open_stored(label.as_py(), self.local, self.name, f"the label image of {label_place}") as file:
                label_key = file_digest(file, "sha256").hexdigest()
            pairs.append(Pair(key, label_key, image_place, label_place, (split, row)))
        return pairs

    def _open(self, pair: Pair, column: str) -> BinaryIO:
        split, row = pair.content
        where = pair.where if column == "image" else f"the label image of {pair.label_where}"
        return open_stored(self.stored[split][column][row].as_py(), self.local, self.name, where)

    def setup(self, stage: str | None = None) -> None:
        """Find every split's pairs and read each once; a second call does nothing.

        Raises UserError as LabelledData's does, for a label image that the settings do not explain, and, without
        skip_broken, for pairs that cannot be decoded.
        """
        if self.splits:
            return
        super().setup(stage)
        try:
            self._read_all()
        except UserError:
            self.splits = {}
            raise

    def _read_all(self) -> None:
        files = (partial(self._open, column=column) for column in ("image", "label"))
        self.reader = PairReader(self.name, *files, self.classes)
        distinct = {(pair.key, pair.label): pair for split in self.splits.values() for pair in split.items}
        pairs = [distinct[key] for key in sorted(distinct)]
        self.store: Store = opened(self.reader, pairs)
        self.store_places = {(pair.key, pair.label): place for place, pair in enumerate(pairs)}
        self._leave_out_broken([pair for place, pair in enumerate(pairs) if self.store.broken[place]])
        for name, split in self.splits.items():
            if not self.class_pixels(name).any():
                raise UserError(
                    f"no pixel of the {name} split of data.path={self.name} has a class, all {len(split.items)} label "
                    "images are void; mend data.void or data.label_map"
                    + (", or set data.test=validation where the set publishes no test labels" * (name == "test"))
                )

    def _leave_out_broken(self, broken: list[Pair]) -> None:
        """Raises UserError that names and counts them, unless they are to be skipped; then warns once."""
        self.broken = dict.fromkeys(self.splits, 0)
        if not broken:
            return
        if not self.skip_broken:
            more = f" and {len(broken) - 1} more cannot be decoded: {self._named(broken[1:])}" if broken[1:] else ""
            raise UserError(f"{self._why(broken[0])}{more}; data.skip_broken=true leaves such images out")
        warnings.warn(
            f"data.path={self.name}: {len(broken)} images cannot be decoded and are left out: {self._named(broken)}",
            stacklevel=2,
        )
        left_out = {(pair.key, pair.label) for pair in broken}
        for name, split in self.splits.items():
            kept = [pair for pair in split.items if (pair.key, pair.label) not in left_out]
            self.broken[name] = len(split.items) - len(kept)
            if not kept:
                raise UserError(f"no image of the {name} split of data.path={self.name} can be decoded; mend them")
            self.splits[name] = Split(kept, split.dropped)

    def _why(self, pair: Pair) -> str:
        try:
            self.reader(pair)
        except BrokenFile as error:
            return str(error)
        return f"data.path={self.name}: {pair.where} could not be decoded"

    def _named(self, pairs: list[Pair]) -> str:
        return listing(pair.where for pair in pairs)

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [height, width, 3] and classes [height, width] of a pair as it is; BrokenFile for one that broke."""
        pair = self.splits[split].items[index]
        if self.store.stream is not None:
            return self.store.read(self.store_places[pair.key, pair.label])
        return self.reader(pair)[:2]

    def places_of(self, split: str) -> list[int]:
        """Where the store has each pair of a split."""
        return [self.store_places[pair.key, pair.label] for pair in self.splits[split].items]

    def evaluation_size(self, own: Size) -> Size:
        """Height and width of an image in evaluation, of one with height and width `own`."""
        return scaled_size(own, self.scale, self.keep_ratio)

    @cached_property
    def augmentation(self) -> JointAugmentation:
        return JointAugmentation(
            size=(self.size[0], self.size[1]),
            scale=self.scale,
            keep_ratio=self.keep_ratio,
            ratio_range=self.ratio_range,
            category_max_ratio=self.category_max_ratio,
            flip=self.flip,
            photometric=self.photometric,
            ignore_index=self.ignore_index,
        )

    def samples(self, split: str) -> Dataset:
        """Of train without augmentation, cut around the centre to `size`; of others as evaluation has them."""
        items = len(self.splits[split].items)
        return Plain(self, items) if split == "train" else HeldOut(self, split, items)

    def training_samples(self) -> Training:
        return Training(self, len(self.splits["train"].items), self.seed, self.augmentation, self.skip_broken)

    def train_dataloader(self) -> TrainingLoader:
        return TrainingLoader(self.training_samples(), self.seed, self.batch_size, self.workers, self._report)

    def _report(self, failed: list[int]) -> None:
        if failed:
            names = self._named([self.splits["train"].items[index] for index in failed])
            warnings.warn(
                f"data.path={self.name}: {len(failed)} images could not be decoded in training, and the next ones "
                f"stood in for them: {names}",
                stacklevel=2,
            )

    def _in_order(self, split: str) -> HeldOutLoader:
        """Batches in the split's order, each of one size."""
        places = self.places_of(split)
        sizes = [tuple(size) for size in self.store.sizes[places].tolist()]
        batches = Batches(self.samples(split), sizes, self.batch_size)
        # Its own generator, as in ResumableLoader: validation must not move the global one.
        return HeldOutLoader(batches, batch_size=None, num_workers=self.workers, generator=torch.Generator())

    def class_pixels(self, split: str) -> np.ndarray:
        """Counted pixels of each class, at the size of the files: int64 [classes]."""
        return self.store.pixels[self.places_of(split)].sum(0)[:-1]

    label_counts = class_pixels

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """mean and std, float32 [3, 1, 1]: as given, else of all pixels of train, with four digits."""
        return statistics(self.mean, self.std, self._moments, self.name)

    def _moments(self) -> Moments:
        places = self.places_of("train")
        pixels = int(self.store.sizes[places].prod(1).sum())
        sums, squares = self.store.sums[places].sum(0)
        means = sums / pixels
        stds = np.sqrt(np.maximum(squares / pixels - means**2, 0))
        return np.round(means / 255, 4).tolist(), np.round(stds / 255, 4).tolist()

    def normalised(self, pixels: Tensor) -> Tensor:
        """float32 of pixels of 0 to 255, [..., 3, height, width]."""
        mean, std = self.statistics
        return pixels.float().div(255).sub_(mean).div_(std)

    def denormalised(self, images: Tensor) -> Tensor:
        """uint8 of what `normalised` gave, [..., 3, height, width]."""
        mean, std = (each.to(images.device) for each in self.statistics)
        return images.float().mul(std).add_(mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)

    def preprocessing(self) -> dict[str, Any]:
        """What happens to an image before the model, as plain values."""
        mean, std = (each.flatten().tolist() for each in self.statistics)
        kept = "at most, its longer and its shorter side, with their ratio" if self.keep_ratio else "exactly"
        return {
            "resized_to": "its own size" if self.scale is None else f"{self.scale[0]}x{self.scale[1]} {kept}",
            "resizing": "bilinear with antialiasing",
            "channels": "RGB",
            "layout": "channels, height, width",
            "amplitude": "(pixels / 255 - mean) / std, by channel",
            "mean": [round(value, 6) for value in mean],
            "std": [round(value, 6) for value in std],
        }

    def facts(self) -> dict[str, Any]:
        """LabelledData's, of pixels, pixel_facts, and mean and std of the channels."""
        said = self.preprocessing()
        return super().facts() | pixel_facts(self) | {"mean": said["mean"], "std": said["std"]}

    @property
    def test_is(self) -> str:
        """What stands for the test split: the set's own, a part of train, or validation."""
        if self.test == "validation":
            return "the validation split"
        return "the set's own" if "test" in self.stored else "a part of train, by a hash of each image"

    def shares(self, split: str) -> np.ndarray:
        """Of the counted pixels, each class's: float64 [classes]."""
        pixels = self.class_pixels(split)
        return pixels / pixels.sum()

    def _sha256(self, split: str) -> str:
        """Of the pairs' contents and of what is made of their values."""
        return digest(repr(self.classes.settings), super()._sha256(split))

    def split_rows(self) -> list[Row]:
        return split_rows(self)

    def preview(self, samples: int = 10) -> Preview:
        return preview(self, samples)
