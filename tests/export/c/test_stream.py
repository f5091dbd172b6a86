"""The example that listens: a network that says what the test wrote down, and a released one that hears real words."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated_programs import needs_emulator, run_on
from quantize_networks import Samples

from edgetrain.export.c.frontend import FEATURES, SOURCES, frontend_files
from edgetrain.ops.mfcc import MFCC

PLACES = [os.environ.get("EDGETRAIN_DATA"), Path(__file__).resolve().parents[4] / "shared" / "data"]
REAL = next((Path(place) for place in PLACES if place and (Path(place) / "kws_pretrained").is_dir()), None)
real = pytest.mark.skipif(REAL is None, reason="kws_pretrained is not in $EDGETRAIN_DATA")
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

# At 100 Hz a frame is 16 samples and begins 8 after the one before: three of them are a clip of 0.32 s.
SLOW = {
    "sample_rate": 100,
    "clip_seconds": 0.32,
    "features": FEATURES,
    "window_ms": 160,
    "stride_ms": 80,
    "mel_bins": 3,
    "low_hz": 2,
    "high_hz": 45,
    "coefficients": 2,
}
KEYWORDS = SLOW | {
    "sample_rate": 16000,
    "clip_seconds": 1.0,
    "window_ms": 40,
    "stride_ms": 20,
    "mel_bins": 40,
    "low_hz": 20,
    "high_hz": 4000,
    "coefficients": 10,
}
STRICT = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined,address", "-fno-sanitize-recover=all"]
HEADER = """
#include <stdint.h>

#define MODEL_INPUT_BYTES 6
#define MODEL_CLASSES 4
int model_init(void);
int8_t *model_input(void);
const int8_t *model_run(void);
void model_quantize(const float *x, int8_t *input);
void model_softmax(const int8_t *logits, int8_t *probabilities);
extern const char *const model_labels[MODEL_CLASSES];
"""
# Writes the features that it gets to features.bin, and takes the probabilities of each run from script.bin.
SCRIPTED = """
#include "model.h"

#include <stdio.h>
#include <string.h>

const char *const model_labels[MODEL_CLASSES] = {"silence", "left", "right", "unknown"};
static int8_t input[MODEL_INPUT_BYTES], output[MODEL_CLASSES];
static FILE *script, *features;

