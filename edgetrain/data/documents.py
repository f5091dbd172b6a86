"""Text documents from a Hugging Face hub name or a local file or folder, in three splits that share no document.

A split that the set lacks is cut from train by a hash of each document (5 %), never by position: the end of a file is
often unlike its beginning. Documents that an earlier split holds too are dropped from the later one, so that held-out
text never enters training.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from datasets import Dataset

HELD_OUT = ("validation", "test")
SHARE = 0.05  # of train, for each split that is missing
FEW_DOCUMENTS = 100  # below it a cut by document is too coarse and documents are divided into sections first
SECTION = 4096  # characters


@dataclass(frozen=True)
class Split:
    """Documents of one split in order, each with its sha256; `bytes` counts them as UTF-8.

    dropped: documents left out because an earlier split holds them.
    """

    texts: Dataset
    digests: list[bytes]
    bytes: int
    dropped: int = 0

    @property
    def sha256(self) -> str:
        return sha256(b"".join(self.digests)).hexdigest()

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
        train = Dataset.from_dict(
            {"text": [part for batch in text_batches(train) for text in batch for part in sections(text)]}
        )
    cut = _cut(train, missing) if missing else {}

    splits: dict[str, Split] = {}
    seen: set[bytes] = set()
    for name in ("train", *HELD_OUT):
        texts = train if name == "train" or name in missing else given[name]
        if name in cut:
            texts = texts.select(cut[name])
        if limit is not None:
            texts = texts.select(range(min(limit, len(texts))))
        splits[name] = _distinct(texts, seen)
        seen.update(splits[name].digests)
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


def _cut(train: Dataset, missing: list[str]) -> dict[str, list[int]]:
    """Indices into `train` of the documents of each missing split and of what remains for train."""
    indices: dict[str, list[int]] = {"train": [], **{name: [] for name in missing}}
    texts = (text for batch in text_batches(train) for text in batch)
    for index, text in enumerate(texts):
        draw = int.from_bytes(sha256(f"{index}:{text}".encode()).digest()[:4]) / 2**32
        # Each split has its own band, so that adding a validation file leaves the cut of test as it was.
        name = HELD_OUT[int(draw / SHARE)] if draw < SHARE * len(HELD_OUT) else "train"
        indices[name if name in indices else "train"].append(index)
    return indices


def _distinct(texts: Dataset, seen: set[bytes]) -> Split:
    """The documents that hold any text and are not in `seen`."""
    kept: list[int] = []
    digests: list[bytes] = []
    size = dropped = 0
    documents: Iterator[Any] = (text for batch in text_batches(texts) for text in batch)
    for index, text in enumerate(documents):
        content = (text or "").encode()
        digest = sha256(content).digest()
        if digest in seen:
            dropped += 1
        elif content:
            kept.append(index)
            digests.append(digest)
            size += len(content)
    return Split(texts if len(kept) == len(texts) else texts.select(kept), digests, size, dropped)
