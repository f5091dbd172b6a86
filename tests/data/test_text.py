import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetrain.data import packing, source
from edgetrain.data.documents import sections
from edgetrain.data.packing import Windows, pack, spaced_windows, token_dtype
from edgetrain.data.text import TextData
from edgetrain.errors import UserError

WORDS = ("to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler", "slings", "and", "arrows")


def sentence(number: int, words: int = 30) -> str:
    """A different text for every number, the same on every machine."""
    draws = np.random.default_rng(number).integers(len(WORDS), size=words)
    return f"{number}: " + " ".join(WORDS[draw] for draw in draws) + ".\n"


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder with 300 documents in train and no other split."""
    folder = tmp_path / "set"
    folder.mkdir()
    lines = (json.dumps({"text": sentence(number), "number": number}) for number in range(300))
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def built(path: Path | str, **options) -> TextData:
    data = TextData(path=str(path), **({"context": 16, "batch_size": 4, "vocab_size": 300} | options))
    data.prepare_data()
    data.setup()
    return data


def held_out_documents(data: TextData, name: str) -> list[str]:
    return [text for batch in data.splits[name].batches() for text in batch]


def test_every_token_after_the_first_is_a_target_exactly_once():
    stream = np.arange(100, 165, dtype=np.uint16)
    windows = Windows(stream, context=16)
    assert len(windows) == 4
    assert torch.cat([window[1:] for window in windows_of(windows)]).tolist() == stream[1:].tolist()
    assert torch.cat([window[:-1] for window in windows_of(windows)]).tolist() == stream[:-1].tolist()


def windows_of(windows: Windows) -> list[torch.Tensor]:
    return [windows[index] for index in range(len(windows))]


def test_the_stream_is_each_document_followed_by_the_end_of_text(documents: Path):
    data = built(documents)
    expected = "".join(text + "<|endoftext|>" for text in held_out_documents(data, "validation"))
    assert data.tokenizer.decode(data.streams["validation"]) == expected


def test_batches_are_int64_of_context_plus_one(documents: Path):
    data = built(documents)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert batch.shape == (4, 17) and batch.dtype == torch.int64


def test_held_out_loaders_go_through_the_whole_split_in_order(documents: Path):
    data = built(documents)
    seen = torch.cat([batch[:, 1:].flatten() for batch in data.val_dataloader()])
    stream = data.streams["validation"]
    assert len(seen) > len(stream) - 1 - 16
    assert seen.tolist() == stream[1 : len(seen) + 1].tolist()


def test_missing_splits_are_cut_from_train_by_content(documents: Path):
    data = built(documents)
    numbers = [int(text.split(":")[0]) for text in held_out_documents(data, "test")]
    assert 5 <= len(numbers) <= 30
    assert min(numbers) < 100 and max(numbers) > 200
    digests = [set(split.keys.tolist()) for split in data.splits.values()]
    assert sum(map(len, digests)) == len(set.union(*digests)) == 300


def test_a_validation_file_leaves_the_cut_of_test_as_it_was(documents: Path):
    before = held_out_documents(built(documents), "test")
    (documents / "validation.jsonl").write_text(
        "\n".join(json.dumps({"text": sentence(n), "number": n}) for n in range(900, 920))
    )
    after = built(documents)
    assert held_out_documents(after, "test") == before
    assert len(held_out_documents(after, "validation")) == 20


def test_documents_of_train_are_dropped_from_held_out_splits(tmp_path: Path):
    rows = {"train": range(20), "validation": range(15, 30), "test": range(25, 40)}
    for name, numbers in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": sentence(n)}) for n in numbers))
    data = built(tmp_path)
    assert held_out_documents(data, "validation") == [sentence(n) for n in range(20, 30)]
    assert held_out_documents(data, "test") == [sentence(n) for n in range(30, 40)]


def test_sections_of_a_long_document_join_to_the_document():
    text = "".join(sentence(number) + "\n" * (number % 7 == 0) for number in range(400))
    pieces = list(sections(text))
    assert "".join(pieces) == text
    assert all(len(piece) < 3 * 4096 for piece in pieces) and len(pieces) > 5


def test_one_text_file_is_enough(tmp_path: Path):
    (tmp_path / "book.txt").write_text("\n".join(sentence(number) for number in range(2000)))
    facts = built(tmp_path / "book.txt").facts()
    assert all(facts[name]["documents"] > 0 for name in ("train", "validation", "test"))


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_tables_are_read_by_column(tmp_path: Path, suffix: str):
    separator = {"csv": ",", "tsv": "\t"}[suffix]
    rows = [f"{number}{separator}{sentence(number).strip()}" for number in range(200)]
    (tmp_path / f"train.{suffix}").write_text("\n".join([f"id{separator}words", *rows]))
    whole, single = (built(tmp_path, column="words"), built(tmp_path / f"train.{suffix}", column="words"))
    assert whole.facts() == single.facts()


def test_the_shared_data_folder_is_looked_in_first(documents: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EDGETRAIN_DATA", str(documents.parent))
    assert source.find_local("set") == documents


def test_limit_keeps_that_many_documents(documents: Path):
    facts = built(documents, limit=5).facts()
    assert [facts[name]["documents"] for name in ("train", "validation", "test")] == [5, 5, 5]


def test_facts_hash_the_content_and_count_it(documents: Path):
    data = built(documents)
    facts = data.facts()
    texts = held_out_documents(data, "validation")
    assert facts["validation"]["bytes"] == sum(len(text.encode()) for text in texts)
    assert facts["validation"]["tokens"] == sum(len(data.tokenizer.encode(text)) + 1 for text in texts)
    assert facts["bytes_per_token"] == facts["validation"]["bytes"] / facts["validation"]["tokens"]
    digests = b"".join(sha256(text.encode()).digest() for text in texts)
    assert data.splits["validation"].sha256 == sha256(digests).hexdigest()
    changed = documents / "train.jsonl"
    changed.write_text(changed.read_text().replace("nobler", "noble"))
    assert built(documents).facts()["corpus_sha256"] != facts["corpus_sha256"]


def test_the_cache_gives_the_same_bytes_and_does_no_work_twice(documents: Path, own_caches: Path):
    first = built(documents)
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (own_caches / "edgetrain").rglob("*.*")}
    assert len(files) == 4  # a tokenizer and three streams, no temporary file
    second = built(documents)
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (own_caches / "edgetrain").rglob("*.*")
    } == files
    for path in files:
        path.unlink()
    third = built(documents)
    assert {path: path.read_bytes() for path in files} == {path: content for path, (content, _) in files.items()}
    assert first.facts() == second.facts() == third.facts()


def test_a_large_vocabulary_is_packed_in_32_bits(documents: Path):
    assert built(documents, vocab_size=65_536).streams["test"].dtype == np.uint16
    assert built(documents, vocab_size=65_537).streams["test"].dtype == np.uint32


def test_training_batches_repeat_with_the_seed(documents: Path):
    one, same, other = (list(built(documents, seed=seed).train_dataloader()) for seed in (3, 3, 4))
    assert all(torch.equal(left, right) for left, right in zip(one, same, strict=True))
    assert not all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_prompts_are_held_out_text_and_its_real_continuation(documents: Path):
    data = built(documents)
    prompts, continuations = data.prompts(5, length=20, continuation=10)
    assert prompts.shape == (5, 20) and continuations.shape == (5, 10)
    texts = held_out_documents(data, "test")
    for prompt, continuation in zip(prompts, continuations, strict=True):
        window = data.tokenizer.decode(torch.cat([prompt, continuation]))
        assert any(window in text for text in texts)
    assert torch.equal(data.prompts(5, length=20, continuation=10)[0], prompts)


def test_prompts_cross_documents_only_where_none_is_long_enough():
    stream = np.array([1, 2, 0, 3, 4, 5, 6, 0, 7, 0])
    assert spaced_windows(stream, eos_id=0, count=2, size=3).tolist() == [[3, 4, 5], [4, 5, 6]]
    assert spaced_windows(stream, eos_id=0, count=2, size=6).tolist() == [[1, 2, 0, 3, 4, 5], [0, 3, 4, 5, 6, 0]]


def test_ends_of_documents_are_found_across_the_parts_that_are_looked_at(monkeypatch: pytest.MonkeyPatch):
    stream = np.array([1, 2, 0, 3, 4, 5, 6, 0, 7, 0])
    monkeypatch.setattr(packing, "PART", 4)
    assert packing.document_ends(stream, 0).tolist() == [2, 7, 9]
    assert packing.document_lengths(stream, 0).tolist() == [2, 4, 1]


def fails(match: str, path: Path | str, **options) -> None:
    with pytest.raises(UserError, match=match):
        built(path, **options)


def test_a_missing_path_is_an_error(tmp_path: Path):
    fails("data.path=.*none does not exist .*; give a file, a folder or a hub name", tmp_path / "none")


def test_an_empty_folder_is_an_error(tmp_path: Path):
    fails("is empty; put text, jsonl, csv or parquet files there", tmp_path)


def test_a_missing_column_is_an_error_that_lists_the_columns(documents: Path):
    fails(
        r"data.column=txt is not in data.path=.* \(did you mean 'text'\?\); its columns are text, number",
        documents,
        column="txt",
    )


def test_a_column_of_numbers_is_an_error(documents: Path):
    fails("data.column=number of data.path=.* holds int64, not text", documents, column="number")


@pytest.mark.parametrize("name", ["train.txt", "train.jsonl", "train.csv"])
def test_text_that_is_not_utf_8_is_an_error_that_names_the_file(tmp_path: Path, name: str):
    content = {"txt": "caf\xe9", "jsonl": '{"text": "caf\xe9"}', "csv": "text\ncaf\xe9\n"}[name.split(".")[1]]
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    fails(f"{name} is not UTF-8 text; convert it", tmp_path / name)
    fails(f"{name} is not UTF-8 text; convert it", tmp_path)


def test_a_damaged_file_is_an_error(tmp_path: Path):
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    fails("cannot be read .*; give text, jsonl, csv or parquet files", tmp_path)


def test_a_set_without_train_is_an_error(tmp_path: Path):
    (tmp_path / "test.txt").write_text("only a test")
    fails(r"has no train split, only test; name a file train", tmp_path)


def test_text_shorter_than_one_context_is_an_error_that_names_the_split(documents: Path):
    fails(
        "the train split of .* tokens, one window of data.context=1000000 needs 1000001", documents, context=1_000_000
    )
    (documents / "test.jsonl").write_text(json.dumps({"text": "short", "number": 0}))
    fails("the test split of .* has . tokens, one window of data.context=16 needs 17", documents)


def test_prompts_longer_than_the_split_are_an_error(documents: Path):
    data = built(documents)
    with pytest.raises(UserError, match="the test split of .* is too short for prompts"):
        data.prompts(2, length=10**6)


def test_an_unknown_hub_name_without_a_network_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fails(
        "data.path=nobody/nothing is not a local file or folder, and the Hugging Face hub cannot be reached",
        "nobody/nothing",
    )


def test_a_hub_name_may_carry_a_configuration(documents: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(source.HfApi, "dataset_info", lambda self, name, timeout: asked.append(name))
    loaded = source.load_dataset(str(documents))
    monkeypatch.setattr(source, "load_dataset", lambda *arguments: asked.append(arguments) or loaded)
    built("owner/set:small")
    built("owner/set")
    assert asked == ["owner/set", ("owner/set", "small"), "owner/set", ("owner/set", None)]


def test_an_unwritable_cache_is_an_error(documents: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EDGETRAIN_CACHE", str(documents / "train.jsonl"))
    fails("cannot make the cache folder .*; set EDGETRAIN_CACHE to another folder", documents)


def test_an_interrupted_packing_leaves_no_file(tmp_path: Path):
    def documents():
        yield np.array([1, 2], dtype=np.uint16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(documents(), token_dtype(300), tmp_path / "stream.npy")
    assert list(tmp_path.iterdir()) == []


def test_tinyshakespeare_has_three_splits(monkeypatch: pytest.MonkeyPatch, shared_data: Path | None):
    if shared_data is None or not (shared_data / "tinyshakespeare").is_dir():
        pytest.skip("set EDGETRAIN_DATA to a folder that holds tinyshakespeare")
    monkeypatch.setenv("EDGETRAIN_DATA", str(shared_data))
    facts = built("tinyshakespeare", context=128, vocab_size=512).facts()
    assert 900_000 < facts["train"]["bytes"] < 1_000_000
    assert facts["validation"]["bytes"] == 111_540
    assert 20_000 < facts["test"]["bytes"] < 100_000
