import gzip
import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from conftest import SMALL
from ranks import command

from edgetrain.data import source, text_stream
from edgetrain.data.packing import Windows
from edgetrain.data.stream import Place
from edgetrain.data.text import TextData
from edgetrain.data.text_stream import TextStream, alternating
from edgetrain.errors import UserError

WORDS = ("to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler", "slings", "and", "arrows")


def sentence(number: int, words: int = 30) -> str:
    draws = np.random.default_rng(number).integers(len(WORDS), size=words)
    return f"{number}: " + " ".join(WORDS[draw] for draw in draws) + ".\n"


def write(path: Path, numbers: range) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"number": number, "text": sentence(number)}) + "\n" for number in numbers))


@pytest.fixture
def train_only(tmp_path: Path) -> Path:
    """Three files of 300 documents, no other split."""
    for file in range(3):
        write(tmp_path / "set" / f"part_{file}.jsonl", range(300 * file, 300 * (file + 1)))
    return tmp_path / "set"


@pytest.fixture
def three_splits(tmp_path: Path) -> Path:
    """Validation holds documents of train, test one of validation."""
    write(tmp_path / "set" / "train.jsonl", range(100))
    write(tmp_path / "set" / "validation.jsonl", range(95, 110))
    write(tmp_path / "set" / "test.jsonl", range(109, 125))
    return tmp_path / "set"


def built(path: Path | str, **options) -> TextStream:
    data = TextStream(path=str(path), **({"context": 16, "batch_size": 4, "vocab_size": 300, "shuffle": 8} | options))
    data.prepare_data()
    data.setup()
    return data


def numbers(tokens, data: TextStream) -> list[int]:
    texts = data.tokenizer.decode(tokens).split("<|endoftext|>")[:-1]
    return [int(text.split(":")[0]) for text in texts]


def trained_on(data: TextStream) -> list[int]:
    """The documents of one pass of the only lane."""
    seen: list[int] = []
    for place, tokens in data.train_windows().tables(0, Place()):
        if place.passed:
            return seen
        seen += numbers(tokens, data)


