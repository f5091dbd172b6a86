"""Audio files in folders: what they are called, and recordings of background noise."""

import numpy as np
import torch

from edgetrain.data.audio_reader import read_recording
from edgetrain.data.labelled_rows import files_with
from edgetrain.data.source import find_local
from edgetrain.errors import UserError
from edgetrain.ops.resample import resample

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}
LONGEST_NOISE = 600  # seconds of a noise recording that are read


def read_noises(key: str, path: str, sample_rate: int, samples: int) -> list[np.ndarray]:
    """Recordings of a folder, several channels averaged, each of at least that many samples.

    key: of the folder's name, for messages. Raises UserError when there are none or one cannot be read.
    """
    try:
        folder = find_local(path)
    except UserError as error:
        raise UserError(str(error).replace("data.path", key)) from error
    files = files_with(folder, SUFFIXES) if folder and folder.is_dir() else []
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
