"""What every audio data module shares: clips of one length, their features, and batches of them.

    recording (audio_reader.py) -> clip of one length and sample rate (audio_clips.py)
        -> shift and noise, in training (audio_augmentation.py) -> features (ops/mfcc.py)

Features of clips as they are stand in the cache, computed once for the whole set, however it is split; those of
augmented ones are computed where batches are read, a batch at a time, from clips that stand in the cache too where
the set is small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgetrain.data.audio_augmentation import Augmentation
from edgetrain.data.audio_clips import Clip, Decoder
from edgetrain.data.audio_reader import duration
from edgetrain.data.labelled import LabelledData
from edgetrain.data.preview import Preview, content_keys, duplicate_rows
from edgetrain.errors import UserError
from edgetrain.ops.mfcc import MFCC

LARGEST_CACHE = 2**30  # bytes of decoded clips; those of a larger set are decoded whenever they are asked for


@dataclass(eq=False, repr=False, kw_only=True)
class AudioData(LabelledData):
    """Batches of clips (inputs float32, labels int64 [batch]). The other arguments are LabelledData's.

    clip_seconds, sample_rate: of a clip.
    window_ms, stride_ms, coefficients: of the features; frames: how many a clip has, verified.
    features: mfcc gives [batch, frames, coefficients], samples [batch, clip_seconds * sample_rate].
    downmix: average the channels of recordings that have several; otherwise they are an error.
    time_shift_ms: most that a training clip moves either way; noise_probability: share of training clips with noise;
        noise_volume: most that the noise is multiplied by.

    A subclass says `find_splits` and `open`. Raises UserError for settings that no clip could have.
    """

    item: ClassVar[str] = "clip"

    clip_seconds: float = 1.0
    sample_rate: int = 16000
    window_ms: float = 40
    stride_ms: float = 20
    coefficients: int = 10
    frames: int = 49
    features: Literal["mfcc", "samples"] = "mfcc"
    downmix: bool = False
    time_shift_ms: float = 0
    noise_probability: float = 0.0
    noise_volume: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.clip_samples = round(self.clip_seconds * self.sample_rate)
        try:
            self.front_end = MFCC(self.sample_rate, self.window_ms, self.stride_ms, coefficients=self.coefficients)
        except UserError as error:
            raise UserError(f"data: {error}") from error
        given = self.front_end.frames(self.clip_samples)
        if not given:
            raise UserError(f"data.clip_seconds={self.clip_seconds} is less than one frame of {self.window_ms} ms")
        if given != self.frames:
            raise UserError(
                f"data.frames={self.frames}, but a clip of {self.clip_seconds} s has {given} frames of {self.window_ms}"
                f" ms every {self.stride_ms} ms; set data.frames={given}"
            )
        if not 0 <= self.noise_probability <= 1:
            raise UserError(f"data.noise_probability={self.noise_probability} is a share of the clips, between 0 and 1")
        if self.noise_volume < 0:
            raise UserError(f"data.noise_volume={self.noise_volume} is negative; 0 adds no noise")
        if not 0 <= self.time_shift_ms < 1000 * self.clip_seconds:
            raise UserError(
                f"data.time_shift_ms={self.time_shift_ms} is not between 0 and a clip's {1000 * self.clip_seconds:g} ms"
            )

    def noises(self) -> list[np.ndarray]:
        """Recordings that background noise is cut from; none for white noise."""
        return []

    def open(self, clip: Clip) -> BinaryIO:
        """The recording that a clip is the beginning of. Raises UserError when it is not there."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Fill the cache once a machine, so that the other processes find it; what cannot be read fails here."""
        self.setup()
        if self.augmentation or self.features == "samples":
            _ = self.cached_clips
        if self.features == "mfcc":
            _ = self.cached_features

    def samples(self, split: str) -> "Samples":
        """(input, label) of each clip as it is, in the order of the split."""
        return Samples(self, split)

    def training_samples(self) -> "Samples":
        return Samples(self, "train", self.augmentation)

    def groups(self, split: str) -> dict[str, list[str]]:
        """{"speaker": [...]}, in the order of the split, where the set names speakers; "" for clips without one."""
        speakers = [clip.speaker for clip in self.splits[split].items]
        return {"speaker": speakers} if any(speakers) else {}

    def preprocessing(self) -> dict[str, Any]:
        """What happens to a recording before the model, as plain values."""
        clip = {
            "sample_rate": self.sample_rate,
            "clip_seconds": self.clip_seconds,
            "clip": "the beginning of a recording; zeros follow a shorter one",
            "channels": "averaged" if self.downmix else "one",
            "other_sample_rates": "resampled, windowed sinc",
            "amplitude": "float in [-1, 1]",
        }
        if self.features == "samples":
            return clip | {"features": "samples"}
        frames = {"features": "mfcc as in edgetrain.ops.mfcc", "window_ms": self.window_ms, "stride_ms": self.stride_ms}
        bank = {"fft": self.front_end.points, **self.front_end.bank_settings, "coefficients": self.coefficients}
        return clip | frames | bank

    def facts(self) -> dict[str, Any]:
        """LabelledData's, and how many speakers a split has."""
        facts = super().facts()
        for name, split in self.splits.items():
            facts[name]["speakers"] = len({clip.speaker for clip in split.items} - {""})
        return facts

    def preview(self, samples: int = 10) -> Preview:
        """The first clips that a run trains on, sizes, clips of each label, lengths, and repeated contents."""
        order = self.train_dataloader().sampler
        train = self.splits["train"].items
        chosen = [train[index] for index, _ in zip(order, range(samples), strict=False)]
        lengths = {
            name: np.array([round(1000 * self._seconds(clip)) for clip in split.items])
            for name, split in self.splits.items()
        }
        texts = [
            " ".join(filter(None, [f"{self._seconds(clip):.2f} s ", self.labels[clip.label], clip.speaker, clip.where]))
            for clip in chosen
        ]
        heard = {
            name: [clip for clip in split.items if clip.content is not None] for name, split in self.splits.items()
        }
        keys = {name: content_keys(clip.key for clip in clips) for name, clips in heard.items()}
        duplicates = duplicate_rows("clips", keys)
        return Preview(texts, self.split_rows(), lengths, "ms a recording", duplicates, self.dropped_notes())

    @cached_property
    def augmentation(self) -> Augmentation:
        """Of training clips."""
        shift = round(self.time_shift_ms * self.sample_rate / 1000)
        noises = self.noises() if self.noise_probability else []
        return Augmentation(shift, self.noise_probability, self.noise_volume, noises)

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder(self.path, self.open, self.clip_seconds, self.sample_rate, self.downmix)

    @cached_property
    def cached_clips(self) -> np.ndarray | None:
        """Samples of the distinct clips, memory-mapped [clips, clip_samples]; None where they are too many."""
        if 4 * len(self.distinct) * self.clip_samples > LARGEST_CACHE:
            return None
        return self.decoder.cached(self.distinct, (self.clip_samples,), None, self.decoder)

    @cached_property
    def cached_features(self) -> np.ndarray:
        """Features of the distinct clips as they are, memory-mapped [clips, frames, coefficients]."""
        tables = content_keys(table.numpy().tobytes() for table in self.front_end.buffers())
        shaping = (self.front_end.stride, tables.tolist())

        def compute(clips: list[Clip]) -> Tensor:
            return self.front_end(self.clips(clips) if self.augmentation else self.decoder(clips))

        return self.decoder.cached(self.distinct, (self.frames, self.coefficients), shaping, compute)

    def clips(self, clips: Sequence[Clip]) -> Tensor:
        """Their samples, float32 [n, clip_samples], from the cache where they fit into it."""
        if self.cached_clips is None:
            return self.decoder(clips)
        return torch.from_numpy(self.cached_clips[[self.places[clip.key] for clip in clips]])

    def _seconds(self, clip: Clip) -> float:
        if clip.content is None:
            return self.clip_seconds
        with self.open(clip) as file:
            return duration(file)


class Samples(Dataset):
    """(input, label) of each clip of a split. `epoch` is what a loader sets; only augmented samples depend on it."""

    def __init__(self, data: AudioData, split: str, augmentation: Augmentation | None = None) -> None:
        self.data, self.clips, self.augmentation = data, data.splits[split].items, augmentation or None
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    @torch.no_grad()
    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """A batch at once, which is how a DataLoader asks."""
        data, clips = self.data, [self.clips[index] for index in indices]
        if data.features == "mfcc" and self.augmentation is None:
            inputs = torch.from_numpy(data.cached_features[[data.places[clip.key] for clip in clips]])
        else:
            inputs = data.clips(clips)
            if self.augmentation is not None:
                inputs = self.augmentation(inputs, [(data.seed, self.epoch, index) for index in indices])
            if data.features == "mfcc":
                inputs = data.front_end(inputs)
        return list(zip(inputs, (clip.label for clip in clips), strict=True))
