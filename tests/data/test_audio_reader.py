"""What the reader decodes, and one sentence for everything else, whatever the bytes are."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetrain.data.audio_reader import RATES, duration, read_recording
from edgetrain.errors import UserError

WHERE = "data.path=set: row 3 of train"
TONE = (0.5 * np.sin(np.arange(4000) / 7)).astype(np.float32)


def encoded(samples: np.ndarray = TONE, rate: int = 8000, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **({"format": "WAV"} | options))
    return file.getvalue()


def read(content: bytes, seconds: float = 1.0, downmix: bool = False) -> tuple[np.ndarray, int]:
    return read_recording(io.BytesIO(content), WHERE, seconds, downmix)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"subtype": "PCM_16"}, 2**-15),
        ({"subtype": "PCM_24"}, 2**-23),
        ({"subtype": "PCM_U8"}, 2**-6),
        ({"subtype": "FLOAT"}, 0),
        ({"format": "FLAC"}, 2**-15),
        ({"format": "OGG"}, 0.05),
        ({"format": "MP3"}, 0.05),
    ],
    ids=lambda value: "_".join(value.values()) if isinstance(value, dict) else "",
)
def test_formats_are_read_at_their_own_rate_and_scaled_to_one(options: dict, error: float):
    samples, rate = read(encoded(**options))
    assert rate == 8000
    assert samples.dtype == np.float32
    assert samples.shape == TONE.shape
    assert np.abs(samples - TONE).max() <= error


def test_no_more_than_asked_is_read():
    samples, _ = read(encoded(), seconds=0.25)
    assert np.abs(samples - TONE[:2000]).max() <= 2**-15
    assert len(samples) == 2000


def test_several_channels_are_refused_and_averaged_on_request():
    both = encoded(np.stack([TONE, -0.5 * TONE], 1), subtype="FLOAT")
    with pytest.raises(UserError, match=f"{WHERE} has 2 channels, and a model hears one; data.downmix=true averages"):
        read(both)
    assert read(both, downmix=True)[0] == pytest.approx(0.25 * TONE, abs=1e-7)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"is no audio that can be decoded \(Format not recognised\); give wav, flac, ogg or mp3"),
        (b"not audio at all" * 40, r"is no audio that can be decoded \(Format not recognised\)"),
        (encoded(TONE[:0]), "is empty: it holds no samples"),
        (encoded()[:-1], "is cut short: its header says more samples than there are"),
        (encoded()[:3000], "is cut short"),
        (encoded(format="FLAC")[:2000], "is cut short|cannot|can be decoded"),
        (encoded(np.array([0, np.nan, 0], np.float32), subtype="FLOAT"), "holds samples that are no numbers"),
        (encoded(np.array([0, np.inf, 0], np.float32), subtype="FLOAT"), "holds samples that are no numbers"),
        (encoded(rate=500), "says a sample rate of 500 Hz, which no recording has"),
        (encoded(np.zeros((9, 40))), "says that it has 40 channels"),
    ],
    ids=["nothing", "text", "empty", "a_byte_short", "short", "flac_short", "nan", "inf", "rate", "channels"],
)
def test_a_bad_recording_is_one_sentence_that_names_it(content: bytes, sentence: str):
    with pytest.raises(UserError, match=sentence) as raised:
        read(content)
    assert str(raised.value).startswith(WHERE)
    assert "\n" not in str(raised.value)


def test_a_header_that_claims_four_gigabytes_is_a_sentence():
    content = bytearray(encoded())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", 2**32 - 2)
    with pytest.raises(UserError, match="is cut short"):
        read(bytes(content))


def test_a_wav_whose_writer_did_not_know_its_length_is_read():
    content = bytearray(encoded())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", 2**32 - 1)
    assert len(read(bytes(content))[0]) == len(TONE)


def test_chunks_before_the_samples_are_stepped_over():
    content = encoded()
    note = b"note" + struct.pack("<I", 3) + b"abc\0"  # of odd length, so that a byte of padding follows
    riff = content[:12] + note + content[12:]
    assert len(read(riff[:4] + struct.pack("<I", len(riff) - 8) + riff[8:])[0]) == len(TONE)
    with pytest.raises(UserError, match="is cut short"):
        read(riff[:-5])


def test_the_duration_is_that_of_the_whole_recording(tmp_path: Path):
    assert duration(io.BytesIO(encoded())) == 0.5
    assert duration(io.BytesIO(b"nothing")) == 0


def decodes_or_says_so(content: bytes) -> None:
    try:
        samples, rate = read(content, downmix=True)
    except UserError as error:
        assert str(error).startswith(WHERE)
        assert "\n" not in str(error)
    else:
        assert 1 <= len(samples) <= rate
        assert np.isfinite(samples).all()
        assert rate in RATES


FILES = [encoded(TONE[:900], **options) for options in ({}, {"format": "FLAC"}, {"format": "OGG"}, {"format": "MP3"})]
FILES += [encoded(np.stack([TONE[:300]] * 2, 1), subtype="FLOAT"), encoded(TONE[:300], format="AIFF")]
slowly = settings(max_examples=150, deadline=2000, derandomize=True, database=None)


@slowly
@given(st.binary(max_size=400), st.sampled_from([b"", b"RIFF", b"RIFF\xff\xff\xff\xffWAVE", b"fLaC", b"OggS", b"ID3"]))
def test_any_bytes_decode_or_are_a_sentence(content: bytes, start: bytes):
    decodes_or_says_so(start + content)


@slowly
@given(st.sampled_from(FILES), st.data())
def test_any_cut_file_decodes_or_is_a_sentence(content: bytes, data):
    decodes_or_says_so(content[: data.draw(st.integers(0, len(content)))])


@slowly
@given(st.sampled_from(FILES), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_damaged_file_decodes_or_is_a_sentence(content: bytes, damage: list[tuple[float, int]]):
    damaged = bytearray(content)
    for place, value in damage:
        damaged[int(place**3 * (len(damaged) - 1))] = value  # most of it in the header
    decodes_or_says_so(bytes(damaged))
