"""Language-model batches from any text set: the hub, a folder of files, or one file.

    documents (source.py) -> three disjoint splits (documents.py) -> tokenizer (tokenizer.py) -> packed streams and
    windows (packing.py) -> seeded, resumable order (order.py)

A batch is an int64 tensor [batch, context + 1]: inputs are batch[:, :-1], targets batch[:, 1:].
"""

from hashlib import sha256
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from lightning import LightningDataModule
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from edgetrain.data.documents import Split, disjoint_splits
from edgetrain.data.order import ResumableLoader
from edgetrain.data.packing import Windows, cache_folder, document_lengths, pack, spaced_windows, token_dtype
from edgetrain.data.preview import Preview, content_keys, duplicate_rows
from edgetrain.data.source import read_splits
from edgetrain.data.tokenizer import load_tokenizer, train_tokenizer, wrap_tokenizer
from edgetrain.errors import UserError
from edgetrain.folder import write_atomic


class TextData(LightningDataModule):
    """Packed text. `tokenizer`, `eos_id`, `splits` and `streams` exist after `setup`.

    path: hub name, local file or local folder (source.py says where a relative name is looked for).
    column: the column that holds the text.
    context: tokens a sample is trained on; a sample is one token longer, for the last target.
    vocab_size: rows of the model's token table. The tokenizer never has more; a trained one has fewer where the text
        is too small for that many merges, a loaded one may leave a checkpoint's padding.
    tokenizer: folder of a Hugging Face tokenizer; None trains a byte-level BPE on the train split.
    seed: of the training order.
    limit: documents kept per split; None keeps all.
    workers: processes that read batches; 0 reads in the training process, enough for memory-mapped tokens.
    """

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
        limit: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.path = path
        self.column = column
        self.context = context
        self.batch_size = batch_size
        self.vocab_size = vocab_size
        self.tokenizer_folder = tokenizer
        self.seed = seed
        self.limit = limit
        self.workers = workers
        self.splits: dict[str, Split] = {}
        self.streams: dict[str, np.ndarray] = {}
        self.tokenizer: PreTrainedTokenizerFast
        self.eos_id: int

    def load_splits(self) -> dict[str, Dataset]:
        """The set's splits, each with the column "text"; train is always there."""
        return read_splits(self.path, self.column)

    def prepare_data(self) -> None:
        """Fill the cache once a machine, so that the other processes find it."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read, split, tokenise and pack every split; a second call does nothing.

        Raises UserError when the set cannot be read or a split is shorter than one window.
        """
        if self.streams:
            return
        self.splits = disjoint_splits(self.load_splits(), self.limit)
        self.tokenizer = self._tokenizer()
        self.eos_id = self.tokenizer.eos_token_id
        self.streams = {name: self._stream(name) for name in self.splits}

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(Windows(self.streams["train"], self.context), self.seed, self.batch_size, self.workers)

    def val_dataloader(self) -> DataLoader:
        return self._in_order("validation")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def facts(self) -> dict[str, Any]:
        """What a report says of the data: content hash, sizes of each split, bytes per token on validation.

        Tokens count each document's end-of-text token, bytes do not.
        """
        facts: dict[str, Any] = {"corpus_sha256": self._sha256(*(split.sha256 for split in self.splits.values()))}
        for name, split in self.splits.items():
            facts[name] = {"documents": len(split.digests), "tokens": len(self.streams[name]), "bytes": split.bytes}
        facts["bytes_per_token"] = facts["validation"]["bytes"] / facts["validation"]["tokens"]
        return facts

    def preview(self, samples: int = 10) -> Preview:
        """The first windows that a run trains on, sizes, tokens a document, and exact duplicates.

        Windows are compared where they were cut, so text that is shifted against its copy is not found.
        """
        order = self.train_dataloader().sampler
        windows = {name: Windows(stream, self.context) for name, stream in self.streams.items()}
        texts = [
            self.tokenizer.decode(windows["train"][index]) for index, _ in zip(order, range(samples), strict=False)
        ]
        splits = [
            {
                "split": name,
                "documents": len(split.digests),
                "windows": len(windows[name]),
                "tokens": len(self.streams[name]),
                "bytes": split.bytes,
                "bytes a token": split.bytes / len(self.streams[name]),
            }
            for name, split in self.splits.items()
        ]
        lengths = {name: document_lengths(stream, self.eos_id) for name, stream in self.streams.items()}
        documents = duplicate_rows("documents", {n: content_keys(split.digests) for n, split in self.splits.items()})
        keys = {
            name: content_keys(each[i].numpy().tobytes() for i in range(len(each))) for name, each in windows.items()
        }
        duplicates = [*documents, *duplicate_rows("windows", keys)]
        notes = [
            f"{name}: documents dropped because an earlier split holds them: {split.dropped}"
            for name, split in self.splits.items()
            if split.dropped
        ]
        return Preview(texts, splits, lengths, "tokens a document", duplicates, notes)

    def prompts(self, count: int, length: int, split: str = "test", continuation: int = 128) -> tuple[Tensor, Tensor]:
        """Evenly spaced windows and what the text goes on with: int64 [count, length] and [count, continuation].

        The same for every seed. Within single documents where any is long enough. Raises UserError when the split is
        shorter than one window.
        """
        try:
            windows = spaced_windows(self.streams[split], self.eos_id, count, length + continuation)
        except ValueError as error:
            raise UserError(
                f"the {split} split of {self.path} is too short for prompts ({error}); ask for a shorter prompt"
                " or continuation, or give more text"
            ) from error
        return windows[:, :length], windows[:, length:]

    def _in_order(self, split: str) -> DataLoader:
        # Its own generator, as in ResumableLoader: validation must not move the global one.
        windows = Windows(self.streams[split], self.context)
        return DataLoader(windows, batch_size=self.batch_size, num_workers=self.workers, generator=torch.Generator())

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        if self.tokenizer_folder is not None:
            return load_tokenizer(self.tokenizer_folder, self.vocab_size)
        train = self.splits["train"]
        path = cache_folder() / "tokenizers" / f"{self._sha256(train.sha256, str(self.vocab_size))}.json"
        if not path.exists():
            write_atomic(path, train_tokenizer(train.batches(), self.vocab_size).to_str())
        return wrap_tokenizer(Tokenizer.from_file(str(path)))

    def _stream(self, name: str) -> np.ndarray:
        """The packed tokens of one split, from the cache or made now."""
        split, dtype = self.splits[name], token_dtype(self.vocab_size)
        key = self._sha256(split.sha256, self.tokenizer.backend_tokenizer.to_str(), str(self.eos_id), dtype.name)
        stream = pack(split.batches(), self.tokenizer, dtype, cache_folder() / "tokens" / f"{key}.npy")
        if len(stream) <= self.context:
            raise UserError(
                f"the {name} split of {self.path} has {len(stream)} tokens, one window of data.context="
                f"{self.context} needs {self.context + 1}; give more text or a smaller data.context"
            )
        return stream

    @staticmethod
    def _sha256(*parts: str) -> str:
        return sha256("\n".join(parts).encode()).hexdigest()
