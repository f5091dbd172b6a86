"""Any set of recordings with a label each: a hub name, parquet files, or a folder of folders named by their label.

A split that the set lacks is cut from train by a hash of each recording (5 %). Recordings that an earlier split holds,
byte by byte, are dropped from the later one. With `held_out` the test split is one speaker's recordings, of all splits,
and nobody else's; validation is then cut from the rest by hash.
"""

from dataclasses import dataclass
from hashlib import file_digest
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np

from edgetrain.data.audio import AudioData
from edgetrain.data.audio_clips import Clip, Split
from edgetrain.data.audio_files import audio_files, labelled_files, read_noises
from edgetrain.data.documents import HELD_OUT, drawn_split
from edgetrain.data.source import TEXT, find_local, read_columns, with_columns
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
        self.rows = self._read()
        self._check_columns(self.rows["train"].features)
        names = {split: self._label_names(split) for split in self.rows}
        self.labels = self._labels({name for each in names.values() for name in each})
        clips = {split: self._clips(split, names[split]) for split in self.rows}
        return disjoint(parted(clips) if self.held_out is None else self._held_out(clips))

    def facts(self) -> dict[str, Any]:
        """AudioData's, and whose recordings the test split is."""
        held_out = {} if self.held_out is None else {"held_out": self.splits["test"].clips[0].speaker}
        return super().facts() | held_out

    def noises(self) -> list[np.ndarray]:
        if self.noise is None:
            return []
        return read_noises("data.noise", self.noise, self.sample_rate, self.clip_samples)

    def open(self, clip: Clip) -> BinaryIO:
        """The recording of (split, row)."""
        split, row = clip.content
        return self._open(self.rows[split][row][self.audio], clip.where)

    def _open(self, stored: dict[str, Any] | str | None, where: str) -> BinaryIO:
        """What a row holds: bytes and a path, or a path alone, relative to the set."""
        content, path = (stored.get("bytes"), stored.get("path")) if isinstance(stored, dict) else (None, stored)
        if content is not None:
            return BytesIO(content)
        base = self.local.parent if self.local and self.local.is_file() else self.local or Path()
        try:
            return (base / path).open("rb")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"data.path={self.path}: {where}: no such file is there; put it there, or take the row out"
            ) from error

    def _read(self) -> dict[str, datasets.Dataset]:
        """Rows of each split with the columns that are asked for."""
        columns = {"audio": self.audio, "label": self.label} | ({"speaker": self.speaker} if self.speaker else {})
        tabled = self.local is None or self.local.is_file() or any(self.local.rglob("*.parquet"))
        if not tabled and audio_files(self.local):
            return with_columns(labelled_files(self.path, self.local), self.path, columns)
        return read_columns(self.path, columns)

    def _check_columns(self, features: datasets.Features) -> None:
        audio, label = features[self.audio], features[self.label]
        text = isinstance(audio, datasets.Value) and audio.dtype in TEXT
        stored = isinstance(audio, datasets.Audio) or (isinstance(audio, dict) and {"bytes", "path"} <= audio.keys())
        if not (text or stored):
            raise UserError(f"data.audio={self.audio} of data.path={self.path} holds no recordings or files' names")
        if not isinstance(label, datasets.ClassLabel | datasets.Value):
            raise UserError(f"data.label={self.label} of data.path={self.path} holds no labels, but {label}")

    def _label_names(self, split: str) -> list[str]:
        """The label of each row, as text. Raises UserError for a row without one, or with a number that has no name."""
        feature, values = self.rows[split].features[self.label], self.rows[split][self.label]
        known = feature.names if isinstance(feature, datasets.ClassLabel) else None
        for row, value in enumerate(values):
            if value is None or value == "" or (known and not 0 <= value < len(known)):
                raise UserError(
                    f"data.path={self.path}: row {row} of {split} has no {self.label} that the set knows; "
                    "label it, or take it out"
                )
        return [known[value] if known else str(value) for value in values]

    def _labels(self, found: set[str]) -> list[str]:
        """Labels in order. Raises UserError when data.labels are not those of the set."""
        feature = self.rows["train"].features[self.label]
        own = list(feature.names) if isinstance(feature, datasets.ClassLabel) else sorted(found)
        labels = own if self.labels is None else self.labels
        unheard, unnamed = sorted(set(labels) - {*own, *found}), sorted(found - set(labels))
        if unheard or len(set(labels)) < len(labels):
            wrong = (
                f"{unheard[0]}, which {self.path} does not have{nearest(unheard[0], own)}" if unheard else "one twice"
            )
            raise UserError(f"data.labels names {wrong}; its labels are {listing(own)}")
        if unnamed:
            raise UserError(f"data.labels does not name {listing(unnamed)}, which {self.path} has; add it to the list")
        return labels

    def _clips(self, split: str, names: list[str]) -> list[Clip]:
        numbers = {name: number for number, name in enumerate(self.labels)}
        rows = self.rows[split]
        speakers = rows[self.speaker] if self.speaker else [""] * len(rows)
        clips = []
        for row, (name, speaker) in enumerate(zip(names, speakers, strict=True)):
            stored = rows[row][self.audio]
            path = stored.get("path") if isinstance(stored, dict) else stored
            where = f"row {row} of {split}" + (f" ({path})" if path else "")
            with self._open(stored, where) as file:
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


def parted(clips: dict[str, list[Clip]]) -> dict[str, list[Clip]]:
    """train, validation and test, of which those that are missing are cut from train by a hash of each recording."""
    parts: dict[str, list[Clip]] = {name: list(clips.get(name, [])) for name in HELD_OUT} | {"train": []}
    for clip in clips["train"]:
        name = drawn_split(clip.key)
        parts["train" if name in clips else name].append(clip)
    return {name: parts[name] for name in ("train", *HELD_OUT)}


def disjoint(clips: dict[str, list[Clip]]) -> dict[str, Split]:
    """The splits without what an earlier one holds."""
    seen: set[bytes] = set()
    splits = {}
    for name, each in clips.items():
        kept = [clip for clip in each if clip.key not in seen]
        splits[name] = Split(kept, len(each) - len(kept))
        seen.update(clip.key for clip in kept)
    return splits
