"""Decodes the beginning of a recording with libsndfile: wav, flac, ogg, mp3 and what else it knows.

Nothing is mended in silence: a recording that is empty, cut short, of several channels, or that holds what is no number
is a UserError that names it. A wav and a flac file say how long they are, so that a missing end is seen; ogg and mp3 do
not.
"""

import os
import struct
from typing import BinaryIO

import numpy as np
import soundfile

from edgetrain.errors import UserError

RATES = range(1_000, 400_001)  # Hz that a header may say
CHANNELS = 16  # more are no recording of one speaker but a damaged header, or need more memory than their file
UNKNOWN_SIZE = 2**32 - 1  # of a wav whose writer could not go back to its header
UNKNOWN_FRAMES = 2**63 - 1


class Lenient:
    """A file in which a seek to before its beginning goes to it: soundfile prints a traceback where one raises."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.read, self.readinto, self.tell = file, file.read, file.readinto, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self.file.seek(offset, whence)
        except (ValueError, OSError):
            return self.file.seek(0)


def read_recording(file: BinaryIO, where: str, seconds: float, downmix: bool = False) -> tuple[np.ndarray, int]:
    """Its first `seconds`, or all of a shorter one, as float32 [samples] in [-1, 1], and its sample rate in Hz.

    where: how a message names it; downmix: average channels instead of refusing more than one. Decodes no more than
    that, whatever the header says. Raises UserError.
    """
    try:
        short = is_cut_short(file)
        with soundfile.SoundFile(Lenient(file)) as recording:
            rate, channels, claimed = recording.samplerate, recording.channels, recording.frames
            check_header(where, rate, channels, downmix)
            wanted = min(claimed, round(seconds * rate))
            samples = recording.read(wanted, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        said = getattr(error, "error_string", str(error))  # libsndfile's, without the file object that soundfile names
        reason = said.strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"{where} is no audio that can be decoded ({reason}); give wav, flac, ogg or mp3, or take it out"
        ) from error
    if short or (len(samples) < wanted and claimed != UNKNOWN_FRAMES):
        raise UserError(f"{where} is cut short: its header says more samples than there are; copy it again")
    if not len(samples):
        raise UserError(f"{where} is empty: it holds no samples; take it out")
    if not np.isfinite(samples).all():
        raise UserError(f"{where} holds samples that are no numbers; record or convert it again, or take it out")
    return samples.mean(1) if downmix else samples[:, 0], rate


def check_header(where: str, rate: int, channels: int, downmix: bool) -> None:
    if rate not in RATES:
        raise UserError(f"{where} says a sample rate of {rate} Hz, which no recording has; convert it, or take it out")
    if channels > CHANNELS:
        raise UserError(f"{where} says that it has {channels} channels; at most {CHANNELS} are read")
    if channels > 1 and not downmix:
        raise UserError(
            f"{where} has {channels} channels, and a model hears one; data.downmix=true averages them, or convert it"
        )


def duration(file: BinaryIO) -> float:
    """Seconds that its header says; 0 where it cannot be read."""
    try:
        with soundfile.SoundFile(Lenient(file)) as recording:
            return recording.frames / recording.samplerate
    except (soundfile.SoundFileError, OSError, ValueError, TypeError):
        return 0.0


def is_cut_short(file: BinaryIO) -> bool:
    """Whether a wav file's header says more bytes of samples than the file has. Leaves the file at its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    order = {b"RIFF": "<", b"RIFX": ">"}.get(head[:4])
    at, chunk = 12, 0
    while order is not None and at + 8 <= size:
        file.seek(at)
        name, chunk = struct.unpack(f"{order}4sI", file.read(8))
        at += 8 + chunk + chunk % 2
        if name == b"data":
            break
    file.seek(0)
    return order is not None and chunk != UNKNOWN_SIZE and at - chunk % 2 > size
