"""Language-model batches from any text set: the hub, a folder of files, or one file.

    documents (source.py) -> three disjoint splits (documents.py) -> tokenizer (tokenizer.py) -> packed streams and
    windows (packing.py) -> seeded, resumable order (order.py)

The set may be larger than memory: documents and tokens stay on the disk, memory-mapped. In memory are 8 bytes a
document and a window (50 a document while the splits are made), and the largest document. The disk holds the set, its
copy in the cache of `datasets`, and its tokens; text_stream.py does without the last two.
"""

import numpy as np
from datasets import Dataset

from edgetrain.data.documents import Split, disjoint_splits
from edgetrain.data.order import ResumableLoader
from edgetrain.data.packed import PackedText, digest
from edgetrain.data.packing import cache_folder, document_lengths, encode, pack, token_dtype
from edgetrain.data.preview import Preview, content_keys, duplicate_rows
from edgetrain.data.source import read_splits


class TextData(PackedText):
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
        super().__init__(path, context, batch_size, vocab_size, tokenizer, seed, workers)
        self.column, self.limit = column, limit
        self.splits: dict[str, Split] = {}

    def load_splits(self) -> dict[str, Dataset]:
        """The set's splits, each with the column "text"; train is always there."""
        return read_splits(self.path, self.column)

    def setup(self, stage: str | None = None) -> None:
        """Read, split, tokenise and pack every split; a second call does nothing.

        Raises UserError when the set cannot be read or a split is shorter than one window.
        """
        if self.streams:
            return
        self.splits = self.contents = disjoint_splits(self.load_splits(), self.limit)
        train = self.splits["train"]
        self.set_tokenizer(train.sha256, train.batches)
        self.streams = {name: self._stream(name) for name in self.splits}
        self.check_lengths()

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(self.windows("train"), self.seed, self.batch_size, self.workers)

    def preview(self, samples: int = 10) -> Preview:
        """The first windows that a run trains on, sizes, tokens a document, and exact duplicates.

        Windows are compared where they were cut, so text that is shifted against its copy is not found.
        """
        order = self.train_dataloader().sampler
        windows = {name: self.windows(name) for name in self.streams}
        texts = [
            self.tokenizer.decode(windows["train"][index]) for index, _ in zip(order, range(samples), strict=False)
        ]
        lengths = {name: document_lengths(stream, self.eos_id) for name, stream in self.streams.items()}
        documents = duplicate_rows("documents", {name: split.keys for name, split in self.splits.items()})
        keys = {
            name: content_keys(each[i].numpy().tobytes() for i in range(len(each))) for name, each in windows.items()
        }
        duplicates = [*documents, *duplicate_rows("windows", keys)]
        notes = [
            f"{name}: documents dropped because an earlier split holds them: {split.dropped}"
            for name, split in self.splits.items()
            if split.dropped
        ]
        return Preview(texts, self.split_rows(), lengths, "tokens a document", duplicates, notes)

    def _stream(self, name: str) -> np.ndarray:
        """The packed tokens of one split, from the cache or made now."""
        split, dtype = self.splits[name], token_dtype(self.vocab_size)
        key = digest(split.sha256, self.tokenizer_sha256(), dtype.name)
        tokens = (each for batch in split.batches() for each in encode(batch, self.tokenizer, dtype))
        return pack(tokens, dtype, cache_folder() / "tokens" / f"{key}.npy")