def test_windows_are_those_of_text_data(three_splits: Path):
    (three_splits / "validation.jsonl").unlink()
    write(three_splits / "validation.jsonl", range(200, 230))
    packed = TextData(path=str(three_splits), context=16, vocab_size=300)
    packed.setup()
    packed.tokenizer.save_pretrained(three_splits.parent / "tokenizer")
    streamed = built(three_splits, shuffle=1, tokenizer=str(three_splits.parent / "tokenizer"))
    expected = Windows(packed.streams["train"], 16)
    made = [window for _, _, batch in islice(streamed.train_windows(), len(expected) // 4) for window in batch]
    assert len(made) > 100
    assert [window.tolist() for window in made] == [expected[index].tolist() for index in range(len(made))]
    assert streamed.streams["validation"].tolist() == packed.streams["validation"].tolist()
    assert streamed.facts()["validation"] == packed.facts()["validation"]
    assert torch.equal(streamed.prompts(3, 8, "validation", 4)[0], packed.prompts(3, 8, "validation", 4)[0])


def test_missing_splits_are_drawn_by_content_and_left_out_of_training(train_only: Path):
    data = built(train_only)
    parts = {name: numbers(stream, data) for name, stream in data.streams.items()} | {"train": trained_on(data)}
    assert sorted(number for part in parts.values() for number in part) == list(range(900))
    draws = {n: int.from_bytes(sha256(sentence(n).encode()).digest()[:4]) / 2**32 for n in range(900)}
    assert set(parts["validation"]) == {number for number, draw in draws.items() if draw < 0.05}
    assert set(parts["test"]) == {number for number, draw in draws.items() if 0.05 <= draw < 0.1}


def test_held_out_splits_are_bounded_and_the_rest_is_trained_on(train_only: Path):
    data = built(train_only, validation_tokens=300, test_tokens=100)
    sizes = {name: len(stream) for name, stream in data.streams.items()}
    longest = max(len(data.tokenizer.encode(sentence(number))) + 1 for number in range(900))
    assert 300 <= sizes["validation"] < 300 + longest and 100 <= sizes["test"] < 100 + longest
    held_out = [number for stream in data.streams.values() for number in numbers(stream, data)]
    assert sorted(held_out + trained_on(data)) == list(range(900))
    assert len({number // 300 for number in numbers(data.streams["validation"], data)}) > 1  # not one file's


def test_only_as_much_is_read_as_is_held_out(train_only: Path, monkeypatch: pytest.MonkeyPatch):
    whole = built(train_only)
    whole.tokenizer.save_pretrained(train_only.parent / "tokenizer")
    tables = []
    monkeypatch.setattr(text_stream, "alternating", lambda stream: (tables.append(1) or t for t in alternating(stream)))
    built(train_only, tokenizer=str(train_only.parent / "tokenizer"), validation_tokens=100, test_tokens=100)
    assert 2 <= len(tables) <= 6  # of 15, twice


def test_documents_of_given_splits_are_left_out_of_training_and_of_later_splits(three_splits: Path):
    data = built(three_splits)
    assert sorted(numbers(data.streams["validation"], data)) == list(range(95, 110))
    assert sorted(numbers(data.streams["test"], data)) == list(range(110, 125))
    assert data.contents["test"].dropped == 1
    assert sorted(trained_on(data)) == list(range(95))


def test_the_cache_does_no_work_twice_and_follows_the_files(train_only: Path, own_caches: Path, monkeypatch):
    first = built(train_only)
    made = sorted(path.name for path in (own_caches / "edgetrain").rglob("*.*"))
    assert len(made) == 5  # a tokenizer, two streams and what is known of them
    monkeypatch.setattr(TextStream, "_take", lambda *_: pytest.fail("held-out text was read again"))
    monkeypatch.setattr(text_stream, "tokenizer_texts", lambda *_: pytest.fail("a tokenizer was trained again"))
    again = built(train_only)
    assert again.facts() == first.facts() and again.held_out_keys().tolist() == first.held_out_keys().tolist()
    monkeypatch.undo()
    write(train_only / "part_3.jsonl", range(900, 1000))
    assert built(train_only).facts()["corpus_sha256"] != first.facts()["corpus_sha256"]


def test_the_tokenizer_is_trained_on_at_most_so_many_documents_of_train(train_only: Path, monkeypatch):
    monkeypatch.setattr(text_stream, "TOKENIZER_DOCUMENTS", 70)
    train = built(train_only).sources["train"]
    texts = [text for batch in text_stream.tokenizer_texts(train, ["validation", "test"]) for text in batch]
    assert 70 <= len(texts) < 70 + 64
    assert all(int.from_bytes(sha256(text.encode()).digest()[:4]) / 2**32 >= 0.1 for text in texts)


def test_alternating_reads_every_table_once_and_files_in_turn(train_only: Path):
    tables = list(alternating(built(train_only).sources["train"]))
    rows = [[int(text.split(":")[0]) for text in table.column(0).to_pylist()] for table in tables]
    assert sorted(number for table in rows for number in table) == list(range(900))
    assert {table[0] // 300 for table in rows[:3]} == {0, 1, 2}


def test_facts_and_preview_agree(train_only: Path):
    data = built(train_only)
    facts, preview = data.facts(), data.preview(samples=6)
    assert facts["train"] == {"files": 3}
    for row in preview.splits:
        assert {name: row[name] for name in ("documents", "tokens", "bytes")} == facts[row["split"]]
    assert facts["validation"]["bytes"] == sum(
        len(sentence(number).encode()) for number in numbers(data.streams["validation"], data)
    )
    first = [window for batch in islice(data.train_dataloader(), 2) for window in batch]
    assert preview.samples == [data.tokenizer.decode(window) for window in first[:6]]
    assert preview.lengths["train"].max() < 60 and preview.duplicates[0]["repeats"] == 0
    assert preview.notes == ["train: streamed from 3 files; its lengths are those of 58 documents"]


def test_batches_are_int64_of_context_plus_one(train_only: Path):
    data = built(train_only)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert batch.shape == (4, 17) and batch.dtype == torch.int64


@pytest.mark.parametrize("kind", ["jsonl.gz", "csv", "parquet", "txt"])
def test_every_kind_of_file_is_streamed(tmp_path: Path, kind: str):
    folder = tmp_path / "set"
    folder.mkdir()
    for file in range(30):
        texts = [sentence(20 * file + number) for number in range(20)]
        path = folder / f"part_{file}.{kind}"
        if kind == "jsonl.gz":
            path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
        elif kind == "txt":
            path.write_text("".join(texts))
        else:
            frame = pandas.DataFrame({"text": texts})
            frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path, row_group_size=3)
    data = built(folder)
    held_out = sum(len(each.keys) for each in data.contents.values())
    assert held_out + len(trained_on(data)) == (30 if kind == "txt" else 600)


def test_a_set_of_the_hub_is_streamed_and_known_by_its_commit(train_only: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    loaded = source.load_dataset(str(train_only), streaming=True)
    monkeypatch.setattr(source.HfApi, "dataset_info", lambda self, name, timeout: SimpleNamespace(sha=f"of {name}"))
    monkeypatch.setattr(source, "load_dataset", lambda *names, **options: asked.append((names, options)) or loaded)
    data = built("owner/set:small")
    assert asked == [(("owner/set", "small"), {"streaming": True})]
    assert data.sources["train"].fingerprint == data.sources["train"].version == "of owner/set"


def fails(match: str, path: Path | str, **options) -> None:
    with pytest.raises(UserError, match=match) as caught:
        built(path, **options)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_streamed_is_an_error(train_only: Path, tmp_path: Path, monkeypatch):
    fails(
        r"data.column=txt is not in .* \(did you mean 'text'\?\); its columns are number, text",
        train_only,
        column="txt",
    )
    fails("data.column=number of data.path=.* holds int64, not text", train_only, column="number")
    fails("data.path=.*none does not exist", tmp_path / "none")
    fails("data.shuffle=0 must be at least 1", train_only, shuffle=0)
    fails("the validation split of .* tokens, one window of data.context=5000 needs 5001", train_only, context=5000)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"no parquet")
    fails("damaged cannot be read .*; give text, jsonl", tmp_path / "damaged")
    (tmp_path / "book.txt").write_text(sentence(1, words=5000))
    monkeypatch.setattr("edgetrain.data.source.LARGEST_TEXT", 10_000)
    fails("book.txt is plain text, which is one document, and larger than a stream holds", tmp_path / "book.txt")


RUN = ["run", "recipe=layerskip_llama", *SMALL, "data=text_stream", "data.path=texts", "data.context=32"]
RUN += ["data.batch_size=4", "data.vocab_size=300", "data.shuffle=8", "measure=[]", "export=[]"]
RUN += ["task.total_steps=6", "method.layerskip.total_steps=6"]


@pytest.fixture
def streamed(workplace: Path) -> Path:
    """texts/ with one file of 400 documents."""
    for old in (workplace / "texts").iterdir():
        old.unlink()
    write(workplace / "texts" / "train.jsonl", range(400))
    return workplace


def weights(folder: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(folder, "checkpoints", "last.ckpt"), weights_only=True)["state_dict"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(edgetrain, streamed: Path, workers: int) -> None:
    run = [*RUN, f"data.workers={workers}", "trainer.accumulate_grad_batches=2"]  # 12 batches, 3 blocks
    code, _, err = edgetrain(*run, "out=whole")
    assert code == 0, err
    assert edgetrain(*run, "out=cut", "trainer.max_steps=3")[0] == 0
    assert edgetrain("resume=cut", "trainer.max_steps=6")[0] == 0
    whole, cut = weights("whole"), weights("cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    metrics = json.loads(Path("whole/metrics.json").read_text())
    assert metrics["train"] == {"files": 1} and metrics["tokens_trained"] == 12 * 4 * 32


def test_a_resumed_run_of_two_processes_ends_bit_equal(streamed: Path) -> None:
    run = [*RUN, "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    parts = [["out=whole"], ["out=cut", "trainer.max_steps=3"]]
    for arguments in ([*run, *parts[0]], [*run, *parts[1]], ["resume=cut", "trainer.max_steps=6"]):
        ended = command(*arguments, place=streamed)
        assert [rank.code for rank in ended] == [0, 0], ended[0].said + ended[1].said
    whole, cut = weights("whole"), weights("cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


def test_sigterm_to_every_process_saves_and_says_how_to_resume(streamed: Path) -> None:
    command = [sys.executable, "-m", "edgetrain", *RUN, "trainer.max_steps=100000", "out=run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        logged = streamed / "run" / "logs"
        while not list(logged.rglob("metrics.csv")) and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 143, err
    assert "resume=" in err and "Traceback" not in err
    assert weights("run")