int model_init(void)
{
    script = fopen("script.bin", "rb");
    features = fopen("features.bin", "wb");
    return script == NULL;
}
int8_t *model_input(void) { return input; }
void model_quantize(const float *x, int8_t *into)
{
    fwrite(x, sizeof *x, MODEL_INPUT_BYTES, features);
    fflush(features);
    memset(into, 0, MODEL_INPUT_BYTES);
}
const int8_t *model_run(void)
{
    memset(output, -128, sizeof output);
    if (fread(output, 1, sizeof output, script) != sizeof output) {
        memset(output, -128, sizeof output);
    }
    return output;
}
void model_softmax(const int8_t *logits, int8_t *probabilities) { memcpy(probabilities, logits, MODEL_CLASSES); }
"""
Options = Mapping[str, int]
OPTIONS = {"RUN_EVERY": 2, "SMOOTHED_RUNS": 2, "THRESHOLD_PERCENT": 75, "REFRACTORY_MS": 320}


def build(folder: Path, sources: list[str], options: Options) -> Path:
    macros = [f"-D{name}={value}" for name, value in options.items()]
    files = ["stream.c", "frontend.c", "frontend_tables.c", "model.c", *sources]
    subprocess.run(["cc", *STRICT, *macros, *files, "-lm", "-o", "stream"], cwd=folder, check=True)
    return folder / "stream"


Listen = Callable[..., list[str]]


@pytest.fixture
def scripted(tmp_path: Path) -> Listen:
    """(probabilities of each run in steps of 1/256 [runs, 4], samples, options) to the lines that are printed."""

    def listen(script: list[list[int]], samples: np.ndarray | None = None, options: Options = OPTIONS) -> list[str]:
        for name, text in (frontend_files(SLOW) | {"model.h": HEADER, "model.c": SCRIPTED}).items():
            (tmp_path / name).write_text(text)
        (tmp_path / "script.bin").write_bytes((np.array(script, np.int16) - 128).astype(np.int8).tobytes())
        program = build(tmp_path, [], options)
        given = np.zeros(32 + 16 * (len(script) - 1), np.int16) if samples is None else samples
        return subprocess.run(
            [program], cwd=tmp_path, input=given.tobytes(), stdout=subprocess.PIPE, check=True
        ).stdout.decode().splitlines()  # fmt: skip

    return listen


def test_probabilities_are_averaged_over_the_last_runs_as_worked_by_hand(scripted: Listen):
    """Runs end at 0.32, 0.48, 0.64, ... s; 75% of two runs are 384 of 512 steps."""
    script = [
        [56, 200, 0, 0],  # left: (0 + 200) / 512
        [72, 184, 0, 0],  # left: (200 + 184) / 512 = 0.75, reported at 0.48; nothing until 0.80
        [0, 255, 0, 0],
        [0, 0, 255, 0],  # at 0.80 left and right have 255 / 512
        [0, 0, 129, 0],  # right: (255 + 129) / 512 = 0.75, reported at 0.96; nothing until 1.28
        [255, 0, 0, 0],
        [255, 0, 0, 0],  # at 1.28 silence is no word
        [0, 255, 0, 0],
        [0, 128, 0, 0],  # left: 383 / 512
        [0, 0, 0, 255],
        [0, 0, 0, 255],  # nor is unknown
    ]
    assert scripted(script) == ["0.48 left 0.75", "0.96 right 0.75"]


def test_a_word_that_stays_is_reported_again_only_after_the_refractory_time(scripted: Listen):
    assert scripted([[0, 255, 0, 0]] * 8) == ["0.48 left 1.00", "0.80 left 1.00", "1.12 left 1.00", "1.44 left 1.00"]
    assert scripted([[0, 255, 0, 0]] * 8, options=OPTIONS | {"REFRACTORY_MS": 330}) == [
        "0.48 left 1.00",
        "0.96 left 1.00",
        "1.44 left 1.00",
    ]


def test_without_options_three_runs_five_frames_apart_have_to_average_80_percent(scripted: Listen):
    """Frames are 0.08 s apart, so runs end at 0.32, 0.72, 1.12, ... s; 80% of three are 614.4 of 768 steps."""
    script = [[0, 0, 205, 0], [0, 0, 205, 0], [0, 0, 204, 0], [0, 0, 206, 0], [0, 0, 0, 0]]
    assert scripted(script, np.zeros(32 + 40 * 4, np.int16), {}) == ["1.52 right 0.80"]


def test_without_options_nothing_is_reported_while_a_word_may_stay_in_the_clip(scripted: Listen):
    """Three frames, 0.24 s."""
    lines = scripted([[0, 255, 0, 0]] * 10, np.zeros(32 + 8 * 9, np.int16), {"RUN_EVERY": 1})
    assert lines == ["0.48 left 1.00", "0.72 left 1.00", "0.96 left 1.00"]


@pytest.mark.parametrize("stride_ms", [80, 160, 200])
def test_the_network_gets_the_features_of_the_last_clip_to_the_bit(tmp_path: Path, stride_ms: int):
    """However frames overlap: those of a whole recording, computed frame by frame by a program of its own."""
    settings = SLOW | {"stride_ms": stride_ms, "clip_seconds": 0.16 + 2 * stride_ms / 1000}
    for name, text in (frontend_files(settings) | {"model.h": HEADER, "model.c": SCRIPTED}).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "script.bin").write_bytes(b"")
    (tmp_path / "whole.c").write_text(
        """
