"""Recordings by label: what a batch holds, how splits are parted, what is cached, and what goes wrong."""

import io
from collections import Counter
from pathlib import Path

import lightning
import numpy as np
import pytest
import soundfile
import torch
import yaml
from audio_sets import LABELS, rows_of, tone, wav, write_fsdd, write_parquet
from conftest import ROOT
from datasets import Audio, ClassLabel, Features, Value
from lightning.pytorch.callbacks import ModelCheckpoint

from edgetrain.build import build
from edgetrain.data.audio_clips import Clip
from edgetrain.data.audio_folder import AudioFolderData
from edgetrain.data.labelled import disjoint, parted, thinned
from edgetrain.errors import UserError
from edgetrain.ops.mfcc import MFCC
from edgetrain.ops.resample import resample

AUGMENTED = {"time_shift_ms": 100, "noise_probability": 0.8}


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 labels, 3 speakers; 22 takes each for training and 2 for test, at 8 kHz."""
    return write_parquet(tmp_path_factory.mktemp("tones"), {"train": rows_of(range(2, 24)), "test": rows_of(range(2))})


def built(folder: Path, **options) -> AudioFolderData:
    data = AudioFolderData(path=str(folder), **({"num_classes": 3, "speaker": "speaker", "batch_size": 16} | options))
    data.prepare_data()
    data.setup("fit")
    return data


def of(rows: list[dict], **changes) -> list[dict]:
    """The first row with other values, before the others."""
    return [rows[0] | changes, *rows[1:]]


def refusal(folder: Path, **options) -> str:
    with pytest.raises(UserError) as raised:
        built(folder, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# What a batch holds


def test_features_are_those_of_the_resampled_clip_with_zeros_after_it(tones: Path):
    data = built(tones)
    inputs, label = data.samples("test")[1]
    recording, _ = soundfile.read(io.BytesIO(wav(tone(0, 0, 1))), dtype="float32")  # as 16 bits store it
    clip = torch.zeros(8000)
    clip[: len(recording)] = torch.from_numpy(recording)
    assert torch.allclose(inputs, MFCC()(resample(clip, 8000, 16000)), atol=1e-3)
    assert (inputs.shape, inputs.dtype, label) == ((49, 10), torch.float32, 0)


def test_samples_are_the_clip_itself_cut_at_its_end(tmp_path: Path):
    long = wav(tone(0, 0, 0, 16000, 2.5), 16000)
    train = of(rows_of(range(9)), audio={"bytes": long, "path": "long.wav"})
    folder = write_parquet(tmp_path / "long", {"train": train, "test": rows_of(range(20, 22))})
    clip, _ = built(folder, features="samples").samples("train")[0]
    assert clip.shape == (16000,)
    assert (clip - torch.from_numpy(tone(0, 0, 0, 16000, 1.0))).abs().max() <= 2**-15


def test_recordings_of_several_rates_share_a_batch(tmp_path: Path):
    rows = rows_of(range(8))
    for row, rate in zip(rows, (8000, 16000, 44100, 11025), strict=False):
        row["audio"] = {"bytes": wav(tone(0, 0, 0, rate), rate), "path": f"{rate}.wav"}
    folder = write_parquet(
        tmp_path / "rates", {"train": rows, "validation": rows_of(range(20, 21)), "test": rows_of(range(21, 22))}
    )
    samples = built(folder, features="samples").samples("train").__getitems__([0, 1, 2, 3])
    middle = [clip[500:4000] for clip, _ in samples]
    for clip in middle[1:]:
        assert (clip - middle[0]).abs().max() < 5e-3


def test_batches_are_inputs_and_labels_in_the_order_of_the_split(tones: Path):
    data = built(tones)
    batches = list(data.test_dataloader())
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert inputs.shape == (18, 49, 10)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [row["label"] for row in rows_of(range(2))]
    assert data.groups("test") == {"speaker": [row["speaker"] for row in rows_of(range(2))]}
    assert data.labels == LABELS
    clean = data.samples("test")
    assert all(torch.equal(clean[index][0], inputs[index]) for index in range(18))


def test_an_epoch_hands_out_every_clip_once_in_an_order_of_the_seed(tones: Path):
    def labels(seed: int) -> list[int]:
        return [label for _, labels in built(tones, seed=seed).train_dataloader() for label in labels.tolist()]

    assert labels(0) == labels(0) != labels(1)
    assert Counter(labels(0)) == Counter(labels(1))


# How splits are parted


def test_a_missing_split_is_cut_from_train_by_content_and_shares_nothing_with_it(tones: Path):
    data = built(tones)
    keys = {name: {clip.key for clip in split.items} for name, split in data.splits.items()}
    assert not keys["train"] & keys["validation"]
    assert len(keys["train"]) + len(keys["validation"]) == 198
    assert 2 <= len(keys["validation"]) <= 20  # 5 %
    assert data.facts()["test"] == {"samples": 18, "speakers": 3, "dropped": 0}


def test_a_recording_that_an_earlier_split_holds_is_dropped_and_counted(tmp_path: Path):
    rows = rows_of(range(8))
    splits = {
        "train": rows,
        "validation": [*rows[:2], *rows_of(range(20, 21))],
        "test": [*rows[3:6], *rows_of(range(20, 22))],
    }
    data = built(write_parquet(tmp_path / "double", splits))
    assert [data.facts()[name]["dropped"] for name in splits] == [0, 2, 12]
    assert "test: 12 clips dropped because an earlier split holds them" in data.preview().notes


def test_a_held_out_speaker_is_the_whole_test_split_and_in_no_other(tones: Path):
    data = built(tones, held_out="bob")
    assert data.facts()["held_out"] == "bob"
    speakers = {split: Counter(data.groups(split)["speaker"]) for split in data.splits}
    assert speakers["test"] == {"bob": 72}  # of both splits
    assert set(speakers["train"]) == set(speakers["validation"]) == {"ann", "cyd"}
    assert speakers["train"].total() + speakers["validation"].total() == 144


@pytest.mark.parametrize(("number", "name"), [(0, "ann"), (1, "bob"), (2, "cyd"), (3, "ann"), (17, "cyd")])
def test_a_number_holds_out_the_speaker_of_that_place_in_the_alphabet(tones: Path, number: int, name: str):
    assert set(built(tones, held_out=number).groups("test")["speaker"]) == {name}


def test_a_limit_keeps_clips_from_the_whole_split(tones: Path):
    data = built(tones, limit=6)
    assert [data.facts()[name]["samples"] for name in ("train", "test")] == [6, 6]
    assert Counter(clip.label for clip in data.splits["train"].items) == {0: 2, 1: 2, 2: 2}
    assert thinned(data.splits["test"].items, 100) == data.splits["test"].items


def test_the_cut_does_not_move_when_a_split_is_added():
    clips = [Clip(0, "", bytes([number % 256, number // 256, 0, 0, 0]), "", None) for number in range(2000)]
    alone, beside = parted({"train": clips}), parted({"train": clips, "validation": clips[:1]})
    assert alone["test"] == beside["test"]
    assert beside["validation"] == clips[:1]
    assert sum(map(len, alone.values())) == 2000
    assert disjoint({"a": clips, "b": clips})["b"].dropped == 2000


# Augmentation and resume


def test_an_epoch_hears_other_versions_than_the_one_before(tones: Path):
    data = built(tones, **AUGMENTED)
    loader = data.train_dataloader()
    first, second = (
        {round(batch[0][i, 5, 0].item(), 4) for batch in loader for i in range(len(batch[0]))} for _ in range(2)
    )
    assert len(first & second) < 0.5 * len(first)
    assert torch.equal(data.samples("train")[0][0], built(tones).samples("train")[0][0])  # those are never augmented
    assert data.val_dataloader().dataset.augmentation is None


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [3, 13, 14])
def test_a_loaded_state_continues_with_the_same_augmented_batches(tones: Path, taken: int, workers: int):
    data = built(tones, **AUGMENTED, limit=100, workers=workers)
    loader = data.train_dataloader()
    whole = [batch for _ in range(3) for batch in loader]
    saved, state, seen = data.train_dataloader(), None, 0
    while state is None:
        for _ in saved:
            seen += 1
            if seen == taken:
                state = saved.state_dict()
                break
    resumed = built(tones, **AUGMENTED, limit=100).train_dataloader()
    resumed.load_state_dict(state)
    rest = [batch for _ in range(3) for batch in resumed]
    for (inputs, labels), (inputs_, labels_) in zip(whole[taken:], rest, strict=False):
        assert torch.equal(inputs, inputs_)
        assert torch.equal(labels, labels_)


class Recorder(lightning.LightningModule):
    """Remembers what it was trained on; after `stop_after` batches it raises."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight, self.sums, self.stop_after = torch.nn.Parameter(torch.zeros(())), [], stop_after

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        if len(self.sums) == self.stop_after:
            raise RuntimeError("interrupted")
        self.sums.append((batch[0].double().sum().item(), batch[1].tolist()))
        return self.weight * batch[0].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_in_the_middle_of_an_epoch_with_the_same_clips(tones: Path, tmp_path: Path):
    def train(module: Recorder, checkpoint: str | None = None) -> list:
        kept = ModelCheckpoint(tmp_path, every_n_train_steps=1, filename="last", enable_version_counter=False)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = lightning.Trainer(max_epochs=2, callbacks=[kept], limit_val_batches=0, **quiet)
        trainer.fit(module, datamodule=built(tones, **AUGMENTED, limit=60), ckpt_path=checkpoint)
        return module.sums

    whole = train(Recorder())
    interrupted = Recorder(6)
    with pytest.raises(RuntimeError, match="interrupted"):
        train(interrupted)
    assert interrupted.sums + train(Recorder(), str(tmp_path / "last.ckpt")) == whole


