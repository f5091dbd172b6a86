"""Speech Commands (Warden 2018, arXiv 1804.03209) as Zhang et al. 2017 (arXiv 1711.07128) train on it.

    silence, unknown, yes, no, up, down, left, right, on, off, stop, go

The folder is that of torchaudio.datasets.SPEECHCOMMANDS, or of the archive itself. Which split a recording is in
follows from its speaker: a hash of what its name says before _nohash_, as the set's own README defines it. To each
split are added clips of digital silence and recordings of other words, as many as a share of the wanted words' clips;
of those words the recordings with the smallest hash are taken, the same ones for every seed. The paper draws them at
random; that its silence is digital silence, with noise in training alone, is unverified.

The set's hash is of its recordings' names and sizes, so that every copy has the same one; what is cached is told by
their places and times too, so that a recording that is replaced is read again. Neither reads the recordings.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha1
from math import ceil
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from edgetrain.data.audio import AudioData
from edgetrain.data.audio_clips import Clip
from edgetrain.data.audio_files import read_noises
from edgetrain.data.labelled import Split
from edgetrain.data.source import find_local
from edgetrain.errors import UserError, listing, nearest

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
BACKGROUND = "_background_noise_"
LARGEST = 2**27 - 1  # recordings of a word, as the hash counts
SPLITS = ("train", "validation", "test")


@dataclass(eq=False, repr=False, kw_only=True)
class SpeechCommandsData(AudioData):
    """Words of Speech Commands. The other arguments are AudioData's; noise is cut from the set's own recordings.

    path: folder that holds SpeechCommands/speech_commands_<version>, or the words' folders themselves.
    version: v0.01 (30 words, the paper's) or v0.02 (35 words). download: fetch it into `path` when it is not there.
    words: the labels after silence and unknown. unknown, silence: clips of other words, and of silence, for each wanted
        one; 0 leaves the label out.
    validation, test: shares of the speakers.
    """

    path: str = "speech_commands"
    num_classes: int = 12
    version: Literal["v0.01", "v0.02"] = "v0.02"
    download: bool = False
    words: list[str] = field(default_factory=lambda: list(WORDS))
    unknown: float = 0.1
    silence: float = 0.1
    validation: float = 0.1
    test: float = 0.1
    time_shift_ms: float = 100
    noise_probability: float = 0.8
    noise_volume: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.unknown, self.silence, self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise UserError(
                f"data.unknown={self.unknown}, data.silence={self.silence}, data.validation={self.validation} and "
                f"data.test={self.test} are shares, and the last two leave something to train on"
            )

    def prepare_data(self) -> None:
        if self.download and self._find() is None:
            download(self.path, self.version)
        super().prepare_data()

    def find_splits(self) -> dict[str, Split]:
        self.folder = self._find()
        if self.folder is None:
            raise UserError(
                f"data.path={self.path} does not hold Speech Commands {self.version}; unpack its archive into "
                f"{self.path}/SpeechCommands/speech_commands_{self.version}, or set data.download=true"
            )
        self.resolved = self.folder.resolve()
        recordings = {
            word.name: sorted(word.glob("*.wav"))
            for word in sorted(self.folder.iterdir())
            if word.is_dir() and not word.name.startswith(("_", "."))
        }
        for word in self.words:
            if not recordings.get(word):
                raise UserError(
                    f"data.words names {word}, of which {self.folder} has no recording{nearest(word, recordings)}; "
                    f"it has {listing(recordings, 40)}"
                )
        self.labels = [*(["silence"] if self.silence else []), *(["unknown"] if self.unknown else []), *self.words]
        parted: dict[str, dict[str, list[Path]]] = {split: {word: [] for word in recordings} for split in SPLITS}
        for word, files in recordings.items():
            for file in files:
                parted[split_of(file.name, self.validation, self.test)][word].append(file)
        return {split: Split(self._clips(files)) for split, files in parted.items()}

    def noises(self) -> list[np.ndarray]:
        return read_noises("data.path", str((self.folder / BACKGROUND).resolve()), self.sample_rate, self.clip_samples)

    def open(self, clip: Clip) -> BinaryIO:
        return clip.content.open("rb")

    def _find(self) -> Path | None:
        """The folder of the words' folders."""
        local = None
        with suppress(UserError):  # a sentence that knows no archives
            local = find_local(self.path)
        name = f"speech_commands_{self.version}"
        places = [local / "SpeechCommands" / name, local / name, local] if local else []
        return next((place for place in places if (place / BACKGROUND).is_dir()), None)

    def _clips(self, recordings: dict[str, list[Path]]) -> list[Clip]:
        """Silence, unknown and wanted words of one split."""
        wanted = [self._clip(file, self.labels.index(word)) for word in self.words for file in recordings[word]]
        others = [file for word, files in recordings.items() if word not in self.words for file in files]
        others.sort(key=lambda file: sha1(f"{file.parent.name}/{file.name}".encode()).digest())
        clips = [Clip(0, "", b"silence", "silence", None)] * ceil(self.silence * len(wanted))
        clips += [self._clip(file, self.labels.index("unknown")) for file in others[: ceil(self.unknown * len(wanted))]]
        return clips + wanted

    def _clip(self, file: Path, label: int) -> Clip:
        name, stat = f"{file.parent.name}/{file.name}", file.stat()
        key = sha1(f"{name} {stat.st_size}".encode()).digest()
        stamp = sha1(f"{self.resolved}/{name} {stat.st_size} {stat.st_mtime_ns}".encode()).digest()
        return Clip(label, speaker_of(file.name), key, name, file, stamp)


def speaker_of(name: str) -> str:
    """What a recording's name says before _nohash_."""
    return re.sub(r"_nohash_.*$", "", name)


def split_of(name: str, validation: float, test: float) -> str:
    """The split of a recording by its name: all of a speaker's are in the same one."""
    place = int(sha1(speaker_of(name).encode()).hexdigest(), 16) % (LARGEST + 1) / LARGEST
    if place < validation:
        return "validation"
    return "test" if place < validation + test else "train"


def download(path: str, version: str) -> None:
    """With torchaudio, which verifies the archive. Raises UserError when that fails."""
    try:
        from torchaudio.datasets import SPEECHCOMMANDS  # an OSError where torchaudio and torch do not fit together

        root = Path(path).expanduser()
        root.mkdir(parents=True, exist_ok=True)
        SPEECHCOMMANDS(root, f"speech_commands_{version}", download=True)
    except (OSError, RuntimeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(
            f"Speech Commands {version} cannot be downloaded into data.path={path} ({reason}); unpack its archive into "
            f"{path}/SpeechCommands/speech_commands_{version} yourself"
        ) from error
