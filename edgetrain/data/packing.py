"""Documents to tokens: one memory-mapped stream a split, cut into windows.

    document, end of text, document, end of text, ...        the stream, uint16 (uint32 above 65,536 tokens)
    [0 .. context] [context .. 2 context] ...                windows of context + 1 tokens, overlapping by one

so that with inputs window[:-1] and targets window[1:] every token after the first is a target exactly once, up to a
last partial window.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from edgetrain.errors import UserError

PART = 2**24  # tokens of a stream that are looked at together


def cache_folder() -> Path:
    """Where tokenizers and packed streams are kept; every file in it can be made again.

    Raises UserError when the folder cannot be made.
    """
    folder = Path(os.environ.get("EDGETRAIN_CACHE", "~/.cache/edgetrain")).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the cache folder {folder}: {error.strerror}; set EDGETRAIN_CACHE to another folder"
        ) from error
    return folder


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer that holds every id: uint16, or uint32 above 65,536 tokens."""
    return np.min_scalar_type(vocab_size - 1)


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast, dtype: np.dtype) -> list[np.ndarray]:
    """Tokens of each document and its end of text; on every core, where TOKENIZERS_PARALLELISM does not forbid it."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array([*encoding.ids, tokenizer.eos_token_id], dtype=dtype) for encoding in encodings]


def pack(documents: Iterable[np.ndarray], dtype: np.dtype, path: Path) -> np.ndarray:
    """The memory-mapped stream of all documents' tokens at `path`, written first where there is none.

    The file appears whole or not at all; of two processes that make the same one, the last replaces the first by
    the same bytes. Raises UserError when it cannot be written.
    """
    if not path.exists():
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
                temporary = Path(file.name)
                _write_stream(file, documents, dtype)
            temporary.chmod(0o644)  # a cache may be shared by users
            temporary.replace(path)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; free some space or set EDGETRAIN_CACHE to another folder"
            ) from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def _write_stream(file: BinaryIO, documents: Iterable[np.ndarray], dtype: np.dtype) -> None:
    """Tokens as a .npy file, document by document, never all in memory."""

    def write_header(tokens: int) -> None:
        # numpy pads the header for a growing first axis, so the length known at the end fits into the same bytes.
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (tokens,)}
        np.lib.format.write_array_header_1_0(file, header)

    write_header(0)
    total = 0
    for tokens in documents:
        file.write(tokens.tobytes())
        total += len(tokens)
    file.seek(0)
    write_header(total)


class Windows(Dataset):
    """Consecutive windows of a stream, int64 [context + 1] each, sharing one token with the next."""

    def __init__(self, stream: np.ndarray, context: int) -> None:
        self.stream = stream
        self.context = context

    def __len__(self) -> int:
        return max(0, (len(self.stream) - 1) // self.context)

    def __getitem__(self, index: int) -> Tensor:
        start = index * self.context
        return torch.from_numpy(self.stream[start : start + self.context + 1].astype(np.int64))


def document_ends(stream: np.ndarray, eos_id: int) -> np.ndarray:
    """Where each document's end of text stands: int64 [documents]."""
    begins = range(0, len(stream), PART)
    parts = [begin + np.flatnonzero(stream[begin : begin + PART] == eos_id) for begin in begins]
    return np.concatenate([np.array([], np.int64), *parts])


def document_lengths(stream: np.ndarray, eos_id: int) -> np.ndarray:
    """Tokens of each document of a stream, its end of text left out: int64 [documents]."""
    return np.diff(document_ends(stream, eos_id), prepend=-1) - 1


def prompts_of(
    stream: np.ndarray, eos_id: int, count: int, length: int, continuation: int, where: str, more: str
) -> tuple[Tensor, Tensor]:
    """`spaced_windows` in two: int64 [count, length], and what the text goes on with, [count, continuation].

    Raises UserError, naming `where` and asking for `more`, when the stream is shorter than one window.
    """
    try:
        windows = spaced_windows(stream, eos_id, count, length + continuation)
    except ValueError as error:
        raise UserError(
            f"{where} is too short for prompts ({error}); ask for a shorter prompt or continuation, or give more {more}"
        ) from error
    return windows[:, :length], windows[:, length:]


def spaced_windows(stream: np.ndarray, eos_id: int, count: int, size: int) -> Tensor:
    """`count` windows of `size` tokens, evenly spaced over the stream: int64 [count, size].

    They lie within single documents, end of text excluded, where any document is that long, else anywhere. Raises
    ValueError when the stream itself is shorter than `size`.
    """
    ends = document_ends(stream, eos_id)
    begins = np.concatenate([[0], ends + 1])[: len(ends)]
    rooms = np.maximum(ends - begins - size + 1, 0)  # starts that keep the window inside the document
    if rooms.sum() == 0:
        begins, rooms = np.array([0]), np.array([max(0, len(stream) - size + 1)])
    if rooms.sum() == 0:
        raise ValueError(f"{len(stream)} tokens are fewer than {size}")
    # Spaced over all possible starts laid end to end, then mapped back into their documents.
    starts = (np.arange(count) * rooms.sum()) // count
    document = np.searchsorted(rooms.cumsum(), starts, side="right")
    starts = begins[document] + starts - (rooms.cumsum() - rooms)[document]
    windows = np.stack([stream[start : start + size] for start in starts])
    return torch.from_numpy(windows.astype(np.int64))
