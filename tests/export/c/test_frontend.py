"""The front end in C against its definition in float64, the features that networks train on, and at extremes."""

import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated_programs import needs_emulator, run_on

from edgetrain.errors import UserError
from edgetrain.export.c.frontend import FEATURES, frontend_facts, frontend_files, has_front_end
from edgetrain.ops.mfcc import MFCC

PLACES = [os.environ.get("EDGETRAIN_DATA"), Path(__file__).resolve().parents[4] / "shared" / "data"]
REAL = next((Path(place) for place in PLACES if place and (Path(place) / "kws_pretrained").is_dir()), None)
real = pytest.mark.skipif(REAL is None, reason="kws_pretrained is not in $EDGETRAIN_DATA")
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

KEYWORDS = {
    "sample_rate": 16000,
    "clip_seconds": 1.0,
    "features": FEATURES,
    "window_ms": 40,
    "stride_ms": 20,
    "fft": 1024,
    "mel_bins": 40,
    "low_hz": 20,
    "high_hz": 4000,
    "coefficients": 10,
}
SETTINGS = {  # half of the DFT's points is a power of four in some and not in others
    "keywords": {},
    "8_khz": {"sample_rate": 8000},
    "wide_band": {"window_ms": 30, "stride_ms": 10, "mel_bins": 23, "low_hz": 100, "high_hz": 7600, "coefficients": 13},
    "up_to_half_the_sample_rate": {"window_ms": 32, "stride_ms": 40, "low_hz": 0, "high_hz": 8000, "coefficients": 40},
    "odd_window": {"sample_rate": 11025},
    "tiny": {"sample_rate": 100, "window_ms": 70, "low_hz": 2, "high_hz": 45, "mel_bins": 2, "coefficients": 2},
}
STRICT = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined,address", "-fno-sanitize-recover=all"]
HARNESS = """
#include <stdio.h>
#include "frontend.h"

int main(int argc, char **argv)
{
    static float samples[EDGETRAIN_WINDOW], features[EDGETRAIN_COEFFICIENTS];
    static int16_t integers[EDGETRAIN_WINDOW];
    int floats = argv[argc - 1][0] == 'f';
    void *frame = floats ? (void *)samples : (void *)integers;
    size_t size = floats ? sizeof *samples : sizeof *integers;
    FILE *in = fopen("samples", "rb"), *out = fopen("features", "wb");
    while (fread(frame, size, EDGETRAIN_WINDOW, in) == EDGETRAIN_WINDOW) {
        floats ? edgetrain_frame(samples, features) : edgetrain_frame_int16(integers, features);
        fwrite(features, sizeof *features, EDGETRAIN_COEFFICIENTS, out);
    }
    return fclose(in) + fclose(out);
}
"""
HARNESS_FILES = ["harness.c", "frontend.c", "frontend_tables.c"]
NO_LAYERS = """
#include <stdint.h>
#define MODEL_LAYERS 1
struct facts { const char *name, *kind; int64_t macs; };
static const struct facts model_layers[1] = {{"", "", 0}};
void edgetrain_trace(int layer, const int8_t *output, int32_t bytes);
"""


