"""Mel-frequency cepstral coefficients as TensorFlow's `mfcc` operator defines them, for keyword spotting.

    frame * periodic Hann -> |DFT| -> mel bank -> ln -> DCT-II

It differs from torchaudio's MFCC: magnitudes and not powers enter the mel bank, whose triangles are straight in mel,
the logarithm is natural, and a window of 640 samples is transformed at 1,024 points (the next power of two).

Source: Zhang et al. 2017, arXiv 1711.07128, whose code calls that operator; its constants are unverified beyond the
networks that were trained with it, which label clips right through these lines.

The DFT is two products with constant tables, so that a runtime needs no complex numbers. The tables hold only the bins
that the mel bank reads, and half of a window: it is symmetric about its middle, and a shift of the origin of time to
there leaves magnitudes as they are.

    Re = sum_t w(t) (x(t) + x(-t)) cos(2 pi k t / points)        Im = sum_t w(t) (x(t) - x(-t)) sin(2 pi k t / points)
"""

import math

import torch
from torch import Tensor, nn

from edgetrain.errors import UserError

FLOOR = 1e-12  # below it a mel channel counts as this much
LANES = 16  # columns of a product come in whole vectors of the processor


class MFCC(nn.Module):
    """Samples float32 in [-1, 1], [..., n], to features [..., frames, coefficients]; no parameters, no state-dict keys.

    sample_rate: Hz; window_ms, stride_ms: of a frame; mel_bins triangles between low_hz and high_hz; coefficients: of
    the cosine transform, from the zeroth on. Frames lie wholly within the samples. Raises UserError for a window or
    stride without samples, a band that is empty or ends above half the sample rate, and more coefficients than bins.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        window_ms: float = 40,
        stride_ms: float = 20,
        mel_bins: int = 40,
        low_hz: float = 20,
        high_hz: float = 4000,
        coefficients: int = 10,
    ) -> None:
        super().__init__()
        self.window, self.stride = round(sample_rate * window_ms / 1000), round(sample_rate * stride_ms / 1000)
        if self.window < 2 or self.stride < 1:
            raise UserError(
                f"at {sample_rate} Hz window_ms={window_ms} is {self.window} samples and stride_ms={stride_ms} is "
                f"{self.stride}; a window needs at least two and a stride one"
            )
        if not 0 <= low_hz < high_hz <= sample_rate / 2:
            raise UserError(
                f"low_hz={low_hz} to high_hz={high_hz} is no band between 0 and {sample_rate / 2:g} Hz, half the "
                f"sample rate; set a sample_rate of at least {2 * high_hz:g}"
            )
        if not 1 <= coefficients <= mel_bins:
            raise UserError(f"coefficients={coefficients} is not between 1 and mel_bins={mel_bins}")
        self.points = points = 2 ** math.ceil(math.log2(self.window))
        self.bank_settings = {"mel_bins": mel_bins, "low_hz": low_hz, "high_hz": high_hz}
        first, bank = mel_bank(points, sample_rate, mel_bins, low_hz, high_hz)
        bank = nn.functional.pad(bank, (0, 0, 0, -len(bank) % LANES))  # bins that no channel hears
        cosine, sine = half_dft(self.window, points, first, len(bank))
        tables = {"cosine": cosine, "sine": sine, "bank": bank, "dct": dct(mel_bins, coefficients)}
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def frames(self, samples: int) -> int:
        """How many frames that many samples have."""
        return max(0, (samples - self.window) // self.stride + 1)

    def forward(self, samples: Tensor) -> Tensor:
        frames = samples.unfold(-1, self.window, self.stride)
        after = frames[..., (self.window + 1) // 2 :]  # t = 0, 1, ..., of an odd window 1/2, 3/2, ...
        before = frames[..., 1 : self.window // 2 + 1].flip(-1)
        real, imaginary = (after + before) @ self.cosine, (after - before) @ self.sine
        magnitude = real.square().addcmul(imaginary, imaginary).sqrt()
        return (magnitude @ self.bank).clamp_min(FLOOR).log() @ self.dct


def mel(hz: Tensor) -> Tensor:
    return 1127 * torch.log1p(hz / 700)


def mel_bank(points: int, sample_rate: int, mel_bins: int, low_hz: float, high_hz: float) -> tuple[int, Tensor]:
    """The first bin that counts, and the weight of each bin from there on in each triangle: float64 [bins, mel_bins].

    The zeroth bin never counts, nor does the one nearest to low_hz from below.
    """
    spacing = sample_rate / points  # Hz from bin to bin
    first, last = max(1, int(1.5 + low_hz / spacing)), int(high_hz / spacing)
    at = mel(spacing * torch.arange(first, last + 1, dtype=torch.float64))[:, None]
    low, high = mel(torch.tensor([low_hz, high_hz], dtype=torch.float64))
    step = (high - low) / (mel_bins + 1)
    centre = low + step * torch.arange(1, mel_bins + 1)
    return first, (1 - (at - centre).abs() / step).clamp_min(0)


def half_dft(window: int, points: int, first: int, bins: int) -> tuple[Tensor, Tensor]:
    """cos and sin at the non-negative t of `bins` bins, times the periodic Hann window there: float64 [t, bins].

    t = 0 is among the samples before and after, hence half of it. The window is 0 at -window / 2, which needs no row.
    """
    t = torch.arange(window // 2, dtype=torch.float64)[:, None] + window % 2 / 2
    angle = 2 * math.pi / points * t * torch.arange(first, first + bins)
    hann = 0.5 + 0.5 * torch.cos(2 * math.pi * t / window)
    hann[t == 0] /= 2
    return hann * torch.cos(angle), hann * torch.sin(angle)


def dct(inputs: int, outputs: int) -> Tensor:
    """DCT-II, sqrt(2 / inputs) cos(pi / inputs (j + 1/2) i), also where i = 0: float64 [inputs j, outputs i]."""
    j, i = torch.arange(inputs, dtype=torch.float64)[:, None], torch.arange(outputs)
    return math.sqrt(2 / inputs) * torch.cos(math.pi / inputs * (j + 0.5) * i)
