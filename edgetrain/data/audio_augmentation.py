"""What makes every epoch hear another version of a clip: a shift in time and background noise.

Zhang et al. 2017 (arXiv 1711.07128) train with shifts of up to 100 ms and, in 80 % of the clips, noise of at most a
tenth of its recorded volume, as TensorFlow's speech commands example does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """shift: most samples that a clip moves either way, zeros following; noise_probability: the share of clips with
    noise; noise_volume: most that it is multiplied by; noises: recordings that it is cut from, each at least as long as
    a clip; without any it is white and of unit variance.
    """

    shift: int = 0
    noise_probability: float = 0.0
    noise_volume: float = 0.1
    noises: list[np.ndarray] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return self.shift > 0 or (self.noise_probability > 0 and self.noise_volume > 0)

    def __call__(self, clips: Tensor, keys: Sequence[tuple[int, ...]]) -> Tensor:
        """float32 [n, samples] to the same; what happens to a clip is a function of it and its key alone."""
        augmented = [self.one(clip, np.random.default_rng(key)) for clip, key in zip(clips.numpy(), keys, strict=True)]
        return torch.from_numpy(np.stack(augmented))

    def one(self, clip: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        clip = shifted(clip, int(draw.integers(-self.shift, self.shift, endpoint=True)))
        if draw.random() < self.noise_probability:
            volume = np.float32(draw.uniform(0, self.noise_volume))
            clip = np.clip(clip + volume * self.noise(len(clip), draw), -1, 1)
        return clip

    def noise(self, samples: int, draw: np.random.Generator) -> np.ndarray:
        if not self.noises:
            return draw.standard_normal(samples, dtype=np.float32)
        recording = self.noises[draw.integers(len(self.noises))]
        start = draw.integers(len(recording) - samples, endpoint=True)
        return recording[start : start + samples]


def shifted(clip: np.ndarray, by: int) -> np.ndarray:
    """Later by that many samples, or earlier by a negative number."""
    moved = np.zeros_like(clip)
    if by >= 0:
        moved[by:] = clip[: len(clip) - by]
    else:
        moved[:by] = clip[-by:]
    return moved
