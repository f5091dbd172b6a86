"""What every language data module gives the other rooms: held-out batches, prompts, facts and a tokenizer."""

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from edgetrain.data.documents import Contents
from edgetrain.data.packing import Windows, cache_folder, prompts_of
from edgetrain.data.tokenizer import load_tokenizer, train_tokenizer, wrap_tokenizer
from edgetrain.errors import UserError
from edgetrain.folder import Row, write_atomic


class PackedText(LightningDataModule):
    """Splits that are packed in memory-mapped files.

    A batch is an int64 tensor [batch, context + 1]: inputs are batch[:, :-1], targets batch[:, 1:]. `setup` of a
    subclass fills `contents` and `streams`, by the name of the split, and sets `tokenizer` and `eos_id`.
    """

    tokenizer: PreTrainedTokenizerFast
    eos_id: int

    def __init__(
        self, path: str, context: int, batch_size: int, vocab_size: int, tokenizer: str | None, seed: int, workers: int
    ) -> None:
        super().__init__()
        self.path, self.context, self.batch_size, self.vocab_size = path, context, batch_size, vocab_size
        self.tokenizer_folder, self.seed, self.workers = tokenizer, seed, workers
        self.contents: dict[str, Contents] = {}
        self.streams: dict[str, np.ndarray] = {}

    def prepare_data(self) -> None:
        """Fill the cache once a machine, so that the other processes find it."""
        self.setup()

    def val_dataloader(self) -> DataLoader:
        return self._in_order("validation")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def facts(self) -> dict[str, Any]:
        """What a report says of the data: content hash, sizes of each packed split, bytes per token on validation.

        Tokens count each document's end-of-text token, bytes do not.
        """
        facts: dict[str, Any] = {"corpus_sha256": digest(*(each.sha256 for each in self.contents.values()))}
        for name, each in self.contents.items():
            facts[name] = {"documents": len(each.keys), "tokens": len(self.streams[name]), "bytes": each.bytes}
        facts["bytes_per_token"] = facts["validation"]["bytes"] / facts["validation"]["tokens"]
        return facts

    def prompts(self, count: int, length: int, split: str = "test", continuation: int = 128) -> tuple[Tensor, Tensor]:
        """Evenly spaced windows and what the text goes on with: int64 [count, length] and [count, continuation].

        The same for every seed. Within single documents where any is long enough. Raises UserError when the split is
        shorter than one window.
        """
        where = f"the {split} split of {self.path}"
        return prompts_of(self.streams[split], self.eos_id, count, length, continuation, where, "text")

    def set_tokenizer(self, corpus: str, texts: Callable[[], Iterable[list[str]]]) -> None:
        """The tokenizer of the folder that was named, or one trained on `texts()`; cached by `corpus`, their hash."""
        if self.tokenizer_folder is not None:
            self.tokenizer = load_tokenizer(self.tokenizer_folder, self.vocab_size)
        else:
            path = cache_folder() / "tokenizers" / f"{digest(corpus, str(self.vocab_size))}.json"
            if not path.exists():
                write_atomic(path, train_tokenizer(texts(), self.vocab_size).to_str())
            self.tokenizer = wrap_tokenizer(Tokenizer.from_file(str(path)))
        self.eos_id = self.tokenizer.eos_token_id

    def tokenizer_sha256(self) -> str:
        """All that a text's tokens depend on."""
        return digest(self.tokenizer.backend_tokenizer.to_str(), str(self.eos_id))

    def windows(self, split: str) -> Windows:
        return Windows(self.streams[split], self.context)

    def split_rows(self) -> list[Row]:
        """The sizes of each packed split, for a preview."""
        return [
            {
                "split": name,
                "documents": len(each.keys),
                "windows": len(self.windows(name)),
                "tokens": len(self.streams[name]),
                "bytes": each.bytes,
                "bytes a token": each.bytes / len(self.streams[name]),
            }
            for name, each in self.contents.items()
        ]

    def check_lengths(self) -> None:
        """Raises UserError when a packed split is shorter than one window."""
        for name, stream in self.streams.items():
            if len(stream) <= self.context:
                raise UserError(
                    f"the {name} split of {self.path} has {len(stream)} tokens, one window of data.context="
                    f"{self.context} needs {self.context + 1}; give more text or a smaller data.context"
                )

    def _in_order(self, split: str) -> DataLoader:
        # Its own generator, as in ResumableLoader: validation must not move the global one.
        generator = torch.Generator()
        return DataLoader(self.windows(split), self.batch_size, num_workers=self.workers, generator=generator)


def digest(*parts: str) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()
