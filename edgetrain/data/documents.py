"""Text documents from a Hugging Face hub name or a local file or folder, in three splits that share no document.

A split that the set lacks is cut from train by a hash of each document (5 %), never by position: the end of a file is
often unlike its beginning. Documents that an earlier split holds too are dropped from the later one, so that held-out
text never enters training.

The documents themselves stay on the disk. In memory is a key of 8 bytes each, and at most 50 bytes each while the
splits are made: 5 GB for 100 million. Two documents count as the same when 64 bits of their sha256 agree.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from datasets import Dataset

HELD_OUT = ("validation", "test")
SHARE = 0.05  # of train, for each split that is missing
FEW_DOCUMENTS = 100  # below it a cut by document is too coarse and documents are divided into sections first
SECTION = 4096  # characters


@dataclass(frozen=True)
class Contents:
    """What is known of a split's documents, in order.

    keys: the first 8 bytes of each one's sha256, uint64 [documents]; bytes: of them all as UTF-8; sha256: of all their
    sha256; dropped: documents left out because an earlier split holds them.
    """

    keys: np.ndarray
    bytes: int
    sha256: str
    dropped: int = 0


@dataclass(frozen=True)
class Split(Contents):
    """A split whose documents are at hand, as the column "text"."""

    texts: Dataset = None

    def batches(self) -> Iterator[list[str]]:
        """The documents, some hundred at a time."""
        return text_batches(self.texts)


def text_batches(texts: Dataset) -> Iterator[list[str]]:
    return (batch["text"] for batch in texts.iter(256))


def disjoint_splits(given: dict[str, Dataset], limit: int | None) -> dict[str, Split]:
    """train, validation and test from the splits of a set (column "text"), at most `limit` documents each."""
    train = given["train"]
    missing = [name for name in HELD_OUT if name not in given]
    if missing and len(train) < FEW_DOCUMENTS:
        train = train.map(_divided, batched=True, batch_size=1)  # through a file where the set is one
    cut = _cut(train, missing) if missing else {}

    splits: dict[str, Split] = {}
    seen = np.array([], dtype=np.uint64)
    for name in ("train", *HELD_OUT):
        texts = train if name == "train" or name in missing else given[name]
        if name in cut:
            texts = texts.select(cut[name])
        if limit is not None:
            texts = texts.select(range(min(limit, len(texts))))
        splits[name] = _distinct(texts, seen)
        seen = np.union1d(seen, splits[name].keys)
    return splits


def sections(text: str) -> Iterable[str]:
    """Pieces of about SECTION characters that end at a blank line, or at any line when none comes for as long again."""
    piece: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= 2 * SECTION or (size >= SECTION and not line.strip()):
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def drawn_split(digest: bytes) -> str:
    """The split that a hash draws: validation and test with SHARE each, else train."""
    draw = int.from_bytes(digest[:4]) / 2**32
    # Each split has its own band, so that adding a validation file leaves the cut of test as it was.
    return HELD_OUT[int(draw / SHARE)] if draw < SHARE * len(HELD_OUT) else "train"


def _divided(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"text": [part for text in batch["text"] for part in sections(text or "")]}


def _cut(train: Dataset, missing: list[str]) -> dict[str, np.ndarray]:
    """Indices into `train` of the documents of each missing split and of what remains for train."""
    names = ["train", *missing]
    places = np.zeros(len(train), dtype=np.uint8)  # of each document's split in `names`
    for index, text in enumerate(text for batch in text_batches(train) for text in batch):
        name = drawn_split(sha256(f"{index}:{text}".encode()).digest())
        places[index] = names.index(name) if name in missing else 0
    return {name: np.flatnonzero(places == place) for place, name in enumerate(names)}


def _distinct(texts: Dataset, seen: np.ndarray) -> Split:
    """The documents that hold any text and whose keys are not in `seen`, which is sorted."""
    keys = np.zeros(len(texts), dtype=np.uint64)
    kept = np.zeros(len(texts), dtype=bool)
    every = sha256()
    begin = size = dropped = 0
    for batch in text_batches(texts):
        contents = [(text or "").encode() for text in batch]
        digests = digests_of(contents)
        found = keys_of(digests)
        known = held(found, seen)
        for index, (content, digest) in enumerate(zip(contents, digests, strict=True)):
            if known[index]:
                dropped += 1
            elif content:
                kept[begin + index] = True
                every.update(digest)
                size += len(content)
        keys[begin : begin + len(batch)] = found
        begin += len(batch)
    texts = texts if kept.all() else texts.select(np.flatnonzero(kept))
    return Split(keys[kept], size, every.hexdigest(), dropped, texts)


def digests_of(contents: Iterable[bytes]) -> list[bytes]:
    return [sha256(content).digest() for content in contents]


def keys_of(digests: Iterable[bytes]) -> np.ndarray:
    """The first 8 bytes of each digest: uint64 [documents]."""
    return np.frombuffer(b"".join(digest[:8] for digest in digests), dtype=np.uint64)


def held(keys: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Whether each key is one of `among`, which is sorted: bool [keys]. Costs a binary search a key."""
    places = np.searchsorted(among, keys)
    return places < np.searchsorted(among, keys, side="right")
