"""Resampling against its formula, torchaudio's, and a tone that must stay a tone."""

import math

import pytest
import torch

from edgetrain.ops.resample import resample


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("rate", "new_rate"), [(8000, 16000), (3, 2), (7, 5), (5, 7), (101, 97), (97, 1)])
def test_an_output_is_the_sum_that_the_formula_says(rate: int, new_rate: int):
    samples = noise(60)
    outputs = resample(samples, rate, new_rate)
    cut = 0.99 * min(1, new_rate / rate)
    assert len(outputs) == math.ceil(60 * new_rate / rate)
    for j in range(len(outputs)):
        total = 0.0
        for n in range(60):
            t = cut * (n - j * rate / new_rate)
            if abs(t) < 6:
                sinc = math.sin(math.pi * t) / (math.pi * t) if t else 1.0
                total += samples[n].item() * cut * sinc * math.cos(math.pi * t / 12) ** 2
        assert outputs[j].item() == pytest.approx(total, abs=1e-9), j


@pytest.mark.parametrize(("rate", "new_rate"), [(8000, 16000), (44100, 16000), (48000, 16000), (22050, 16000)])
def test_it_is_torchaudios_resampling(rate: int, new_rate: int):
    functional = pytest.importorskip("torchaudio.functional", exc_type=(ImportError, OSError))
    samples = noise(3, rate // 5)
    assert torch.allclose(resample(samples, rate, new_rate), functional.resample(samples, rate, new_rate), atol=1e-9)


def test_a_tone_stays_the_same_tone():
    def tone(rate: int) -> torch.Tensor:
        return torch.sin(2 * math.pi * 440 / rate * torch.arange(rate))

    assert (resample(tone(8000), 8000, 16000) - tone(16000))[100:-100].abs().max() < 2e-3
    assert (resample(tone(44100), 44100, 16000) - tone(16000))[100:-100].abs().max() < 2e-3


def test_the_same_rate_is_left_as_it_is():
    samples = noise(10)
    assert resample(samples, 16000, 16000) is samples


def test_a_rate_without_a_common_divisor_needs_no_large_table():
    assert resample(noise(2, 15999).float(), 15999, 16000).shape == (2, 16000)
