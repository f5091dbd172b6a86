"""Every pair of a set, read once: its size, its pixels of each class, and in the cache what was decoded, if it fits.

    <name>.npz    sizes, pixels, sums, and which pairs cannot be read
    <name>.npy    bytes of all pairs, one after the other: pixels, then classes; only of sets up to LARGEST_CACHE

so that broken files, sizes that differ and values without a class are known before training begins.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from rich.console import Console
from rich.progress import track

from edgetrain.data.images_decoding import original_size
from edgetrain.data.packed import digest
from edgetrain.data.packing import cache_folder, pack
from edgetrain.data.segmentation_decoding import BrokenFile, Pair, PairReader
from edgetrain.errors import UserError
from edgetrain.folder import atomic

LARGEST_CACHE = 2**32  # bytes of decoded pairs; those of a larger set are decoded whenever they are asked for
TOGETHER = 16  # pairs that are decoded at a time
THREADS = min(8, os.cpu_count() or 1)  # decoders let go of Python's lock
# Of what is kept: one more whenever decoding gives other numbers for the same settings.
VERSION = 1


@dataclass(frozen=True)
class Store:
    """sizes: height and width, int64 [pairs, 2]; pixels: of each class and of none, int64 [pairs, classes + 1].

    sums: of the values and of their squares, by channel, int64 [pairs, 2, 3]. broken: which cannot be read, bool
    [pairs]. stream: their bytes, memory-mapped, or None where they are too many. dtype: of the classes.
    """

    sizes: np.ndarray
    pixels: np.ndarray
    sums: np.ndarray
    broken: np.ndarray
    stream: np.ndarray | None
    dtype: np.dtype

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each pair's bytes begin, int64 [pairs + 1]."""
        return np.concatenate([[0], np.cumsum(bytes_of(self.sizes, self.dtype))])

    def read(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [height, width, 3] and classes [height, width] of a pair in the stream."""
        height, width = self.sizes[place]
        start, end = self.starts[place : place + 2]
        middle = start + height * width * 3
        image = self.stream[start:middle].reshape(height, width, 3)
        return image, self.stream[middle:end].view(self.dtype).reshape(height, width)


def bytes_of(sizes: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Of decoded pairs with these heights and widths."""
    return np.prod(sizes, axis=-1, dtype=np.int64) * (3 + dtype.itemsize)


def opened(reader: PairReader, pairs: list[Pair]) -> Store:
    """What the cache has of them, read now where it has nothing. Raises UserError when it cannot be written."""
    settings = repr((VERSION, reader.classes.settings))
    name = digest(settings, *(f"{pair.key.hex()} {pair.label}" for pair in pairs))
    folder = cache_folder() / "segmentation"
    table, stream = folder / f"{name}.npz", folder / f"{name}.npy"
    dtype = reader.classes.dtype
    if table.exists():
        with np.load(table) as kept:
            found = Found(reader, pairs, kept["sizes"], kept["pixels"], kept["sums"], kept["broken"])
    else:
        found = Found.nothing_of(reader, pairs)
    sizes = found.sizes if table.exists() else np.array([found.size_of(pair) for pair in pairs])
    fits = bytes_of(sizes, dtype).sum() <= LARGEST_CACHE
    if fits and not stream.exists():
        pack(found.contents(), np.dtype(np.uint8), stream)
    elif not table.exists():
        for _ in found.contents():
            pass
    if not table.exists():
        found.write(table)
    kept = np.load(stream, mmap_mode="r").view(np.ndarray) if fits else None  # a memmap's own views are slow to make
    return Store(found.sizes, found.pixels, found.sums, found.broken, kept, dtype)


@dataclass
class Found:
    """What is known of the pairs, row by row as they are read."""

    reader: PairReader
    pairs: list[Pair]
    sizes: np.ndarray
    pixels: np.ndarray
    sums: np.ndarray
    broken: np.ndarray

    @classmethod
    def nothing_of(cls, reader: PairReader, pairs: list[Pair]) -> "Found":
        count, columns = len(pairs), reader.classes.classes + 1
        shapes = ((count, 2), (count, columns), (count, 2, 3))
        return cls(reader, pairs, *(np.zeros(shape, dtype=np.int64) for shape in shapes), np.zeros(count, dtype=bool))

    def size_of(self, pair: Pair) -> tuple[int, int]:
        """Height and width as the file's beginning says them; of one without a beginning, nothing."""
        try:
            with self.reader.open_image(pair) as file:
                return original_size(file)[::-1]
        except UserError:
            raise
        except Exception:  # of a broken file decoders raise whatever they stumble over
            return (0, 0)

    def contents(self) -> Iterator[np.ndarray]:
        """Bytes of each pair, in order, none of a broken one; fills the rows."""
        starts = range(0, len(self.pairs), TOGETHER)
        console = Console(stderr=True)
        with ThreadPoolExecutor(THREADS) as pool:
            for start in track(starts, "decoding images", console=console, disable=len(starts) < 65):
                chosen = range(start, min(start + TOGETHER, len(self.pairs)))
                yield from pool.map(self._read, chosen)

    def _read(self, row: int) -> np.ndarray:
        try:
            image, classes, pixels = self.reader(self.pairs[row])
        except BrokenFile:
            self.broken[row] = True
            return np.array([], dtype=np.uint8)
        values = np.arange(256)
        counted = np.stack([np.bincount(image[:, :, channel].ravel(), minlength=256) for channel in range(3)])
        self.sizes[row], self.pixels[row] = classes.shape, pixels
        self.sums[row] = counted @ values, counted @ values**2
        return np.concatenate([image.ravel(), np.ascontiguousarray(classes).ravel().view(np.uint8)])

    def write(self, path: os.PathLike) -> None:
        columns = {"sizes": self.sizes, "pixels": self.pixels, "sums": self.sums, "broken": self.broken}
        try:
            with atomic(path) as file:
                np.savez_compressed(file, **columns)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; free some space or set EDGETRAIN_CACHE to another folder"
            ) from error