# The cache


def test_what_is_computed_is_kept_and_made_again_for_anything_that_shapes_it(tones: Path, own_caches: Path):
    def cached(**options) -> set[str]:
        built(tones, **options)
        return {path.name for path in (own_caches / "edgetrain" / "audio").iterdir()}

    first = cached()
    assert len(first) == 1  # the features of all splits
    assert cached(batch_size=3, held_out="bob", labels=["high", "low", "middle"]) == first
    with_clips = cached(**AUGMENTED)
    assert len(with_clips) == 2  # and the clips, which augmented ones are made of
    assert cached(features="samples") == with_clips
    known = with_clips
    for change in (
        {"stride_ms": 40, "frames": 25},
        {"stride_ms": 19.9},  # as many frames
        {"coefficients": 5},
        {"window_ms": 38},
        {"clip_seconds": 0.5, "frames": 24},
        {"sample_rate": 8000},
        {"downmix": True},
        {"limit": 4},
    ):
        more = cached(**change)
        assert more > known, change
        known = more


def test_what_an_older_version_of_the_code_kept_is_made_again(
    tones: Path, own_caches: Path, monkeypatch: pytest.MonkeyPatch
):
    built(tones)
    monkeypatch.setattr("edgetrain.data.audio_clips.VERSION", 0)
    built(tones)
    assert len(list((own_caches / "edgetrain" / "audio").iterdir())) == 2


