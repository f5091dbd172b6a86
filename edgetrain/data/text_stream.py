"""Language-model batches from text that is larger than memory and disk: read, tokenised and packed as it is needed.

    files (source.py) -> documents, without those held out -> tokens -> shuffled windows (stream.py)

Held-out text is bounded and packed once, in the cache. A split that the set lacks is drawn by a hash of each document,
as documents.py does, from tables of eight files at a time until it has its tokens. Every document of a held-out split
is left out of training, wherever else it occurs.
"""

import json
from collections import deque
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from edgetrain.data.documents import HELD_OUT, Contents, digests_of, drawn_split, held, keys_of
from edgetrain.data.packed import PackedText, digest
from edgetrain.data.packing import cache_folder, document_lengths, encode, pack, token_dtype
from edgetrain.data.preview import Preview, duplicate_rows
from edgetrain.data.source import TEXT, Stream, read_streams
from edgetrain.data.stream import ROWS, StreamLoader, StreamWindows
from edgetrain.errors import UserError
from edgetrain.folder import write_atomic

TOKENIZER_DOCUMENTS = 10_000  # that a tokenizer is trained on, unless they have
TOKENIZER_CHARACTERS = 100_000_000  # and more
OPEN_FILES = 8
ENDLESS = 2**40  # batches


