"""Speech Commands in its own layout: the hash split, silence and unknown, noise, and what goes wrong."""

import hashlib
import os
import re
import shutil
from collections import Counter
from math import ceil
from pathlib import Path

import pytest
import torch
from audio_sets import write_speech_commands

from edgetrain.data.speech_commands import WORDS, SpeechCommandsData, speaker_of, split_of
from edgetrain.errors import UserError
from edgetrain.ops.mfcc import MFCC

ALL = [*WORDS, "bed", "bird", "cat"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    write_speech_commands(folder, ALL)
    return folder


def built(root: Path, **options) -> SpeechCommandsData:
    data = SpeechCommandsData(path=str(root), **options)
    data.prepare_data()
    data.setup("fit")
    return data


def slow_split(file_name: str, validation_percentage: float, testing_percentage: float) -> str:
    """As the set's README defines it."""
    most_per_class = 2**27 - 1
    hashed_part = re.sub("_nohash_.*$", "", file_name)
    number = int(hashlib.sha1(hashed_part.encode("utf-8")).hexdigest(), 16)
    percentage = (number % (most_per_class + 1)) * (100.0 / most_per_class)
    if percentage < validation_percentage:
        return "validation"
    if percentage < testing_percentage + validation_percentage:
        return "test"
    return "train"


def test_a_split_is_the_hash_of_what_stands_before_nohash():
    names = [f"{number:08x}_nohash_{number % 5}.wav" for number in range(0, 2**32, 2**32 // 3000)]
    assert [split_of(name, 0.1, 0.1) for name in names] == [slow_split(name, 10, 10) for name in names]
    shares = Counter(split_of(name, 0.1, 0.1) for name in names)
    assert 240 < shares["validation"] < 360  # five standard deviations
    assert 240 < shares["test"] < 360
    assert split_of("foo_nohash_0.wav", 0.1, 0.1) == split_of("foo_nohash_1.wav", 0.1, 0.1)
    assert speaker_of("0a7c2a8d_nohash_3.wav") == "0a7c2a8d"


def test_the_labels_are_the_papers_twelve_in_its_order(root: Path):
    data = built(root)
    assert data.labels == [
        *("silence", "unknown", "yes", "no", "up", "down"),
        *("left", "right", "on", "off", "stop", "go"),
    ]
    for split in data.splits.values():
        for clip in split.items:
            word = "silence" if clip.content is None else clip.content.parent.name
            assert data.labels[clip.label] == (word if word in (*WORDS, "silence") else "unknown")


def test_silence_and_unknown_are_a_share_of_the_wanted_words_in_every_split(root: Path):
    data = built(root, unknown=0.3, silence=0.2)
    for split in data.splits.values():
        counts = Counter(data.labels[clip.label] for clip in split.items)
        wanted = sum(counts[word] for word in WORDS)
        assert counts["silence"] == ceil(0.2 * wanted)
        assert counts["unknown"] == ceil(0.3 * wanted)
    words = {clip.content.parent.name for clip in data.splits["train"].items if data.labels[clip.label] == "unknown"}
    assert words == {"bed", "bird", "cat"}


def test_no_speaker_is_in_two_splits(root: Path):
    data = built(root)
    speakers = [set(data.groups(split)["speaker"]) - {""} for split in data.splits]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) <= 30
    assert data.facts()["train"]["speakers"] == len(speakers[0])


def test_the_same_recordings_are_chosen_for_every_seed(root: Path):
    assert built(root, seed=1).splits == built(root, seed=2).splits


def test_copies_have_one_hash_and_a_file_that_is_replaced_is_read_again(root: Path, tmp_path: Path, own_caches: Path):
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    recording = sorted((tmp_path / "copy").glob("*/*/yes/*.wav"))[0]
    os.utime(recording, (1, 1))
    copy = built(tmp_path / "copy")
    assert copy.facts()["corpus_sha256"] == built(root).facts()["corpus_sha256"]
    other = recording.read_bytes()
    recording.write_bytes(other[:-2000] + bytes(2000))
    os.utime(recording, (2, 2))
    again = built(tmp_path / "copy")
    assert again.facts()["corpus_sha256"] == copy.facts()["corpus_sha256"]
    assert len(list((own_caches / "edgetrain" / "audio").iterdir())) >= 3
    split, place = next(
        (name, place)
        for name, split in again.splits.items()
        for place, clip in enumerate(split.items)
        if clip.content == recording
    )
    assert not torch.equal(again.samples(split)[place][0], copy.samples(split)[place][0])
    recording.write_bytes(other + bytes(2))
    assert built(tmp_path / "copy").facts()["corpus_sha256"] != copy.facts()["corpus_sha256"]


def test_words_of_ones_own_need_no_silence_or_unknown(root: Path):
    data = built(root, words=["cat", "bed"], unknown=0, silence=0, num_classes=2)
    assert data.labels == ["cat", "bed"]
    assert all(clip.content.parent.name in ("cat", "bed") for clip in data.splits["train"].items)


def test_silence_is_the_floor_of_every_mel_channel_without_noise(root: Path):
    data = built(root)
    inputs, label = data.samples("test")[0]
    assert label == 0
    assert torch.equal(inputs, MFCC()(torch.zeros(16000)))


def test_training_clips_get_background_noise_and_held_out_ones_do_not(root: Path):
    data = built(root, features="samples", noise_probability=1.0)
    train = data.train_dataloader().dataset
    silent = [index for index, clip in enumerate(data.splits["train"].items) if clip.content is None]
    noise = torch.stack([clip for clip, _ in train.__getitems__(silent)])
    assert (noise.std(1) > 0).all()
    assert noise.std(1).max() < 0.1 * 0.1 * 1.1  # a volume of at most 0.1, of noise whose deviation is 0.1
    held_out = data.val_dataloader().dataset
    assert held_out[0][0].abs().max() == 0


def test_a_clip_is_the_recording_with_zeros_after_it(root: Path):
    data = built(root, features="samples")
    split = data.samples("train")
    lengths = {int(clip.nonzero().max()) + 1 for clip, label in split if label > 0}
    assert split[len(split) - 1][0].shape == (16000,)
    assert max(lengths) > 15900
    assert 7900 < min(lengths) <= 8000


@pytest.mark.parametrize("inside", ["", "SpeechCommands", "SpeechCommands/speech_commands_v0.02"])
def test_the_archive_may_be_unpacked_at_any_of_its_levels(root: Path, inside: str):
    assert len(built(root / inside).splits["train"].items) == len(built(root).splits["train"].items)


def test_torchaudio_finds_the_same_recordings(root: Path):
    datasets = pytest.importorskip("torchaudio.datasets", exc_type=(ImportError, OSError))
    theirs = datasets.SPEECHCOMMANDS(root, "speech_commands_v0.02")
    files = {Path(theirs.get_metadata(number)[0]).name for number in range(len(theirs))}
    data = built(root, unknown=1.0)
    assert {clip.content.name for split in data.splits.values() for clip in split.items if clip.content} == files
    by_name = {theirs.get_metadata(number)[0].rpartition("/")[2]: theirs.get_metadata(number) for number in range(50)}
    assert all(speaker_of(name) == metadata[3] for name, metadata in by_name.items())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"version": "v0.01"}, r"does not hold Speech Commands v0.01; unpack its archive into .*data.download=true"),
        ({"words": ["yes", "catt"]}, r"data.words names catt, of which .* has no recording \(did you mean 'cat'\?\)"),
        ({"words": ["yes"]}, "data.num_classes=12, but .* has 3 labels .* set data.num_classes=3"),
        ({"validation": 0.6, "test": 0.4}, "are shares, and the last two leave something to train on"),
        ({"silence": -0.1}, "are shares"),
        ({"validation": 0.0}, "the validation split of .* has no clips"),
    ],
)
def test_settings_that_do_not_fit_the_set_are_a_sentence(root: Path, options: dict, sentence: str):
    with pytest.raises(UserError, match=sentence) as raised:
        built(root, **options)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data.path=speech_commands does not hold Speech Commands v0.02"):
        built(Path("speech_commands"))


def test_a_download_that_fails_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("torchaudio.datasets", exc_type=(ImportError, OSError))

    def offline(*_, **__):
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(datasets, "SPEECHCOMMANDS", offline)
    with pytest.raises(UserError, match=r"v0.02 cannot be downloaded into data.path=.* \(no route to host\); unpack"):
        built(tmp_path / "new", download=True)


def test_a_damaged_recording_is_named(tmp_path: Path):
    place = write_speech_commands(tmp_path, ALL, speakers=12)
    damaged = sorted((place / "yes").glob("*.wav"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(UserError, match=f"data.path=.*: yes/{damaged.name} is cut short"):
        built(tmp_path, validation=0.3, test=0.3)