class FrontEnd:
    """The C of some settings, compiled with warnings as errors and with sanitizers that end the program."""

    def __init__(self, folder: Path, **settings: float) -> None:
        self.settings = KEYWORDS | settings
        for name, text in frontend_files(self.settings).items():
            (folder / name).write_text(text)
        (folder / "harness.c").write_text(HARNESS)
        subprocess.run(["cc", *STRICT, *HARNESS_FILES, "-lm", "-o", "harness"], cwd=folder, check=True)
        self.folder = folder
        names = ("sample_rate", "window_ms", "stride_ms", "mel_bins", "low_hz", "high_hz", "coefficients")
        self.mfcc = MFCC(**{name: self.settings[name] for name in names})

    def __call__(self, samples: np.ndarray, core: str | None = None) -> np.ndarray:
        """Samples float32 or int16 [n] to features [frames, coefficients], here or on a core under QEMU."""
        frames = np.lib.stride_tricks.sliding_window_view(samples, self.mfcc.window)[:: self.mfcc.stride]
        (self.folder / "samples").write_bytes(frames.tobytes())
        if core is None:
            subprocess.run(["./harness", frames.dtype.name], cwd=self.folder, check=True)
        else:
            (self.folder / "model.h").write_text(NO_LAYERS)
            run_on(core, self.folder, HARNESS_FILES, frames.dtype.name)
        return np.fromfile(self.folder / "features", np.float32).reshape(len(frames), -1)

    def definition(self, samples: np.ndarray) -> np.ndarray:
        """In float64, with numpy's FFT and triangles drawn one by one."""
        rate, bins, low, high, count = (
            self.settings[name] for name in ("sample_rate", "mel_bins", "low_hz", "high_hz", "coefficients")
        )
        window, stride = (round(rate * self.settings[name] / 1000) for name in ("window_ms", "stride_ms"))
        points = 1
        while points < window:
            points *= 2
        edges = np.linspace(1127 * math.log(1 + low / 700), 1127 * math.log(1 + high / 700), bins + 2)
        at = 1127 * np.log(1 + np.arange(points // 2 + 1) * rate / points / 700)
        triangles = np.array([np.interp(at, edges[k : k + 3], [0, 1, 0]) for k in range(bins)])
        triangles[:, : max(1, int(1.5 + low * points / rate))] = 0
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        rows = []
        for start in range(0, len(samples) - window + 1, stride):
            spectrum = np.fft.rfft(samples[start : start + window].astype(np.float64) * hann, points)
            rows.append(np.log(np.maximum(triangles @ np.abs(spectrum), 1e-12)))
        cosine = np.cos(np.pi / bins * np.outer(np.arange(bins) + 0.5, np.arange(count)))
        return math.sqrt(2 / bins) * np.array(rows) @ cosine


@pytest.fixture(scope="module")
def keywords(tmp_path_factory: pytest.TempPathFactory) -> FrontEnd:
    return FrontEnd(tmp_path_factory.mktemp("keywords"))


def noise(count: int, scale: float = 0.1) -> np.ndarray:
    return (scale * np.random.default_rng(3).standard_normal(count)).astype(np.float32)


@needs_cc
@pytest.mark.parametrize("name", SETTINGS)
def test_features_equal_their_definition(name: str, tmp_path: Path):
    front_end = FrontEnd(tmp_path, **SETTINGS[name])
    samples = noise(6000)
    features = front_end(samples)
    assert features.shape[0] == front_end.mfcc.frames(6000) and features.shape[0] >= 9
    assert np.abs(features - front_end.definition(samples)).max() < 1e-4
    assert np.abs(features - front_end.mfcc(torch.from_numpy(samples)).numpy()).max() < 1e-4


@needs_cc
def test_integers_are_the_floats_that_a_recording_is_read_as(keywords: FrontEnd):
    integers = np.random.default_rng(0).integers(-(2**15), 2**15, 4000).astype(np.int16)
    assert np.array_equal(keywords(integers), keywords(integers.astype(np.float32) / 32768))


@needs_cc
def test_a_frame_does_not_depend_on_the_frames_before_it(keywords: FrontEnd):
    samples = noise(4000)
    together = keywords(samples)
    alone = [keywords(samples[320 * k : 320 * k + 640])[0] for k in reversed(range(len(together)))]
    assert np.array_equal(together[::-1], alone)


@needs_cc
@needs_emulator
@pytest.mark.parametrize("core", ["cortex_m4", "cortex_m55"])
def test_a_core_computes_the_same_features_but_for_its_logarithm(keywords: FrontEnd, core: str):
    """Two libraries' logf differ in the last bit, of numbers below 32: 40 of them, weighed by less than 1/4."""
    samples = (noise(2000, 3000)).astype(np.int16)
    assert np.abs(keywords(samples, core) - keywords(samples)).max() <= 40 / 4 * 2**-19


@needs_cc
def test_silence_is_the_floor_and_nothing_else(keywords: FrontEnd):
    features = keywords(np.zeros(2000, np.int16))
    assert features[:, 0] == pytest.approx(math.sqrt(2 / 40) * 40 * math.log(1e-12), rel=1e-6)
    assert np.abs(features[:, 1:]).max() < 1e-3


@needs_cc
@pytest.mark.parametrize("level", [-(2**15), 2**15 - 1])
def test_the_loudest_samples_are_finite_and_within_what_a_frame_can_hold(keywords: FrontEnd, level: int):
    """A square wave of full scale and a constant: at most 640 x 2 / pi in a bin, 20 bins in a triangle."""
    square = np.where(np.arange(2000) // 8 % 2, level, -1 - level).astype(np.int16)
    for samples in (square, np.full(2000, level, np.int16)):
        features = keywords(samples)
        assert np.isfinite(features).all()
        assert features[:, 0].max() < math.sqrt(2 / 40) * 40 * math.log(640 * 20)
    assert np.abs(keywords(square) - keywords.definition(square / 32768)).max() < 5e-3


@needs_cc
@pytest.mark.parametrize("hertz", [0, 440, 1000])
def test_where_most_triangles_hear_rounding_alone_features_still_say_about_the_same(keywords: FrontEnd, hertz: int):
    tone = (32767 * np.cos(2 * np.pi * hertz / 16000 * np.arange(2000))).astype(np.int16)
    assert np.abs(keywords(tone) - keywords.definition(tone / 32768)).max() < 0.05


@needs_cc
def test_a_single_spike_has_the_same_magnitude_in_every_bin(keywords: FrontEnd):
    """|DFT| of one sample is the sample: a channel is the sum of its triangle, by its definition."""
    samples = np.zeros(640, np.float32)
    samples[320] = 0.5  # where the window is 1
    at = 1127 * np.log(1 + np.arange(2, 257) * 15.625 / 700)
    edges = np.linspace(1127 * math.log(1 + 20 / 700), 1127 * math.log(1 + 4000 / 700), 42)
    sums = [np.interp(at, edges[k : k + 3], [0, 1, 0]).sum() for k in range(40)]
    assert keywords(samples)[0, 0] == pytest.approx(math.sqrt(2 / 40) * np.log(0.5 * np.array(sums)).sum(), abs=1e-4)


@real
@needs_cc
@torch.no_grad()
def test_recordings_have_the_features_that_networks_train_on_to_less_than_a_step_of_8_bits(
    keywords: FrontEnd, monkeypatch: pytest.MonkeyPatch
):
    """The released network's input is -247 to 30 in 255 steps of about 1, a coarse and a fine step are tried: of the
    490 features of a clip, a difference of 1e-4 takes one across the middle between two steps at the very most."""
    import soundfile

    from edgetrain.models.keyword_pretrained import LABELS, keyword_pretrained

    monkeypatch.setenv("EDGETRAIN_DATA", str(REAL))
    network = keyword_pretrained("ds_cnn_s").eval()
    for clip in ("yes", "no", "silence", "noise"):
        samples, rate = soundfile.read(REAL / "kws_clips" / f"{clip}_1000ms.wav", dtype="int16")
        assert rate == 16000
        theirs = keywords.mfcc(torch.from_numpy(samples / np.float32(32768)))
        ours = torch.from_numpy(keywords(samples).copy())
        assert (ours - theirs).abs().max() < 1e-4
        for scale in (0.3, 1.0):
            steps = (ours / scale).round() - (theirs / scale).round()
            assert steps.abs().max() <= 1 and steps.count_nonzero() <= 1
        said, expected = network(torch.stack([ours, theirs])).softmax(1)
        assert (said - expected).abs().max() < 1e-4
        assert clip == "noise" or LABELS[said.argmax()] == clip


def test_the_same_values_give_the_same_text():
    assert frontend_files(KEYWORDS) == frontend_files(dict(reversed(KEYWORDS.items())))
    assert frontend_files(KEYWORDS | {"coefficients": 11}) != frontend_files(KEYWORDS)


def test_the_networks_prefix_is_in_the_stream_and_nowhere_else():
    model, other = frontend_files(KEYWORDS), frontend_files(KEYWORDS, "digits")
    assert {name for name in model if model[name] != other[name]} == {"stream.c"}
    assert not re.search(r"model_|MODEL_", other["stream.c"])
    assert "digits_run()" in other["stream.c"] and "DIGITS_CLASSES" in other["stream.c"]


@needs_cc
@pytest.mark.skipif(shutil.which("size") is None, reason="there is no size")
def test_facts_are_what_the_compiler_lays_out(tmp_path: Path):
    for name, text in frontend_files(KEYWORDS).items():
        (tmp_path / name).write_text(text)
    subprocess.run(["cc", "-O1", "-c", "frontend.c", "frontend_tables.c"], cwd=tmp_path, check=True)

    def sections(file: str, prefix: str) -> int:
        out = subprocess.run(["size", "-A", tmp_path / file], capture_output=True, text=True, check=True).stdout
        return sum(int(line.split()[1]) for line in out.splitlines() if line.startswith(prefix))

    facts = frontend_facts(KEYWORDS)
    assert 0 <= sections("frontend_tables.o", ".rodata") - facts["table_bytes"] < 5 * 32  # alignment of five tables
    assert sections("frontend.o", ".bss") == facts["working_bytes"]


@pytest.mark.parametrize(("window_ms", "samples"), [(0.125, 2), (5000, 80000)])
def test_a_window_that_the_front_end_cannot_take_is_a_sentence(window_ms: float, samples: int):
    sentence = f"windows of 3 to 8192 samples, and data.window_ms={window_ms} at 16000 Hz is {samples}; set another"
    with pytest.raises(UserError, match=sentence):
        frontend_files(KEYWORDS | {"window_ms": window_ms})


def test_only_data_with_these_features_has_a_front_end():
    assert has_front_end(KEYWORDS)
    assert not has_front_end({"features": "samples"}) and not has_front_end({})
