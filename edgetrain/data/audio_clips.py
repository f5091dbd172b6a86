"""Clips: recordings cut to one length at one sample rate, decoded, and what is made of them kept in the cache.

A clip is the beginning of its recording; zeros follow a shorter one, as TensorFlow's decode_wav does it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from edgetrain.data.audio_reader import read_recording
from edgetrain.data.packed import digest
from edgetrain.data.packing import cache_folder
from edgetrain.errors import UserError
from edgetrain.folder import atomic
from edgetrain.ops.resample import resample

TOGETHER = 256  # clips that are decoded at a time for the cache
# Of what is kept: one more whenever reading, resampling or features give other numbers for the same settings.
VERSION = 1


@dataclass(frozen=True)
class Clip:
    """label: its number among the labels; speaker: "" where nobody said; key: what tells it from any other content,
    the same in every copy of the set.

    where: how messages name it within the set; content: what its data module opens, None for digital silence.
    stamp: what tells this file at this time from any other, where `key` was not made of its bytes; for the cache.
    """

    label: int
    speaker: str
    key: bytes
    where: str
    content: Any
    stamp: bytes = b""


@dataclass(frozen=True)
class Decoder:
    """path: the set's name, for messages; open: the recording of a clip; seconds, sample_rate: of a clip; downmix:
    average channels instead of refusing more than one.
    """

    path: str
    open: Callable[[Clip], BinaryIO]
    seconds: float
    sample_rate: int
    downmix: bool

    @property
    def samples(self) -> int:
        """Of a clip."""
        return round(self.seconds * self.sample_rate)

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """float32 [n, samples] in [-1, 1]. Raises UserError that names a recording which cannot be read."""
        decoded = torch.zeros(len(clips), self.samples)
        of_rate: dict[int, list[tuple[int, np.ndarray]]] = {}
        for index, clip in enumerate(clips):
            if clip.content is not None:
                where = f"data.path={self.path}: {clip.where}"
                with self.open(clip) as file:
                    samples, rate = read_recording(file, where, self.seconds, self.downmix)
                of_rate.setdefault(rate, []).append((index, samples))
        for rate, recordings in of_rate.items():
            same = np.zeros((len(recordings), round(self.seconds * rate)), dtype=np.float32)
            for row, (_, samples) in zip(same, recordings, strict=True):
                row[: len(samples)] = samples
            resampled = resample(torch.from_numpy(same), rate, self.sample_rate)[:, : self.samples]
            decoded[[index for index, _ in recordings], : resampled.shape[1]] = resampled
        return decoded

    @torch.no_grad()
    def cached(
        self, clips: list[Clip], shape: tuple[int, ...], shaping: Any, compute: Callable[[list[Clip]], Tensor]
    ) -> np.ndarray:
        """What `compute` makes of each clip, memory-mapped float32 [clips, *shape], from the cache or made now.

        shaping: all that the result depends on besides the clips and how they are decoded. Raises UserError when the
        cache cannot be written.
        """
        settings = repr((VERSION, self.seconds, self.sample_rate, self.downmix, shape, shaping))
        path = cache_folder() / "audio" / f"{digest(settings, *((clip.stamp or clip.key).hex() for clip in clips))}.npy"
        if not path.exists():
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(clips), *shape)}
            try:
                with atomic(path) as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    for start in range(0, len(clips), TOGETHER):
                        file.write(compute(clips[start : start + TOGETHER]).numpy().tobytes())
            except OSError as error:
                raise UserError(
                    f"cannot write {path}: {error.strerror}; free some space or set EDGETRAIN_CACHE to another folder"
                ) from error
        return np.load(path, mmap_mode="r")
