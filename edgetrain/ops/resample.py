"""Band-limited resampling: a windowed sinc, cut off at 99 % of the lower half sample rate, six zero crossings wide.

The definition is that of torchaudio.functional.resample with its defaults (sinc_interp_hann); the constants are its.
"""

import math

import torch
from torch import Tensor

CROSSINGS = 6
ROLLOFF = 0.99
PHASES = 64  # places between two input samples whose weights are computed together


def resample(samples: Tensor, rate: int, new_rate: int) -> Tensor:
    """float32 [..., n] at `rate` Hz to [..., ceil(n new_rate / rate)] at `new_rate`; what lies outside counts as 0.

        y[j] = sum_n x[n] cut h(cut (n - j rate / new_rate)),  h(t) = sinc(t) cos^2(pi t / 2 CROSSINGS)

    where cut is the cut-off over half of `rate`. Outputs that lie alike between their neighbours share weights; any two
    rates work, also when no two outputs do.
    """
    if rate == new_rate:
        return samples
    common = math.gcd(rate, new_rate)
    rate, new_rate = rate // common, new_rate // common
    cut = ROLLOFF * min(rate, new_rate) / rate
    reach = math.ceil(CROSSINGS / cut)  # input samples on each side of an output
    length = math.ceil(samples.shape[-1] * new_rate / rate)
    periods = math.ceil(length / new_rate)
    padded = torch.nn.functional.pad(samples, (reach, periods * rate - samples.shape[-1] + reach + 1))
    outputs = []
    for phases in torch.arange(min(new_rate, length), dtype=torch.float64).split(PHASES):
        places = phases * rate / new_rate
        first, last = int(places[0]), int(places[-1])
        time = cut * (torch.arange(first - reach, last + reach + 2) - places[:, None])
        window = torch.cos(math.pi / 2 / CROSSINGS * time.clamp(-CROSSINGS, CROSSINGS)).square()
        weights = (cut * torch.sinc(time) * window).to(samples.dtype)
        heard = padded[..., first : first + (periods - 1) * rate + weights.shape[-1]]
        outputs.append(heard.unfold(-1, weights.shape[-1], rate) @ weights.T)
    return torch.cat(outputs, -1).flatten(-2)[..., :length]