def test_a_set_too_large_for_the_cache_is_decoded_when_it_is_asked_for(tones: Path, monkeypatch: pytest.MonkeyPatch):
    small = built(tones, features="samples").samples("train")
    monkeypatch.setattr("edgetrain.data.audio.LARGEST_CACHE", 1000)
    large = built(tones, features="samples").samples("train")
    assert large.data.cached_clips is None
    assert all(torch.equal(large[index][0], small[index][0]) for index in range(0, len(small), 17))


def test_nothing_half_written_is_left_when_a_clip_cannot_be_read(tmp_path: Path, own_caches: Path):
    rows = rows_of(range(8))
    rows[40]["audio"]["bytes"] = rows[40]["audio"]["bytes"][:1000]
    folder = write_parquet(
        tmp_path / "cut", {"train": rows, "validation": rows_of(range(20, 21)), "test": rows_of(range(21, 22))}
    )
    sentence = refusal(folder)
    assert sentence.startswith(f"data.path={folder}: row 40 of train (1_cyd_0.wav) is cut short")
    assert not [path for path in (own_caches / "edgetrain").rglob("*") if path.is_file()]


# Where recordings are


def test_a_folder_of_folders_of_files_is_read_without_ffmpeg(tmp_path: Path):
    for split, takes in (("train", range(12)), ("valid", range(12, 14)), ("testing", range(14, 16))):
        for label, name in enumerate(LABELS):
            for take in takes:
                place = tmp_path / "files" / split / name
                place.mkdir(parents=True, exist_ok=True)
                soundfile.write(place / f"{take}.{('wav', 'flac')[take % 2]}", tone(label, 0, take), 8000)
    data = built(tmp_path / "files", speaker=None)
    assert data.labels == sorted(LABELS)
    assert [data.facts()[name]["samples"] for name in ("train", "validation", "test")] == [36, 6, 6]
    assert data.groups("test") == {}


