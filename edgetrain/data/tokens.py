"""Language-model batches from text that is tokens already: jsonl files with a list of token ids a line.

The format of the MobileLLM authors' pretraining code (github.com/facebookresearch/MobileLLM, pretrain.sh): one folder a
machine, `<folder>/<1..N>/*.jsonl`, lines {"token_ids": [...]}, read again and again. All folders are read here, and the
lines are divided among however many processes there are; where there each line is a sample, here they are joined and
cut into windows, so lines may have any length. Nothing is put between them: what separates documents is in the ids.
"""

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from edgetrain.data.packing import token_dtype
from edgetrain.data.text_stream import TextDocuments, TextStream
from edgetrain.errors import UserError


class TokenStream(TextStream):
    """Streamed token ids. The arguments are TextStream's; `tokenizer` is the folder of the one that made the ids."""

    types = tuple(f"{kind}<item: {item}>" for kind in ("list", "large_list") for item in ("int64", "int32", "uint16"))

    def __init__(
        self,
        *,
        path: str,
        tokenizer: str,
        column: str = "token_ids",
        context: int = 256,
        batch_size: int = 16,
        vocab_size: int = 32000,
        seed: int = 0,
        shuffle: int = 1024,
        validation_tokens: int = 1_000_000,
        test_tokens: int = 1_000_000,
        workers: int = 1,
    ) -> None:
        super().__init__(
            path=path,
            column=column,
            context=context,
            batch_size=batch_size,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            seed=seed,
            shuffle=shuffle,
            validation_tokens=validation_tokens,
            test_tokens=test_tokens,
            workers=workers,
        )

    def documents(self) -> "TokenDocuments":
        return TokenDocuments(self.tokenizer, self.vocab_size, self.held_out_keys(), self.path)


class TokenDocuments(TextDocuments):
    """Lists of ids as they are. Raises UserError at the first id that the vocabulary does not have."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocab_size: int, held_out: np.ndarray, path: str) -> None:
        super().__init__(tokenizer, vocab_size, held_out)
        self.path = path

    def read(self, table: pa.Table) -> list[np.ndarray]:
        column = table.column(0).combine_chunks()
        ids = column.flatten().fill_null(-1).to_numpy()
        ends = column.value_lengths().fill_null(0).to_numpy().cumsum()
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if len(wrong):
            raise UserError(
                f"data.path={self.path} holds the token id {wrong[0]}, outside data.vocab_size={self.vocab_size}; set"
                " data.vocab_size and data.tokenizer to those that the ids were made with"
            )
        return [line for line in np.split(ids.astype(token_dtype(self.vocab_size)), ends[:-1]) if len(line)]

    def content(self, document: np.ndarray) -> bytes:
        return document.astype(np.uint32).tobytes()

    def size(self, document: np.ndarray) -> int:
        return len(self.tokenizer.decode(document).encode())

    def tokens(self, documents: list[np.ndarray]) -> list[np.ndarray]:
        return documents