#include <stdio.h>
#include "frontend.h"
int main(void)
{
    static int16_t samples[400];
    size_t count = fread(samples, 2, 400, stdin);
    for (size_t at = 0; at + EDGETRAIN_WINDOW <= count; at += EDGETRAIN_STRIDE) {
        float features[EDGETRAIN_COEFFICIENTS];
        edgetrain_frame_int16(samples + at, features);
        fwrite(features, sizeof features, 1, stdout);
    }
    return 0;
}
"""
    )
    files = ["whole.c", "frontend.c", "frontend_tables.c"]
    subprocess.run(["cc", *STRICT, *files, "-lm", "-o", "whole"], cwd=tmp_path, check=True)
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 400).astype(np.int16)
    raw = subprocess.run([tmp_path / "whole"], input=samples.tobytes(), stdout=subprocess.PIPE, check=True).stdout
    frames = np.frombuffer(raw, np.float32).reshape(-1, 2)
    mfcc = MFCC(100, 160, stride_ms, 3, 2, 45, 2)
    assert np.abs(frames - mfcc(torch.from_numpy(samples / np.float32(32768))).numpy()).max() < 1e-4
    subprocess.run([build(tmp_path, [], OPTIONS)], cwd=tmp_path, input=samples.tobytes(), check=True)
    heard = np.fromfile(tmp_path / "features.bin", np.float32).reshape(-1, 3, 2)
    expected = np.stack([frames[first : first + 3] for first in range(0, len(frames) - 2, 2)])
    assert len(heard) > 5 and np.array_equal(heard, expected)


def test_bad_input_is_an_exit_code_and_a_sentence(scripted: Listen, tmp_path: Path):
    assert scripted([[0, 0, 0, 0]], np.zeros(0, np.int16)) == []

    def run(*arguments: str, given: bytes = b"") -> tuple[int, str, str]:
        done = subprocess.run([tmp_path / "stream", *arguments], cwd=tmp_path, input=given, capture_output=True)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    (tmp_path / "script.bin").write_bytes(np.full(4 * 4, 127, np.int8).tobytes())
    assert run(given=bytes(2 * 48 - 1)) == (0, "", "")  # half a sample is none
    assert run(given=bytes(2 * 48)) == (0, "0.48 left 1.00\n", "")
    (tmp_path / "samples.raw").write_bytes(bytes(2 * 48))
    assert run("samples.raw") == (0, "0.48 left 1.00\n", "")
    code, out, err = run(given=b"RIFF" + bytes(1000))
    assert (code, out, err.count("\n")) == (2, "", 1) and "a wav file; give its samples alone" in err
    assert run("nothing.raw") == (2, "", "stream: cannot open nothing.raw\n")
    assert run(".") == (1, "", "stream: cannot read .\n")
    assert run("a", "b") == (2, "", "usage: stream [FILE], of 16-bit samples at 100 Hz\n")
    (tmp_path / "script.bin").unlink()
    assert run()[0] == 1  # init failed


@pytest.mark.parametrize("level", [-(2**15), 2**15 - 1, 0])
def test_any_samples_are_clean_under_the_sanitizers(scripted: Listen, tmp_path: Path, level: int):
    assert scripted([[0, 0, 0, 0]], np.full(3000, level, np.int16)) == []
    assert np.isfinite(np.fromfile(tmp_path / "features.bin", np.float32)).all()


def test_a_network_for_other_features_does_not_compile(tmp_path: Path):
    header = HEADER.replace("INPUT_BYTES 6", "INPUT_BYTES 8")
    for name, text in (frontend_files(SLOW) | {"model.h": header, "model.c": SCRIPTED}).items():
        (tmp_path / name).write_text(text)
    said = subprocess.run(["cc", "-c", "stream.c"], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode != 0 and "the network does not take the features of this front end" in said.stderr


@pytest.fixture(scope="module")
def keyword_stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DS-CNN-S of Hello Edge in int8, calibrated on the four clips at several volumes, and the example around it."""
    from edgetrain.export.c.source import model_files
    from edgetrain.methods.lowering import lower
    from edgetrain.methods.quantize import post_training
    from edgetrain.models.keyword_pretrained import LABELS, keyword_pretrained

    pytest.importorskip("executorch")
    folder, mfcc = tmp_path_factory.mktemp("stream"), MFCC()
    features = torch.stack(
        [mfcc(torch.from_numpy(recording(name)) * gain / 32768) for name in CLIPS for gain in (0.3, 1.0, 2.0)]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGETRAIN_DATA", str(REAL))
        network = keyword_pretrained("ds_cnn_s").eval()
    quantised = post_training(network, (features[:1],), Samples(features))
    program = lower(quantised, (features[:1],)).program
    for name, text in (model_files(program, labels=LABELS) | frontend_files(KEYWORDS)).items():
        (folder / name).write_text(text)
    for source in SOURCES.glob("*.h"):
        shutil.copy(source, folder)
    return build(folder, [str(SOURCES / "kernels_plain.c")], {})


CLIPS = ("yes", "no", "silence", "noise")


def recording(name: str) -> np.ndarray:
    import soundfile

    return soundfile.read(REAL / "kws_clips" / f"{name}_1000ms.wav", dtype="int16")[0]


@real
@pytest.mark.parametrize("word", ["yes", "no"])
@pytest.mark.parametrize("between", ["zeros", "silence", "noise"])
def test_a_word_between_two_silences_is_heard_once_at_its_time(keyword_stream: Path, word: str, between: str):
    """It is said between 2 and 3 s, and smoothed over three tenths of a second."""
    pause = np.tile(np.zeros(16000, np.int16) if between == "zeros" else recording(between), 2)
    samples = np.concatenate([pause, recording(word), pause])
    lines = subprocess.run([keyword_stream], input=samples.tobytes(), stdout=subprocess.PIPE, check=True).stdout
    (line,) = lines.decode().splitlines()
    seconds, label, score = line.split()
    assert label == word and 2.5 < float(seconds) < 3.3 and 0.8 <= float(score) <= 1


@real
@pytest.mark.parametrize("between", ["zeros", "silence", "noise"])
def test_nothing_is_heard_in_a_long_silence(keyword_stream: Path, between: str):
    pause = np.tile(np.zeros(16000, np.int16) if between == "zeros" else recording(between), 10)
    assert subprocess.run([keyword_stream], input=pause.tobytes(), stdout=subprocess.PIPE, check=True).stdout == b""


@real
@needs_emulator
@pytest.mark.parametrize("core", ["cortex_m4", "cortex_m55"])
def test_an_emulated_core_hears_what_this_machine_hears(keyword_stream: Path, core: str):
    folder, pause = keyword_stream.parent, np.zeros(16000, np.int16)
    np.concatenate([pause, recording("yes"), pause]).tofile(folder / "samples.raw")
    here = subprocess.run([keyword_stream, "samples.raw"], cwd=folder, stdout=subprocess.PIPE, check=True).stdout
    sources = ["stream.c", "frontend.c", "frontend_tables.c", "model.c", str(SOURCES / "kernels.c")]
    there = run_on(core, folder, sources, "samples.raw")
    assert there == here.decode() and there.count("\n") == 1