def test_a_folder_of_files_may_be_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for label, name in enumerate(LABELS):
        (tmp_path / "files" / name).mkdir(parents=True)
        for take in range(60):
            soundfile.write(tmp_path / "files" / name / f"{take}.wav", tone(label, 0, take), 8000)
    there = built(tmp_path / "files", speaker=None).facts()
    monkeypatch.chdir(tmp_path)
    assert built(Path("files"), speaker=None).facts() == there
    assert refusal_of_one(tmp_path) == "data.path=files: row 0 of train (high/0.wav) is empty: it holds no samples"


def refusal_of_one(folder: Path) -> str:
    soundfile.write(folder / "files" / "high" / "0.wav", np.zeros(0), 8000)
    return refusal(Path("files"), speaker=None).partition(";")[0]


def test_a_folder_without_splits_is_cut_by_hash(tmp_path: Path):
    for label, name in enumerate(LABELS):
        (tmp_path / "files" / name).mkdir(parents=True)
        for take in range(60):
            soundfile.write(tmp_path / "files" / name / f"{take}.wav", tone(label, 0, take), 8000)
    data = built(tmp_path / "files", speaker=None)
    sizes = [data.facts()[name]["samples"] for name in ("train", "validation", "test")]
    assert sum(sizes) == 180
    assert sizes[0] > 150 > 30 > min(sizes[1:]) > 0


def test_a_table_may_name_files_beside_it(tmp_path: Path):
    (tmp_path / "clips").mkdir()
    lines = ["file,word"]
    for number, row in enumerate(rows_of(range(30))):
        (tmp_path / "clips" / f"{number}.wav").write_bytes(row["audio"]["bytes"])
        lines.append(f"clips/{number}.wav,{LABELS[row['label']]}")
    (tmp_path / "clips.csv").write_text("\n".join(lines))
    data = built(tmp_path / "clips.csv", audio="file", label="word", speaker=None)
    assert len(data.splits["train"].items) > 200
    (tmp_path / "clips" / "7.wav").unlink()
    sentence = refusal(tmp_path / "clips.csv", audio="file", label="word", speaker=None)
    assert "row 7 of train (clips/7.wav): no such file is there" in sentence


def test_noise_is_cut_from_a_folder_that_the_user_names(tones: Path, tmp_path: Path):
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "hum.wav", np.full(24000, 0.5), 16000)
    noisy = built(tones, noise=str(tmp_path / "noise"), noise_probability=1.0, features="samples")
    clip = noisy.train_dataloader().dataset[0][0]
    assert 0 < clip[-1] <= 0.05  # after the tone's end there is the noise alone, at most a tenth of it
    assert "nothing does not exist" in refusal(tones, noise=str(tmp_path / "nothing"), noise_probability=1.0)
    assert "no folder with wav" in refusal(tones, noise=str(tones), noise_probability=1.0)
    soundfile.write(tmp_path / "noise" / "short.wav", np.full(8000, 0.5), 16000)
    assert "short.wav is shorter than a clip of 1 s" in refusal(
        tones, noise=str(tmp_path / "noise"), noise_probability=1.0
    )


