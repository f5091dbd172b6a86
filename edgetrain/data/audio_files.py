"""Folders of audio files: a set whose labels are its folders' names, and recordings of background noise."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from edgetrain.data.audio_reader import read_recording
from edgetrain.data.source import find_local
from edgetrain.errors import UserError
from edgetrain.ops.resample import resample

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLITS |= {"dev": "validation", "test": "test", "testing": "test"}
LONGEST_NOISE = 600  # seconds of a noise recording that are read


def audio_files(folder: Path) -> list[Path]:
    """In alphabetical order, at any depth; hidden files and folders are not looked into."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def labelled_files(path: str, folder: Path) -> dict[str, Dataset]:
    """Splits of <split>/<label>/... or <label>/..., then all train, as rows of audio (a path within it) and label.

    datasets reads such folders too, but only with FFmpeg. Raises UserError for a file in no label's folder.
    """
    rows: dict[str, dict[str, list[str]]] = {}
    files = audio_files(folder)
    parted = all(file.relative_to(folder).parts[0] in SPLITS for file in files)
    for file in files:
        above = file.relative_to(folder).parts[:-1]
        split = SPLITS[above[0]] if parted else "train"
        if len(above) < 1 + parted:
            raise UserError(
                f"data.path={path}: {file} is in no folder named by its label; arrange the files as "
                "<split>/<label>/<file> or <label>/<file>"
            )
        columns = rows.setdefault(split, {"audio": [], "label": []})
        columns["audio"].append(str(file.relative_to(folder)))
        columns["label"].append(above[parted])
    return {split: Dataset.from_dict(columns) for split, columns in rows.items()}


def read_noises(key: str, path: str, sample_rate: int, samples: int) -> list[np.ndarray]:
    """Recordings of a folder, several channels averaged, each of at least that many samples.

    key: of the folder's name, for messages. Raises UserError when there are none or one cannot be read.
    """
    try:
        folder = find_local(path)
    except UserError as error:
        raise UserError(str(error).replace("data.path", key)) from error
    files = audio_files(folder) if folder and folder.is_dir() else []
    if not files:
        raise UserError(f"{key}={path} is no folder with wav, flac, ogg or mp3 files in it; name one that has some")
    noises = []
    for each in files:
        with each.open("rb") as file:
            noise, rate = read_recording(file, f"{key}={path}: {each.name}", LONGEST_NOISE, downmix=True)
        noises.append(resample(torch.from_numpy(noise), rate, sample_rate).numpy())
        if len(noises[-1]) < samples:
            raise UserError(
                f"{key}={path}: {each.name} is shorter than a clip of {samples / sample_rate:g} s; take it out"
            )
    return noises