class TextStream(PackedText):
    """Streamed text. `tokenizer`, `eos_id` and the held-out `streams` exist after `setup`.

    path, column: as in TextData; a plain text file is one document and may not be larger than 256 MiB.
    context: tokens a sample is trained on; a sample is one token longer, for the last target.
    vocab_size: rows of the model's token table.
    tokenizer: folder of a Hugging Face tokenizer; None trains a byte-level BPE on the first 10,000 documents of train
        or 100 million characters, taken from eight files in turn.
    seed: of the order of files and windows.
    shuffle: windows that are shuffled together; a worker holds them in memory, 2 or 4 bytes a token. 1 keeps the order
        of the set, files included.
    validation_tokens, test_tokens: held out, in whole documents, so that there may be some more.
    workers: processes that read, tokenise and pack, for each training process; 0 does it in the training process.
    """

    types = TEXT

    def __init__(
        self,
        *,
        path: str,
        column: str = "text",
        context: int = 256,
        batch_size: int = 16,
        vocab_size: int = 2048,
        tokenizer: str | None = None,
        seed: int = 0,
        shuffle: int = 1024,
        validation_tokens: int = 1_000_000,
        test_tokens: int = 1_000_000,
        workers: int = 1,
    ) -> None:
        super().__init__(path, context, batch_size, vocab_size, tokenizer, seed, workers=0)
        if shuffle < 1:
            raise UserError(f"data.shuffle={shuffle} must be at least 1, which keeps the order of the set")
        self.column, self.shuffle, self.readers = column, shuffle, workers
        self.held_out_tokens = {"validation": validation_tokens, "test": test_tokens}
        self.sources: dict[str, Stream] = {}

    def documents(self) -> "TextDocuments":
        """How the set's rows become tokens; leaves out the documents of the splits that are packed so far."""
        return TextDocuments(self.tokenizer, self.vocab_size, self.held_out_keys())

    def setup(self, stage: str | None = None) -> None:
        """Open the set and pack what is held out; a second call does nothing.

        Raises UserError when the set cannot be read or a held-out split is shorter than one window.
        """
        if self.streams:
            return
        self.sources = read_streams(self.path, self.column, self.types)
        missing = [name for name in HELD_OUT if name not in self.sources]
        corpus = digest(self.sources["train"].version, self.column, *missing)
        self.set_tokenizer(corpus, lambda: tokenizer_texts(self.sources["train"], missing))
        for name in HELD_OUT:
            self.contents[name], self.streams[name] = self._packed(name)
        self.check_lengths()

    def train_dataloader(self) -> StreamLoader:
        steps = self.trainer.max_steps * self.trainer.accumulate_grad_batches if self.trainer else -1
        return StreamLoader(self.train_windows(), self.readers, steps if steps > 0 else ENDLESS)

    def train_windows(self) -> StreamWindows:
        """The batches of this process, as its workers make them."""
        train, documents = self.sources["train"], self.documents()
        return StreamWindows(
            train, documents, self.context, self.batch_size, self.shuffle, self.seed, max(1, self.readers)
        )

    def facts(self) -> dict[str, Any]:
        """As PackedText's, where the hash is of the held-out documents alone, as nobody reads all of train."""
        return super().facts() | {"train": {"files": self.sources["train"].files}}

    def preview(self, samples: int = 10) -> Preview:
        """The first windows that a run trains on, sizes and duplicates of what is held out, tokens a document."""
        windows: list[np.ndarray] = []
        for item in islice(self.train_windows(), -(-samples // self.batch_size)):
            if isinstance(item, UserError):
                raise item
            windows += [*item[2]]
        texts = [self.tokenizer.decode(window) for window in windows[:samples]]
        documents = self.documents()
        first = documents.of(next(alternating(self.sources["train"])))
        lengths = {"train": np.array([len(tokens) - 1 for tokens in documents.tokens(first)])}
        lengths |= {name: document_lengths(stream, self.eos_id) for name, stream in self.streams.items()}
        duplicates = duplicate_rows("documents", {name: each.keys for name, each in self.contents.items()})
        notes = [
            f"train: streamed from {self.sources['train'].files} files; its lengths are those of {len(first)} documents"
        ]
        return Preview(texts, self.split_rows(), lengths, "tokens a document", duplicates, notes)

    def held_out_keys(self) -> np.ndarray:
        return np.sort(np.concatenate([np.array([], np.uint64), *(each.keys for each in self.contents.values())]))

    def _packed(self, name: str) -> tuple[Contents, np.ndarray]:
        """A held-out split's contents and tokens, from the cache or made now."""
        source, limit, dtype = self.sources.get(name), self.held_out_tokens[name], token_dtype(self.vocab_size)
        version = (source or self.sources["train"]).version
        before = [each.sha256 for each in self.contents.values()]
        key = digest(version, self.column, self.tokenizer_sha256(), dtype.name, name, str(limit), *before)
        path = cache_folder() / "tokens" / f"{key}.npy"
        about = path.with_suffix(".json")
        tokens: list[np.ndarray] = []
        if not (path.exists() and about.exists()):
            contents, tokens = self._take(name, limit)
            write_atomic(about, json.dumps(contents))
        stream = pack(tokens, dtype, path)
        contents = json.loads(about.read_text())
        return Contents(**contents | {"keys": np.array(contents["keys"], np.uint64)}), stream

    def _take(self, name: str, limit: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Documents of a held-out split until they have `limit` tokens: what is known of them, and their tokens."""
        documents, drawn = self.documents(), name not in self.sources
        every, keys, size, count, dropped = sha256(), [], 0, 0, 0
        taken: list[np.ndarray] = []
        for table in alternating(self.sources["train" if drawn else name]):
            found = documents.read(table)
            digests = digests_of(map(documents.content, found))
            known = held(keys_of(digests), documents.held_out)
            ours = [not drawn or drawn_split(each) == name for each in digests]
            dropped += sum(map(all, zip(ours, known, strict=True)))
            chosen = [index for index in range(len(found)) if ours[index] and not known[index]]
            tokens = documents.tokens([found[index] for index in chosen])
            for index, ids in zip(chosen, tokens, strict=True):
                if count >= limit:
                    break
                taken.append(ids)
                keys.append(int(keys_of([digests[index]])[0]))
                every.update(digests[index])
                size += documents.size(found[index])
                count += len(ids)
            if count >= limit:
                break
        return {"keys": keys, "bytes": size, "sha256": every.hexdigest(), "dropped": dropped}, taken


class TextDocuments:
    """Texts to tokens; an end of text stands behind each. held_out: sorted keys of the documents to leave out."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocab_size: int, held_out: np.ndarray) -> None:
        self.tokenizer, self.vocab_size, self.held_out = tokenizer, vocab_size, held_out

    def read(self, table: pa.Table) -> list[Any]:
        """The documents of a table that hold anything."""
        return texts_of(table)

    def content(self, document: Any) -> bytes:
        """What tells a document from others."""
        return document.encode()

    def size(self, document: Any) -> int:
        """Bytes as UTF-8."""
        return len(document.encode())

    def of(self, table: pa.Table) -> list[Any]:
        documents = self.read(table)
        known = held(keys_of(digests_of(map(self.content, documents))), self.held_out)
        return [document for document, leave in zip(documents, known, strict=True) if not leave]

    def tokens(self, documents: list[Any]) -> list[np.ndarray]:
        return encode(documents, self.tokenizer, token_dtype(self.vocab_size))


def texts_of(table: pa.Table) -> list[str]:
    return [text for text in table.column(0).to_pylist() if text]


def tokenizer_texts(train: Stream, missing: list[str]) -> Iterator[list[str]]:
    """What a tokenizer is trained on: nothing that a split which is `missing` from the set would be given."""
    count = size = 0
    for table in alternating(train):
        texts = [text for text in texts_of(table) if drawn_split(sha256(text.encode()).digest()) not in missing]
        yield texts
        count += len(texts)
        size += sum(map(len, texts))
        if count >= TOKENIZER_DOCUMENTS or size >= TOKENIZER_CHARACTERS:
            return


def alternating(stream: Stream) -> Iterator[pa.Table]:
    """The tables of all files, of OPEN_FILES in turn, so that the first ones are of many files; in a fixed order."""
    order = np.random.default_rng(0).permutation(stream.files)
    waiting = (stream.tables(file, ROWS) for file in order.tolist())
    opened = deque(islice(waiting, OPEN_FILES))
    while opened:
        tables = opened.popleft()
        table = next(tables, None)
        if table is None:
            opened.extend(islice(waiting, 1))
        else:
            opened.append(tables)
            yield table