# What goes wrong


def test_bad_recordings_and_labels_are_named_with_their_row(tmp_path: Path):
    rows = rows_of(range(8))
    both = io.BytesIO()
    soundfile.write(both, np.zeros((800, 2)), 8000, format="WAV")
    cases = {
        "is no audio that can be decoded": of(rows, audio={"bytes": b"no audio", "path": "x.wav"}),
        "is empty": of(rows, audio={"bytes": wav(np.zeros(0)), "path": "x.wav"}),
        "data.downmix=true averages": of(rows, audio={"bytes": both.getvalue(), "path": "x.wav"}),
        "no such file is there": of(rows, audio={"bytes": None, "path": "x.wav"}),
        "has no label that the set knows; label it, or take it out": of(rows, label=None),
    }
    for number, (sentence, changed) in enumerate(cases.items()):
        folder = write_parquet(tmp_path / str(number), {"train": changed, "test": rows_of(range(20, 22))})
        said = refusal(folder)
        assert sentence in said, said
        assert "row 0 of train" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_classes": 4}, r"data.num_classes=4, but .* has 3 labels \(low, middle, high\); set data.num_classes=3"),
        ({"frames": 25}, "data.frames=25, but a clip of 1.0 s has 49 frames of 40 ms every 20 ms; set data.frames=49"),
        ({"stride_ms": 40}, "set data.frames=25"),
        ({"clip_seconds": 0.01}, "data.clip_seconds=0.01 is less than one frame of 40 ms"),
        ({"sample_rate": 4000}, "data: low_hz=20 to high_hz=4000 is no band between 0 and 2000 Hz"),
        ({"coefficients": 50}, "data: coefficients=50 is not between 1 and mel_bins=40"),
        ({"noise_probability": 1.5}, "data.noise_probability=1.5 is a share"),
        ({"noise_volume": -1.0}, "data.noise_volume=-1.0 is negative"),
        ({"time_shift_ms": 1000}, "data.time_shift_ms=1000 is not between 0 and a clip's 1000 ms"),
        ({"limit": 0}, "data.limit=0 keeps nothing"),
        ({"batch_size": 0}, "data.batch_size=0 holds no clip"),
        ({"workers": -1}, "data.workers=-1 is negative"),
        ({"audio": "sound"}, "data.audio=sound is not in data.path=.*; its columns are audio, label, speaker"),
        ({"label": "lable"}, r"data.label=lable is not in .*did you mean 'label'"),
        ({"speaker": "who"}, "data.speaker=who is not in"),
        ({"held_out": "bop"}, r"data.held_out=bop is no speaker of .*did you mean 'bob'.*they are ann, bob, cyd"),
        ({"held_out": "bob", "speaker": None}, "data.held_out=bob needs data.speaker"),
        ({"labels": ["low", "middle", "hihg"]}, r"data.labels names hihg, which .* does not have.*did you mean 'high'"),
        ({"labels": ["low", "low", "middle", "high"]}, "data.labels names one twice; its labels are low, middle, high"),
        ({"labels": ["low", "middle"]}, "data.labels does not name high, which .* has; add it to the list"),
        ({"label": "audio"}, "data.label=audio of .* holds no labels"),
        ({"audio": "label"}, "data.audio=label of .* holds no recordings"),
    ],
)
def test_settings_that_do_not_fit_the_set_are_a_sentence(tones: Path, options: dict, sentence: str):
    with pytest.raises(UserError, match=sentence) as raised:
        built(tones, **options)
    assert "\n" not in str(raised.value)


