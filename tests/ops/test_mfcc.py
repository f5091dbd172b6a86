"""The paper's features against a loop written from TensorFlow's definition, libraries, and cases worked by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from edgetrain.errors import UserError
from edgetrain.ops.mfcc import MFCC, dct, mel_bank

HOP = math.sqrt(2 / 40) * 40  # what a change of every log mel value by 1 does to the zeroth coefficient


def noise(*shape: int, scale: float = 0.1) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def slow_mfcc(
    samples: np.ndarray, rate=16000, window=640, stride=320, bins=40, low=20.0, high=4000.0, coefficients=10
) -> np.ndarray:
    """Frame by frame and bin by bin, in float64, with numpy's FFT."""

    def mel(hz: float) -> float:
        return 1127 * math.log(1 + hz / 700)

    points = 1
    while points < window:
        points *= 2
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    edges = [mel(low) + k * (mel(high) - mel(low)) / (bins + 1) for k in range(bins + 2)]
    rows = []
    for start in range(0, len(samples) - window + 1, stride):
        frame = np.zeros(points)
        frame[:window] = samples[start : start + window] * hann
        power = np.abs(np.fft.rfft(frame)) ** 2
        channels = [0.0] * bins
        for k in range(int(1.5 + low * points / rate), int(high * points / rate) + 1):
            at = mel(k * rate / points)
            for channel in range(bins):
                left, centre, right = edges[channel : channel + 3]
                if left < at <= centre:
                    channels[channel] += math.sqrt(power[k]) * (at - left) / (centre - left)
                elif centre < at < right:
                    channels[channel] += math.sqrt(power[k]) * (right - at) / (right - centre)
        logs = [math.log(max(value, 1e-12)) for value in channels]
        rows.append(
            [
                math.sqrt(2 / bins) * sum(log * math.cos(math.pi / bins * i * (j + 0.5)) for j, log in enumerate(logs))
                for i in range(coefficients)
            ]
        )
    return np.array(rows)


def test_features_equal_a_loop_over_the_definition():
    samples = noise(16000)
    assert np.abs(MFCC()(samples).numpy() - slow_mfcc(samples.double().numpy())).max() < 2e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"rate": 8000, "window": 320, "stride": 160},
        {"rate": 16000, "window": 480, "stride": 160, "bins": 23, "low": 100.0, "high": 7600.0, "coefficients": 13},
        {"rate": 16000, "window": 512, "stride": 512, "low": 0.0, "coefficients": 40},
        {"rate": 11025, "window": 441, "stride": 220},  # an odd window has no sample in its middle
    ],
    ids=["8_khz", "wide_band", "power_of_two", "odd_window"],
)
def test_features_equal_the_loop_at_other_settings(settings: dict):
    samples = noise(3000)
    rate = settings["rate"]
    names = {"bins": "mel_bins", "low": "low_hz", "high": "high_hz", "coefficients": "coefficients"}
    given = {names[key]: value for key, value in settings.items() if key in names}
    ours = MFCC(rate, 1000 * settings["window"] / rate, 1000 * settings["stride"] / rate, **given)
    assert np.abs(ours(samples).numpy() - slow_mfcc(samples.double().numpy(), **settings)).max() < 5e-4


def test_a_second_has_49_frames_every_20_ms_and_25_every_40_ms():
    assert MFCC().frames(16000) == 49
    assert MFCC(stride_ms=40).frames(16000) == 25
    assert MFCC()(noise(2, 3, 16000)).shape == (2, 3, 49, 10)
    assert MFCC().frames(639) == 0
    assert MFCC().frames(640) == 1


def test_silence_is_the_floor_and_nothing_else():
    features = MFCC()(torch.zeros(1, 16000))
    assert features[0, :, 0].numpy() == pytest.approx(HOP * math.log(1e-12), rel=1e-6)
    assert features[0, :, 1:].abs().max() < 1e-3


def test_twice_as_loud_adds_ln_2_to_every_channel_as_magnitudes_do():
    quiet, loud = MFCC()(noise(16000)), MFCC()(2 * noise(16000))
    assert (loud - quiet)[:, 0].numpy() == pytest.approx(HOP * math.log(2), abs=2e-4)
    assert (loud - quiet)[:, 1:].abs().max() < 2e-4


