"""A preview counts what is there: cases counted by hand, and the run's own order of samples."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL

from edgetrain.config import Config
from edgetrain.data.packing import document_lengths
from edgetrain.data.preview import (
    Preview,
    bars,
    content_keys,
    duplicate_rows,
    histogram,
    preview_of,
    print_preview,
    shortened,
)
from edgetrain.data.text import TextData
from edgetrain.errors import UserError

Call = Callable[..., tuple[int, str, str]]


def test_duplicates_are_counted_within_and_before_each_split() -> None:
    keys = {"train": [1, 1, 1, 2], "validation": [3, 3, 2], "test": [3, 1, 4]}
    rows = duplicate_rows("documents", {name: np.array(key, dtype=np.uint64) for name, key in keys.items()})
    assert [(row["split"], row["in all"], row["repeats"], row["in an earlier split"]) for row in rows] == [
        ("train", 4, 2, 0),
        ("validation", 3, 1, 1),
        ("test", 3, 0, 2),
    ]


def test_equal_contents_have_equal_keys_and_others_not() -> None:
    keys = content_keys([b"a", b"b", b"a", b""])
    assert keys.dtype == np.uint64
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == 3


def test_lengths_are_those_between_ends_of_text() -> None:
    assert document_lengths(np.array([5, 6, 0, 0, 7, 0]), eos_id=0).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([3, 3, 3], [(3, 3, 3)]),
        ([10, 11, 28], [(10, 11, 2), *((low, low + 1, 0) for low in range(12, 28, 2)), (28, 29, 1)]),
        ([1, 2, 3, 17], [(1, 1, 1), (2, 3, 2), (4, 7, 0), (8, 15, 0), (16, 31, 1)]),
        ([0, 1, 100], [(0, 0, 1), (1, 1, 1), (2, 3, 0), (4, 7, 0), (8, 15, 0), (16, 31, 0), (32, 63, 0), (64, 127, 1)]),
    ],
)  # fmt: skip
def test_histogram_in_equal_steps_or_by_powers_of_two(lengths: list[int], expected: list[tuple[int, int, int]]) -> None:
    assert histogram(lengths) == expected


def test_every_length_is_in_exactly_one_bar() -> None:
    for most in (1, 9, 31, 64, 65, 1000, 70_000):
        lengths = np.random.default_rng(most).integers(0, most + 1, 500)
        counts = histogram(lengths)
        assert sum(count for *_, count in counts) == 500
        for low, high, count in counts:
            assert count == ((lengths >= low) & (lengths <= high)).sum()


def test_bars_are_proportional() -> None:
    assert bars([(8, 15, 20), (16, 16, 10), (17, 20, 0)]) == [
        " 8 to 15  20  " + "█" * 40,
        "      16  10  " + "█" * 20,
        "17 to 20   0",
    ]


def test_a_sample_is_one_line_within_the_width_and_cannot_steer_the_terminal() -> None:
    assert shortened("if x:\n\treturn    1", 40) == "if x:↵→return 1"
    assert shortened("\x1b[31mred\x07", 40) == "�[31mred�"
    assert shortened("a" * 10, 10) == "a" * 10
    assert shortened("a" * 11, 10) == "a" * 9 + "…"
    assert shortened("漢" * 6, 11) == "漢" * 5 + "…"  # each is two cells wide


@pytest.fixture
def twice(tmp_path: Path) -> TextData:
    """Train holds one document twice; validation holds two of train's, test one of validation's."""
    splits = {
        "train": ["alpha beta gamma " * 9 + str(n) for n in (0, 1, 2, 2)],
        "validation": ["alpha beta gamma " * 9 + str(n) for n in (0, 1, 3, 4)],
        "test": ["alpha beta gamma " * 9 + str(n) for n in (4, 5, 6)],
    }
    for name, texts in splits.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = TextData(path=str(tmp_path), context=8, batch_size=2, vocab_size=280)
    data.prepare_data()
    data.setup()
    return data


def test_a_text_sets_preview_agrees_with_its_loaders_and_facts(twice: TextData) -> None:
    preview = twice.preview(samples=4)
    first = [window for batch, _ in zip(twice.train_dataloader(), range(2), strict=False) for window in batch]
    assert preview.samples == [twice.tokenizer.decode(window) for window in first]
    facts = twice.facts()
    for row in preview.splits:
        assert {name: row[name] for name in ("documents", "tokens", "bytes")} == facts[row["split"]]
        assert row["bytes a token"] == row["bytes"] / row["tokens"]
    loaders = (twice.train_dataloader(), twice.val_dataloader(), twice.test_dataloader())
    assert [row["windows"] for row in preview.splits] == [len(loader.dataset) for loader in loaders]
    lengths = [len(twice.tokenizer("alpha beta gamma " * 9 + str(n)).input_ids) for n in (0, 1, 2, 2)]
    assert preview.lengths["train"].tolist() == lengths


def test_a_text_sets_duplicates_are_those_put_in(twice: TextData) -> None:
    preview = twice.preview()
    documents = [row for row in preview.duplicates if row["kind"] == "documents"]
    assert [(row["in all"], row["repeats"], row["in an earlier split"]) for row in documents] == [
        (4, 1, 0),
        (2, 0, 0),
        (2, 0, 0),
    ]
    assert preview.notes == [
        "validation: documents dropped because an earlier split holds them: 2",
        "test: documents dropped because an earlier split holds them: 1",
    ]
    seen: set[tuple[int, ...]] = set()
    for split, row in zip(("train", "validation", "test"), preview.duplicates[3:], strict=True):
        loader = {"train": twice.train_dataloader, "validation": twice.val_dataloader, "test": twice.test_dataloader}
        samples = loader[split]().dataset
        windows = [tuple(samples[index].tolist()) for index in range(len(samples))]
        assert row["repeats"] == len(windows) - len(set(windows))
        assert row["in an earlier split"] == sum(window in seen for window in windows)
        seen |= set(windows)


def test_the_verb_shows_the_preview_of_a_users_texts(edgetrain: Call) -> None:
    code, out, err = edgetrain("show", "recipe=layerskip_llama", *SMALL, "preview=true")
    assert code == 0, err
    for words in ("Source and licence: those of the set that data.path names.", "10 samples", "lengths, tokens a",
                  "train by length", "exact duplicates"):  # fmt: skip
        assert words in out
    assert "_target_" not in out
    assert "_target_" in edgetrain("show", "recipe=layerskip_llama", "preview=false")[1]
    assert "expected true or false" in edgetrain("show", "recipe=layerskip_llama", "preview=yes")[2]


def test_the_licence_of_a_set_is_shown(edgetrain: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "edgetrain.data.preview.preview_of", lambda config: Preview([], [{"split": "train"}], {}, "tokens")
    )
    shown = edgetrain("show", "recipe=layerskip_llama", "preview=true")[1]
    assert "Licence: Python Software Foundation License, version 2." in shown
    shown = edgetrain("show", "recipe=layerskip_llama", "data=tinyshakespeare", "preview=true")[1]
    assert "Licence: the text is in the public domain." in shown


def test_data_without_a_preview_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"has no data to preview"):
        preview_of(Config(recipe="tiny"))
    with pytest.raises(UserError, match=r"builtins\.dict has no preview"):
        preview_of(Config(recipe="tiny", data={"_target_": "builtins.dict"}))


def test_a_preview_needs_only_samples_and_splits(capsys: pytest.CaptureFixture[str]) -> None:
    """What a data room of another kind gives: no tokens, no duplicates."""
    preview = Preview(["two spoken words"], [{"split": "train", "hours": 1.5}], {"train": np.array([3, 4])}, "seconds")
    print_preview(preview, ["Licence: CC0"], width=60)
    out = capsys.readouterr().out
    assert out.startswith("Licence: CC0\n") and "two spoken words" in out and "exact duplicates" not in out
