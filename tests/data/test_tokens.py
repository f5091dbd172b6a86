import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from edgetrain.data.stream import Place
from edgetrain.data.tokenizer import train_tokenizer, wrap_tokenizer
from edgetrain.data.tokens import TokenStream
from edgetrain.errors import UserError


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    wrap_tokenizer(train_tokenizer([["ab"]], 300)).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def line(number: int) -> list[int]:
    return np.random.default_rng(number).integers(1, 257, size=20 + number % 13).tolist()


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """The authors' layout: a folder a machine, jsonl files with token_ids."""
    for node in (1, 2):
        folder = tmp_path / "basepath" / str(node)
        folder.mkdir(parents=True)
        lines = [json.dumps({"token_ids": line(100 * node + number)}) for number in range(100)]
        (folder / "x.jsonl").write_text("\n".join(lines))
    return tmp_path / "basepath"


def built(path: Path, tokenizer: str, **options) -> TokenStream:
    arguments = {"context": 16, "batch_size": 4, "vocab_size": 258, "shuffle": 1, "workers": 0} | options
    data = TokenStream(path=str(path), tokenizer=tokenizer, **arguments)
    data.setup()
    return data


def test_all_lines_are_joined_as_they_are_and_read_again_and_again(nodes: Path, tokenizer: str):
    data = built(nodes, tokenizer)
    held_out = {tuple(part) for part in held_out_lines(data)}
    kept = [line(number) for number in range(100, 300) if tuple(line(number)) not in held_out]
    assert sum(len(each.keys) for each in data.contents.values()) == len(held_out)
    assert 2 <= len(held_out) <= 40 and len(kept) + len(held_out) == 200
    expected = [token for ids in kept * 2 for token in ids]
    windows = [window for _, window in islice(data.train_windows().windows(0, Place()), len(expected) // 16 - 1)]
    for index, window in enumerate(windows):
        assert window.tolist() == expected[16 * index : 16 * index + 17]


def held_out_lines(data: TokenStream) -> list[list[int]]:
    """Cut where the lines of the set begin: no ids stand between them."""
    lines = [line(number) for number in range(100, 300)]
    found = []
    for stream in data.streams.values():
        ids = stream.tolist()
        while ids:
            (first,) = [each for each in lines if ids[: len(each)] == each]
            found.append(first)
            ids = ids[len(first) :]
    return found


def test_batches_and_facts(nodes: Path, tokenizer: str):
    data = built(nodes, tokenizer, workers=1)
    assert next(iter(data.train_dataloader())).shape == (4, 17)
    facts = data.facts()
    assert facts["train"] == {"files": 2} and facts["bytes_per_token"] > 0
    assert data.prompts(2, 8, continuation=4)[0].shape == (2, 8)
    assert len(data.preview(3).samples) == 3


@pytest.mark.parametrize(("ids", "wrong"), [([5, 258], 258), ([5, -1], -1), ([70_000], 70_000), ([5, None], -1)])
def test_an_id_outside_the_vocabulary_is_an_error(nodes: Path, tokenizer: str, ids: list, wrong: int):
    file = nodes / "2" / "x.jsonl"
    file.write_text(file.read_text() + "\n" + json.dumps({"token_ids": ids}))
    with pytest.raises(UserError, match=f"holds the token id {wrong}, outside data.vocab_size=258; set"):
        built(nodes, tokenizer)


def test_text_where_ids_should_be_is_an_error(tmp_path: Path, tokenizer: str):
    (tmp_path / "x.jsonl").write_text('{"token_ids": "to be"}\n')
    with pytest.raises(UserError, match="data.column=token_ids of .* holds string, not lists of token ids"):
        built(tmp_path / "x.jsonl", tokenizer)


def test_a_line_is_a_document(nodes: Path, tokenizer: str):
    data = built(nodes, tokenizer)
    table = next(data.sources["train"].tables(1, 5, first=2))
    assert [ids.tolist() for ids in data.documents().read(table)] == [line(number) for number in range(210, 215)]


def test_empty_and_missing_lists_are_left_out(tmp_path: Path, tokenizer: str):
    rows = [[1, 2], [], None, [3], [4, 5, 6]]
    (tmp_path / "lines").mkdir()
    for name in ("train", "validation", "test"):
        content = rows if name == "train" else [[ord(letter) for letter in name] * 9]
        lines = "".join(json.dumps({"token_ids": ids}) + "\n" for ids in content)
        (tmp_path / "lines" / f"{name}.jsonl").write_text(lines)
    data = built(tmp_path / "lines", tokenizer, context=5)
    (_, first), (_, second) = islice(data.train_windows().windows(0, Place()), 2)
    assert first.tolist() == [1, 2, 3, 4, 5, 6] and second.tolist() == [6, 1, 2, 3, 4, 5]
