"""Prompts and their completions: a model reads both and is asked for the completion only.

    prompt separator completion end-of-text padding      inputs, `context` tokens
                     asked for  asked for                targets are the next tokens; all others are IGNORED

A batch is an int64 tensor [batch, 2, context], inputs and targets (`ops.targets`). Notable choices:

- prompt and completion become tokens apart from each other: decoding starts from the tokens that were trained on;
- a later split drops the prompts that an earlier one holds, as `documents` does with texts. A split that the set
  lacks is cut from train by a hash of the prompt (5 %);
- a pair that does not fit into the context is no sample in any split. `too_long` counts it, and the measure
  `exact_match` counts it as wrong.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from datasets import Dataset as Columns
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from edgetrain.data.documents import HELD_OUT, drawn_split
from edgetrain.data.order import ResumableLoader
from edgetrain.data.packing import encode, prompts_of, token_dtype
from edgetrain.data.preview import Preview, content_keys, duplicate_rows
from edgetrain.data.source import read_splits
from edgetrain.data.tokenizer import load_tokenizer, train_tokenizer, wrap_tokenizer
from edgetrain.errors import UserError
from edgetrain.ops.targets import IGNORED


@dataclass(frozen=True)
class Pair:
    """prompt_ids end with the separator's tokens, completion_ids with the end of text."""

    prompt: str
    completion: str
    prompt_ids: np.ndarray
    completion_ids: np.ndarray

    def __len__(self) -> int:
        """Tokens, the end of text among them."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class PairSplit:
    """pairs: those that fit the context; too_long: the others; dropped: pairs whose prompt an earlier split holds."""

    pairs: list[Pair] = field(default_factory=list)
    too_long: list[Pair] = field(default_factory=list)
    dropped: int = 0


class Samples(Dataset):
    """Inputs and targets of each pair, int64 [2, context], padded with the end of text."""

    def __init__(self, pairs: list[Pair], context: int, eos_id: int) -> None:
        self.pairs, self.context, self.eos_id = pairs, context, eos_id

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Tensor:
        pair = self.pairs[index]
        first, last = len(pair.prompt_ids) - 1, len(pair) - 1  # the separator's last token is asked for the completion
        inputs, targets = np.full(self.context, self.eos_id), np.full(self.context, IGNORED)
        inputs[:last] = np.concatenate((pair.prompt_ids, pair.completion_ids[:-1]))
        targets[first:last] = pair.completion_ids
        return torch.from_numpy(np.stack((inputs, targets)))


class PairsData(LightningDataModule):
    """Pairs of prompt and completion. `tokenizer`, `eos_id` and `splits` exist after `setup`.

    path: hub name, local file or local folder (source.py says where a relative name is looked for).
    prompt, completion: the columns that hold them.
    separator: text between the two; it ends the prompt.
    context: most tokens of a sample, its end of text included; shorter ones are padded to it.
    vocab_size, tokenizer, seed, limit, workers: as TextData's; the tokenizer is trained on train's prompts and
        completions, and limit counts pairs.
    """

    def __init__(
        self,
        *,
        path: str,
        prompt: str = "prompt",
        completion: str = "completion",
        separator: str = " =>",
        context: int = 128,
        batch_size: int = 16,
        vocab_size: int = 1024,
        tokenizer: str | None = None,
        seed: int = 0,
        limit: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        if not separator:
            raise UserError("data.separator is empty; give some text, so that a model sees where the prompt ends")
        self.path, self.columns, self.separator = path, {"prompt": prompt, "completion": completion}, separator
        self.context, self.batch_size, self.vocab_size = context, batch_size, vocab_size
        self.tokenizer_folder, self.seed, self.limit, self.workers = tokenizer, seed, limit, workers
        self.splits: dict[str, PairSplit] = {}
        self.tokenizer: PreTrainedTokenizerFast
        self.eos_id: int

    def setup(self, stage: str | None = None) -> None:
        """Read, split and tokenise every split; a second call does nothing.

        Raises UserError when the set cannot be read, lacks a column, or a split holds no pair that fits the context.
        """
        if self.splits:
            return
        prompts, completions = (self._column(key, column) for key, column in self.columns.items())
        texts = {name: text_pairs(prompts[name], completions[name]) for name in prompts}
        parted = disjoint_pairs(texts, self.limit)
        self.tokenizer = self._tokenizer([text for pair in parted["train"][0] for text in pair])
        self.eos_id = self.tokenizer.eos_token_id
        self.splits = {name: self._tokenised(name, *part) for name, part in parted.items()}

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(self.samples("train"), self.seed, self.batch_size, self.workers)

    def val_dataloader(self) -> DataLoader:
        return self._in_order("validation")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def pairs(self, split: str) -> PairSplit:
        return self.splits[split]

    def samples(self, split: str) -> Samples:
        return Samples(self.splits[split].pairs, self.context, self.eos_id)

    def facts(self) -> dict[str, Any]:
        """What a report says of the data: content hash, and of each split its sizes and what was left out of it."""
        every = [(pair.prompt, pair.completion) for split in self.splits.values() for pair in split.pairs]
        facts: dict[str, Any] = {
            "corpus_sha256": sha256("\0".join(text for pair in every for text in pair).encode()).hexdigest()
        }
        for name, split in self.splits.items():
            facts[name] = {
                "samples": len(split.pairs),
                "tokens": sum(map(len, split.pairs)),
                "too_long": len(split.too_long),
                "dropped": split.dropped,
            }
        return facts

    def preview(self, samples: int = 10) -> Preview:
        """The first samples that a run trains on, sizes, tokens a sample (of too long ones too), repeated prompts."""
        order = self.train_dataloader().sampler
        train = self.splits["train"].pairs
        chosen = [train[index] for index, _ in zip(order, range(samples), strict=False)]
        rows = [{"split": name} | sizes for name, sizes in self.facts().items() if isinstance(sizes, dict)]
        lengths = {
            name: np.array([len(pair) for pair in [*split.pairs, *split.too_long]])
            for name, split in self.splits.items()
        }
        keys = {name: content_keys(pair.prompt.encode() for pair in split.pairs) for name, split in self.splits.items()}
        notes = [
            f"{name}: {sentence}" for name, split in self.splits.items() for sentence in left_out(split, self.context)
        ]
        texts = [f"{pair.prompt}{self.separator}{pair.completion}" for pair in chosen]
        return Preview(texts, rows, lengths, "tokens a sample", duplicate_rows("prompts", keys), notes)

    def prompts(self, count: int, length: int, split: str = "test", continuation: int = 128) -> tuple[Tensor, Tensor]:
        """Evenly spaced windows of the samples laid end to end: int64 [count, length] and [count, continuation].

        Within single samples where any is long enough. Raises UserError when the split is shorter than one window.
        """
        ids = [part for pair in self.splits[split].pairs for part in (pair.prompt_ids, pair.completion_ids)]
        where = f"the {split} split of {self.path}"
        return prompts_of(np.concatenate(ids), self.eos_id, count, length, continuation, where, "pairs")

    def _in_order(self, split: str) -> DataLoader:
        # Its own generator, as in ResumableLoader: validation must not move the global one.
        samples = self.samples(split)
        return DataLoader(samples, batch_size=self.batch_size, num_workers=self.workers, generator=torch.Generator())

    def _column(self, key: str, column: str) -> dict[str, Columns]:
        try:
            return read_splits(self.path, column)
        except UserError as error:
            raise UserError(str(error).replace("data.column=", f"data.{key}=")) from error

    def _tokenizer(self, texts: list[str]) -> PreTrainedTokenizerFast:
        if self.tokenizer_folder is not None:
            return load_tokenizer(self.tokenizer_folder, self.vocab_size)
        return wrap_tokenizer(train_tokenizer([[*texts, self.separator]], self.vocab_size))

    def _tokenised(self, name: str, pairs: list[tuple[str, str]], dropped: int) -> PairSplit:
        dtype = token_dtype(self.vocab_size)
        prompts = encode([prompt + self.separator for prompt, _ in pairs], self.tokenizer, dtype)
        completions = encode([completion for _, completion in pairs], self.tokenizer, dtype)
        split = PairSplit(dropped=dropped)
        for texts, prompt_ids, completion_ids in zip(pairs, prompts, completions, strict=True):
            pair = Pair(*texts, prompt_ids[:-1], completion_ids)
            (split.pairs if len(pair) <= self.context else split.too_long).append(pair)
        if not split.pairs:
            raise UserError(
                f"the {name} split of {self.path} has no pair of at most data.context={self.context} tokens"
                f" ({len(split.too_long)} are longer, {dropped} were dropped); give more pairs or a larger data.context"
            )
        return split


def text_pairs(prompts: Columns, completions: Columns) -> list[tuple[str, str]]:
    """The rows of two columns (each called "text") in which both hold any text."""
    rows = zip(prompts["text"], completions["text"], strict=True)
    return [(prompt, completion) for prompt, completion in rows if prompt and completion]


def disjoint_pairs(
    given: dict[str, list[tuple[str, str]]], limit: int | None
) -> dict[str, tuple[list[tuple[str, str]], int]]:
    """train, validation and test that share no prompt, at most `limit` pairs each, and how many were dropped for it."""
    missing = [name for name in HELD_OUT if name not in given]
    parts: dict[str, list[tuple[str, str]]] = {name: list(given.get(name, [])) for name in HELD_OUT} | {"train": []}
    for pair in given["train"]:
        name = drawn_split(sha256(pair[0].encode()).digest())
        parts[name if name in missing else "train"].append(pair)
    seen: set[str] = set()
    splits = {}
    for name in ("train", *HELD_OUT):
        taken = parts[name][:limit]
        kept = [pair for pair in taken if pair[0] not in seen]
        splits[name] = (kept, len(taken) - len(kept))
        seen.update(prompt for prompt, _ in kept)
    return splits


def left_out(split: PairSplit, context: int) -> list[str]:
    """A sentence for each reason why pairs of the set are no samples."""
    return [
        f"{count} pairs left out because {reason}"
        for count, reason in (
            (len(split.too_long), f"they have more than {context} tokens"),
            (split.dropped, "an earlier split holds their prompt"),
        )
        if count
    ]
