"""Small audio sets, made up: a tone a label, a timbre a speaker."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from datasets import Audio, ClassLabel, Features, Value

LABELS = ["low", "middle", "high"]
SPEAKERS = ["ann", "bob", "cyd"]


def tone(label: int, speaker: int, take: int, rate: int = 8000, seconds: float = 0.3) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    pitch = 300 * (1 + label) * (1 + 0.01 * take)
    harmonic = np.sin(2 * np.pi * (speaker + 2) * pitch * time)
    return (0.4 * np.sin(2 * np.pi * pitch * time) + 0.1 * harmonic).astype(np.float32)


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def rows_of(takes: range) -> list[dict]:
    return [
        {
            "audio": {"bytes": wav(tone(label, speaker, take)), "path": f"{label}_{name}_{take}.wav"},
            "label": label,
            "speaker": name,
        }
        for label in range(3)
        for speaker, name in enumerate(SPEAKERS)
        for take in takes
    ]


FEATURES = Features({"audio": Audio(), "label": ClassLabel(names=LABELS), "speaker": Value("string")})


def write_parquet(folder: Path, splits: dict[str, list[dict]], features: Features = FEATURES) -> Path:
    """A set as a hub would give it, with its features in the files' metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(rows, features.arrow_schema), folder / f"{name}.parquet")
    return folder


def write_fsdd(folder: Path, takes: int = 6) -> Path:
    """The columns of the Free Spoken Digit Dataset, and too few of its rows: one take of each for test."""
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    columns = {"label": ClassLabel(names=digits), "text": Value("string"), "speaker": Value("string")}
    rows = [
        {
            "audio": {"bytes": wav(tone(label % 5, speaker + label // 5, take)), "path": f"{label}_{name}_{take}.wav"},
            "label": label,
            "text": digits[label],
            "speaker": name,
            "take": take,
        }
        for label in range(10)
        for speaker, name in enumerate(["george", "jackson", "lucas", "nicolas", "theo", "yweweler"])
        for take in range(takes)
    ]
    splits = {name: [row for row in rows if (row["take"] == 0) == (name == "test")] for name in ("train", "test")}
    return write_parquet(folder, splits, Features({"audio": Audio(), **columns, "take": Value("int32")}))


def write_speech_commands(folder: Path, words: list[str], speakers: int = 30, version: str = "v0.02") -> Path:
    """The layout of torchaudio's SPEECHCOMMANDS under `folder`; returns the folder of the words' folders."""
    place = folder / "SpeechCommands" / f"speech_commands_{version}"
    for label, word in enumerate(words):
        (place / word).mkdir(parents=True)
        for speaker in range(speakers):
            name = f"{speaker * 2654435761 % 2**32:08x}"
            for take in range(1 + speaker % 2):
                clip = tone(label % 7, speaker % 5, take, 16000, 0.5 + 0.5 * (speaker % 3 > 0))
                (place / word / f"{name}_nohash_{take}.wav").write_bytes(wav(clip, 16000))
    (place / "_background_noise_").mkdir()
    draw = np.random.default_rng(0)
    for name in ("hiss", "hum"):
        noise = 0.1 * draw.standard_normal(40000)
        (place / "_background_noise_" / f"{name}.wav").write_bytes(wav(noise, 16000))
    (place / "_background_noise_" / "README.md").write_text("not audio")
    return place