def test_a_tone_peaks_in_the_triangle_that_holds_it():
    tone = 0.5 * torch.sin(2 * math.pi * 1000 / 16000 * torch.arange(16000))
    logs = MFCC(coefficients=40)(tone) @ torch.linalg.inv(dct(40, 40).float())
    # mel(20) = 31.75, mel(4000) = 2146.08, 41 steps of 51.57; mel(1000) = 999.99 is 18.77 steps up, so nearest to the
    # centre of the 19th triangle, which is number 18.
    assert logs.argmax(-1).tolist() == [18] * 49


def test_a_mel_channel_of_the_default_bank_covers_what_kaldi_says():
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi", exc_type=(ImportError, OSError))
    first, bank = mel_bank(1024, 16000, 40, 20, 4000)
    theirs, _ = kaldi.get_mel_banks(40, 1024, 16000.0, 20.0, 4000.0, 100.0, -500.0, 1.0)
    assert first == 2  # 31.25 Hz; the bin at 15.6 Hz is below the band, and the zeroth is never used
    assert torch.allclose(bank.float(), theirs.T[first : first + len(bank)], atol=2e-5)
    assert theirs.T[:first].abs().max() == 0
    assert theirs.T[first + len(bank) :].abs().max() == 0


def test_the_cosine_transform_is_scipys_with_an_unscaled_first_row():
    fft = pytest.importorskip("scipy.fft")
    values = noise(5, 40).double()
    ours, ortho = values @ dct(40, 10), torch.from_numpy(fft.dct(values.numpy(), norm="ortho")[:, :10])
    assert torch.allclose(ours[:, 1:], ortho[:, 1:])
    assert torch.allclose(ours[:, 0], ortho[:, 0] * math.sqrt(2))


def test_a_batch_is_its_clips_one_by_one():
    clips, front_end = noise(5, 16000), MFCC()
    assert torch.allclose(front_end(clips), torch.stack([front_end(clip) for clip in clips]), atol=2e-5)


def test_it_has_nothing_to_save():
    front_end = MFCC()
    assert list(front_end.state_dict()) == []
    assert list(front_end.parameters()) == []


@pytest.mark.parametrize("batch", [1, 7])
def test_the_exported_program_takes_any_batch(batch: int):
    many = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(MFCC(), (noise(2, 16000),), dynamic_shapes=({0: many},))
    clips = noise(batch, 16000)
    assert torch.allclose(program.module()(clips), MFCC()(clips), atol=2e-5)


def test_onnx_runtime_computes_the_same_lines():
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    clips = noise(1, 16000)
    program = torch.onnx.export(torch.export.export(MFCC(), (clips,)), dynamo=True, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (features,) = session.run(None, {session.get_inputs()[0].name: clips.numpy()})
    assert np.abs(features - MFCC()(clips).numpy()).max() < 1e-4


def test_executorch_computes_the_same_lines_with_its_portable_operators():
    exir = pytest.importorskip("executorch.exir")
    from executorch.runtime import Runtime

    clips = noise(1, 16000)
    program = exir.to_edge_transform_and_lower(torch.export.export(MFCC(), (clips,))).to_executorch()
    (features,) = Runtime.get().load_program(program.buffer).load_method("forward").execute([clips])
    assert (features - MFCC()(clips)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"window_ms": 0.01}, "at 16000 Hz window_ms=0.01 is 0 samples"),
        ({"stride_ms": 0}, "a window needs at least two and a stride one"),
        ({"sample_rate": 7000}, "20 to high_hz=4000 is no band between 0 and 3500 Hz.*sample_rate of at least 8000"),
        ({"low_hz": 4000}, "low_hz=4000 to high_hz=4000 is no band"),
        ({"coefficients": 41}, "coefficients=41 is not between 1 and mel_bins=40"),
    ],
)
def test_settings_that_cannot_be_are_a_sentence(settings: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        MFCC(**settings)
