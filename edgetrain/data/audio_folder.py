"""Any set of recordings with a label each: a hub name, parquet files, or a folder of folders named by their label.

With `held_out` the test split is one speaker's recordings, of all splits, and nobody else's; validation is then cut
from the rest by hash (`labelled.parted`).
"""

from dataclasses import dataclass
from hashlib import file_digest
from typing import Any, BinaryIO

import datasets
import numpy as np

from edgetrain.data.audio import AudioData
from edgetrain.data.audio_clips import Clip
from edgetrain.data.audio_files import SUFFIXES, read_noises
from edgetrain.data.labelled import Split, disjoint, parted
from edgetrain.data.labelled_rows import (
    check_features,
    label_names,
    open_stored,
    ordered_labels,
    place_of,
    read_rows,
)
from edgetrain.data.source import find_local
from edgetrain.errors import UserError, listing, nearest


@dataclass(eq=False, repr=False, kw_only=True)
class AudioFolderData(AudioData):
    """Recordings by label. The other arguments are AudioData's.

    path: hub name, parquet file, or folder (source.py says where a relative name is looked for). audio, label: columns;
        a folder of audio files has columns of these names.
    labels: their order, as the model's outputs have it; None takes the set's own, else alphabetical order.
    speaker: the column that names who speaks; None where the set does not say.
    held_out: the speaker who is the test split, by name or by number in alphabetical order, modulo how many there are;
        None keeps the set's own split.
    noise: folder of recordings that background noise is cut from; None takes white noise.
    """

    audio: str = "audio"
    label: str = "label"
    labels: list[str] | None = None
    speaker: str | None = None
    held_out: str | int | None = None
    noise: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_out is not None and self.speaker is None:
            raise UserError(f"data.held_out={self.held_out} needs data.speaker, the column that names who speaks")
        self.rows: dict[str, datasets.Dataset] = {}

    def find_splits(self) -> dict[str, Split]:
        self.local = find_local(self.path)
        columns = {"audio": self.audio, "label": self.label} | ({"speaker": self.speaker} if self.speaker else {})
        self.rows = read_rows(self.path, self.local, columns, SUFFIXES, "audio")
        features = self.rows["train"].features
        check_features(features, self.path, "audio", self.audio, self.label, datasets.Audio)
        names = {split: label_names(rows, self.label, self.path, split) for split, rows in self.rows.items()}
        found = {name for each in names.values() for name in each}
        self.labels = ordered_labels(features[self.label], found, self.labels, self.path)
        clips = {split: self._clips(split, names[split]) for split in self.rows}
        return disjoint(parted(clips) if self.held_out is None else self._held_out(clips))

    def facts(self) -> dict[str, Any]:
        """AudioData's, and whose recordings the test split is."""
        held_out = {} if self.held_out is None else {"held_out": self.splits["test"].items[0].speaker}
        return super().facts() | held_out

    def noises(self) -> list[np.ndarray]:
        if self.noise is None:
            return []
        return read_noises("data.noise", self.noise, self.sample_rate, self.clip_samples)

    def open(self, clip: Clip) -> BinaryIO:
        """The recording of (split, row)."""
        split, row = clip.content
        return open_stored(self.rows[split][row][self.audio], self.local, self.path, clip.where)

    def _clips(self, split: str, names: list[str]) -> list[Clip]:
        numbers = {name: number for number, name in enumerate(self.labels)}
        rows = self.rows[split]
        speakers = rows[self.speaker] if self.speaker else [""] * len(rows)
        clips = []
        for row, (name, speaker) in enumerate(zip(names, speakers, strict=True)):
            stored = rows[row][self.audio]
            where = place_of(stored, row, split)
            with open_stored(stored, self.local, self.path, where) as file:
                key = file_digest(file, "sha256").digest()
            clips.append(Clip(numbers[name], str(speaker or ""), key, where, (split, row)))
        return clips

    def _held_out(self, clips: dict[str, list[Clip]]) -> dict[str, list[Clip]]:
        """The held-out speaker's clips for test, the others' for the rest. Raises UserError for an unknown speaker."""
        everyone = [clip for each in clips.values() for clip in each]
        speakers = sorted({clip.speaker for clip in everyone})
        chosen = speakers[self.held_out % len(speakers)] if isinstance(self.held_out, int) else self.held_out
        if chosen not in speakers:
            raise UserError(
                f"data.held_out={chosen} is no speaker of {self.path}{nearest(chosen, speakers)}; "
                f"they are {listing(speakers)}"
            )
        test = [clip for clip in everyone if clip.speaker == chosen]
        return parted({"train": [clip for clip in everyone if clip.speaker != chosen], "test": test})