def test_a_set_without_recordings_or_without_training_is_a_sentence(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(tmp_path / "empty")
    assert "has no train split" in refusal(write_parquet(tmp_path / "test_only", {"test": rows_of(range(2))}))


def test_labels_are_in_the_order_that_was_asked_for(tones: Path):
    data = built(tones, labels=["middle", "high", "low"])
    assert data.labels == ["middle", "high", "low"]
    assert {clip.label for clip in data.splits["test"].items if "(0_" in clip.where} == {2}  # files of 0 are low


def test_a_label_that_train_does_not_know_is_a_sentence(tmp_path: Path):
    more = Features({"audio": Audio(), "label": ClassLabel(names=[*LABELS, "other"]), "speaker": Value("string")})
    folder = write_parquet(tmp_path / "more", {"train": rows_of(range(2, 24))})
    write_parquet(folder, {"test": of(rows_of(range(2)), label=3)}, more)
    assert "row 0 of test has no label that the set knows" in refusal(folder)


def test_text_labels_are_ordered_by_the_alphabet(tmp_path: Path):
    features = Features({"audio": Audio(), "label": Value("string"), "speaker": Value("string")})
    rows = [row | {"label": LABELS[row["label"]]} for row in rows_of(range(24))]
    data = built(write_parquet(tmp_path / "text", {"train": rows}, features))
    assert data.labels == ["high", "low", "middle"]


# What is said of it


def test_facts_preview_and_preprocessing_are_plain_values(tones: Path):
    data = built(tones)
    facts = data.facts()
    assert facts["chance"] == pytest.approx(1 / 3)
    assert facts["majority"] == pytest.approx(1 / 3)
    assert built(tones, held_out="bob").facts()["corpus_sha256"] != facts["corpus_sha256"]
    preview = data.preview(4)
    assert len(preview.samples) == 4
    assert set(preview.lengths["test"].tolist()) == {300}  # ms
    assert preview.splits[-1] == {"split": "test", "clips": 18, "low": 6, "middle": 6, "high": 6}
    assert [row["repeats"] for row in preview.duplicates] == [0, 0, 0]
    said = data.preprocessing()
    assert (said["sample_rate"], said["window_ms"], said["coefficients"]) == (16000, 40, 10)
    assert all(isinstance(value, str | int | float) for value in said.values())
    assert "window_ms" not in built(tones, features="samples").preprocessing()


def test_reading_never_imports_torchcodec(tones: Path):
    import sys

    built(tones)
    assert "torchcodec" not in sys.modules


def test_the_option_fsdd_reads_a_set_of_its_form(tmp_path: Path):
    node = yaml.safe_load((ROOT / "conf" / "data" / "fsdd.yaml").read_text()) | {"seed": 0}
    data = build(node | {"path": str(write_fsdd(tmp_path / "fsdd"))})
    data.prepare_data()
    assert data.facts()["test"] == {"samples": 60, "speakers": 6, "dropped": 0}
    assert data.labels[3] == "three"
    assert data.origin["licence"] == "CC BY-SA 4.0"


# The real set


def test_fsdd_is_split_as_it_is_published_and_by_speaker(shared_data: Path | None, monkeypatch: pytest.MonkeyPatch):
    if shared_data is None or not (shared_data / "fsdd").is_dir():
        pytest.skip("set EDGETRAIN_DATA to a folder that holds fsdd")
    monkeypatch.setenv("EDGETRAIN_DATA", str(shared_data))
    settings = {"path": "fsdd", "num_classes": 10, "speaker": "speaker", "features": "samples"}
    data = AudioFolderData(**settings)
    data.setup()
    facts = data.facts()
    assert facts["train"]["samples"] + facts["validation"]["samples"] == 2700
    assert facts["test"] == {"samples": 300, "speakers": 6, "dropped": 0}
    assert facts["majority"] == pytest.approx(0.1)
    assert data.labels == ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    lengths = np.concatenate(list(data.preview().lengths.values()))
    assert lengths.sum() / 1000 == pytest.approx(1312, abs=2)  # seconds, as published
    assert (lengths > 1000).sum() == 20
    theo = AudioFolderData(**settings, held_out="theo")
    theo.setup()
    assert theo.facts()["test"] == {"samples": 500, "speakers": 1, "dropped": 0}
