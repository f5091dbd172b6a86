"""What every data module of items with one label each shares: its splits, their sizes and hashes, and batches of them.

A split that a set lacks is cut from train by a hash of each item's content (5 %). Items that an earlier split holds,
byte by byte, are dropped from the later one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgetrain.data.documents import HELD_OUT, drawn_split
from edgetrain.data.order import ResumableLoader
from edgetrain.data.packed import digest
from edgetrain.errors import UserError
from edgetrain.folder import Row

MOST_LABELS = 20  # a preview counts the items of each label for at most so many


class Item(Protocol):
    """label: its number among the labels; key: what tells its content from any other."""

    label: int
    key: bytes


@dataclass(frozen=True)
class Split:
    """items in order; dropped: how many were left out because an earlier split holds the same."""

    items: list[Any] = field(default_factory=list)
    dropped: int = 0


@dataclass(eq=False, repr=False, kw_only=True)
class LabelledData(LightningDataModule):
    """Batches (inputs float32, labels int64 [batch]). `splits` and `labels` exist after `setup`.

    path: of the set. num_classes: verified against the labels. seed: of the training order and of what happens to
    training items. limit: items kept per split, evenly spaced over it; None keeps all. workers: processes that read
    batches; 0 reads in the training process. origin: the set's source and licence.

    A subclass says `find_splits` and `samples`, and what it calls an item. Raises UserError for settings out of range.
    """

    item: ClassVar[str] = "item"

    path: str
    num_classes: int
    batch_size: int = 100
    seed: int = 0
    limit: int | None = None
    workers: int = 0
    origin: dict[str, str] | None = None
    labels: list[str] = field(init=False)
    splits: dict[str, Split] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        if self.batch_size < 1:
            raise UserError(f"data.batch_size={self.batch_size} holds no {self.item}; set it to at least 1")
        if self.workers < 0:
            raise UserError(f"data.workers={self.workers} is negative; 0 reads in the training process")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"data.limit={self.limit} keeps nothing; set it to at least 1, or null for all")

    def find_splits(self) -> dict[str, Split]:
        """train, validation and test, which share no item; sets `labels`."""
        raise NotImplementedError

    def samples(self, split: str) -> Dataset:
        """(input, label) of each item as it is, in the order of the split."""
        raise NotImplementedError

    def training_samples(self) -> Dataset:
        """Those of train, as training sees them."""
        return self.samples("train")

    def setup(self, stage: str | None = None) -> None:
        """Find every split's items; a second call does nothing.

        Raises UserError when the set cannot be read, has another number of labels, or leaves a split empty.
        """
        if self.splits:
            return
        found = self.find_splits()
        if len(self.labels) != self.num_classes:
            raise UserError(
                f"data.num_classes={self.num_classes}, but data.path={self.path} has {len(self.labels)} labels "
                f"({', '.join(self.labels[:20])}); set data.num_classes={len(self.labels)}"
            )
        for name, split in found.items():
            if not split.items:
                raise UserError(f"the {name} split of data.path={self.path} has no {self.item}s; give more of them")
        self.splits = {name: Split(thinned(each.items, self.limit), each.dropped) for name, each in found.items()}

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(self.training_samples(), self.seed, self.batch_size, self.workers)

    def val_dataloader(self) -> DataLoader:
        return self._in_order("validation")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def facts(self) -> dict[str, Any]:
        """What a report says of the data: a hash of its contents, the sizes of its splits, and two baselines.

        chance: accuracy of a uniform guess; majority: on test, of always answering train's most frequent label.
        """
        facts: dict[str, Any] = {"corpus_sha256": digest(*(self._sha256(split) for split in self.splits))}
        for name, split in self.splits.items():
            facts[name] = {"samples": len(split.items), "dropped": split.dropped}
        tested = self.label_counts("test")
        majority = float(tested[self.label_counts("train").argmax()] / tested.sum())
        return facts | {"chance": 1 / len(self.labels), "majority": majority}

    def label_counts(self, split: str) -> np.ndarray:
        """Items of each label."""
        return np.bincount([item.label for item in self.splits[split].items], minlength=len(self.labels))

    def split_rows(self) -> list[Row]:
        """How many items a split has, and of each label, for a preview."""
        rows = []
        for name, split in self.splits.items():
            counts = self.label_counts(name).tolist()
            by_label: Row = dict(zip(self.labels, counts, strict=True))
            if len(self.labels) > MOST_LABELS:
                by_label = {"labels": len(counts), "fewest of a label": min(counts), "most": max(counts)}
            rows.append({"split": name, f"{self.item}s": len(split.items)} | by_label)
        return rows

    def dropped_notes(self) -> list[str]:
        """A sentence for each split that lost items, for a preview."""
        return [
            f"{name}: {split.dropped} {self.item}s dropped because an earlier split holds them"
            for name, split in self.splits.items()
            if split.dropped
        ]

    @cached_property
    def distinct(self) -> list[Any]:
        """The items of all splits, one of each content, in an order that is the same for every way to split the set."""
        items = {item.key: item for split in self.splits.values() for item in split.items}
        return [items[key] for key in sorted(items)]

    @cached_property
    def places(self) -> dict[bytes, int]:
        """Where each key's item is among the distinct ones, which is where a cache has it."""
        return {item.key: place for place, item in enumerate(self.distinct)}

    def _sha256(self, split: str) -> str:
        """Of the items' contents and labels, in order."""
        return digest(*(f"{item.key.hex()} {item.label}" for item in self.splits[split].items))

    def _in_order(self, split: str) -> DataLoader[tuple[Tensor, Tensor]]:
        # Its own generator, as in ResumableLoader: validation must not move the global one.
        samples = self.samples(split)
        return DataLoader(samples, batch_size=self.batch_size, num_workers=self.workers, generator=torch.Generator())


def thinned(items: list[Any], limit: int | None) -> list[Any]:
    """At most `limit` of them, from the middles of as many equal parts."""
    if limit is None or len(items) <= limit:
        return items
    return [items[(2 * part + 1) * len(items) // (2 * limit)] for part in range(limit)]


def parted(items: dict[str, Sequence[Item]]) -> dict[str, list[Item]]:
    """train, validation and test, of which those that are missing are cut from train by a hash of each item."""
    parts: dict[str, list[Item]] = {name: list(items.get(name, [])) for name in HELD_OUT} | {"train": []}
    for item in items["train"]:
        name = drawn_split(item.key)
        parts["train" if name in items else name].append(item)
    return {name: parts[name] for name in ("train", *HELD_OUT)}


def disjoint(items: dict[str, list[Item]]) -> dict[str, Split]:
    """The splits without what an earlier one holds."""
    seen: set[bytes] = set()
    splits = {}
    for name, each in items.items():
        kept = [item for item in each if item.key not in seen]
        splits[name] = Split(kept, len(each) - len(kept))
        seen.update(item.key for item in kept)
    return splits
