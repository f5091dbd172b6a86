"""Prompts and completions: what is asked for, what is left out, and how splits are parted."""

import json
from pathlib import Path

import pytest
import torch

from edgetrain.data.pairs import PairsData, disjoint_pairs
from edgetrain.errors import UserError
from edgetrain.ops.targets import IGNORED

WORDS = ("wake", "me", "up", "at", "nine", "play", "some", "jazz", "stop", "the", "timer", "call", "mum")


def pair(number: int) -> dict[str, str]:
    words = [WORDS[(number * step) % len(WORDS)] for step in range(1, 5 + number % 3)]
    return {"ask": f"{number} {' '.join(words)}", "parse": f"[IN:DO {' '.join(words)} ]"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """300 pairs for training, 30 in a test file, of which 10 prompts are train's; no validation file."""
    rows = {"train": map(pair, range(300)), "test": map(pair, range(290, 320))}
    for name, pairs in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return tmp_path


def built(folder: Path, **options) -> PairsData:
    settings = {"prompt": "ask", "completion": "parse", "context": 64, "batch_size": 4, "vocab_size": 400}
    data = PairsData(path=str(folder), **(settings | options))
    data.setup()
    return data


def test_the_completion_and_the_end_of_text_are_asked_for_and_nothing_else(folder: Path):
    data = built(folder)
    sample = data.samples("train")[3]
    assert sample.dtype == torch.int64
    assert sample.shape == (2, 64)
    inputs, targets = sample
    chosen = data.pairs("train").pairs[3]
    asked = targets != IGNORED
    assert data.tokenizer.decode(targets[asked]) == f"{chosen.completion}<|endoftext|>"
    first, last = asked.nonzero()[0, 0], asked.nonzero()[-1, 0]
    assert asked[first : last + 1].all()
    assert data.tokenizer.decode(inputs[: first + 1]) == f"{chosen.prompt} =>"
    assert torch.equal(inputs[first + 1 : last + 1], targets[first:last])  # each target is the next input
    assert (inputs[last + 1 :] == data.eos_id).all()


def test_a_prompt_alone_has_the_tokens_that_were_trained_on(folder: Path):
    data = built(folder)
    for chosen in data.pairs("train").pairs[:20]:
        assert data.tokenizer.encode(f"{chosen.prompt} =>") == chosen.prompt_ids.tolist()


def test_no_prompt_is_in_two_splits_and_what_was_dropped_is_counted(folder: Path):
    data = built(folder)
    prompts = {name: {each.prompt for each in data.pairs(name).pairs} for name in ("train", "validation", "test")}
    assert not prompts["train"] & prompts["validation"]
    assert not (prompts["train"] | prompts["validation"]) & prompts["test"]
    facts = data.facts()
    assert facts["test"]["samples"] == 20
    assert facts["test"]["dropped"] == 10
    assert facts["train"]["samples"] + facts["validation"]["samples"] == 300
    assert 5 <= facts["validation"]["samples"] <= 30  # 5 %
    assert any("10 pairs left out because an earlier split holds their prompt" in note for note in data.preview().notes)


def test_the_cut_is_by_prompt_and_does_not_move_when_a_split_is_added():
    rows = [(f"prompt {number % 100}", f"answer {number}") for number in range(1000)]
    alone = disjoint_pairs({"train": rows}, None)
    beside = disjoint_pairs({"train": rows, "validation": [("other", "answer")]}, None)
    for name, (pairs, _) in alone.items():
        assert len(pairs) == 10 * len({prompt for prompt, _ in pairs}), name  # all ten of a prompt stay together
    assert alone["test"] == beside["test"]
    assert sum(len(pairs) for pairs, _ in alone.values()) == 1000


def test_pairs_that_do_not_fit_are_counted_and_never_cut(folder: Path):
    every = built(folder).pairs("test").pairs
    most = sorted({len(each) for each in every})[1]
    data = built(folder, context=most)
    split = data.pairs("test")
    assert [each.prompt for each in split.pairs] == [each.prompt for each in every if len(each) <= most]
    assert [each.prompt for each in split.too_long] == [each.prompt for each in every if len(each) > most]
    assert 0 < data.facts()["test"]["too_long"] < 20


def test_the_order_is_seeded_and_resumes_in_the_middle_of_an_epoch(folder: Path):
    first, again, other = (list(built(folder, seed=seed).train_dataloader()) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    loader, resumed = built(folder).train_dataloader(), built(folder).train_dataloader()
    begun = iter(loader)
    for _ in range(5):
        next(begun)
    resumed.load_state_dict(loader.state_dict())
    assert all(map(torch.equal, resumed, first[5:]))


def test_facts_know_the_corpus(folder: Path):
    facts, fewer = built(folder).facts(), built(folder, limit=20).facts()
    assert facts["corpus_sha256"] == built(folder, seed=5).facts()["corpus_sha256"] != fewer["corpus_sha256"]
    assert facts["train"]["tokens"] == sum(
        len(each.prompt_ids) + len(each.completion_ids) for each in built(folder).pairs("train").pairs
    )


def test_prompts_are_windows_of_the_samples(folder: Path):
    data = built(folder)
    before, after = data.prompts(3, 6, continuation=4)
    assert (before.shape, after.shape) == ((3, 6), (3, 4))
    joined = torch.cat([before, after], dim=1)
    assert not (joined == data.eos_id).any()  # within one sample
    with pytest.raises(UserError, match="too short for prompts"):
        data.prompts(1, 10**6)


def test_rows_without_a_prompt_or_completion_are_no_pairs(folder: Path):
    with (folder / "train.jsonl").open("a") as file:
        file.write('\n{"ask": "", "parse": "x"}\n{"ask": "y", "parse": null}')
    facts = built(folder).facts()
    assert facts["train"]["samples"] + facts["validation"]["samples"] == 300


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt": "asks"}, r"data\.prompt=asks is not in .*did you mean 'ask'"),
        ({"completion": "answer"}, r"data\.completion=answer is not in"),
        ({"context": 4}, r"the train split .* has no pair of at most data\.context=4 tokens"),
        ({"separator": ""}, r"data\.separator is empty"),
        ({"vocab_size": 100}, r"data\.vocab_size=100 is too small"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence(folder: Path, options: dict, sentence: str):
    with pytest.raises(UserError, match=sentence) as raised:
        built(folder, **options)
    assert "\n" not in str(raised.value)


def test_the_real_parses_have_the_published_counts(shared_data: Path | None):
    if shared_data is None:
        pytest.skip("hinglish_top is not here")
    data = built(shared_data / "hinglish_top", prompt="en_query", completion="en_parse", context=128, vocab_size=1024)
    facts = data.facts()
    assert {name: sum(facts[name][key] for key in ("samples", "too_long", "dropped")) for name in data.splits} == {
        "train": 2993,
        "validation": 1390,
        "test": 6513,
    }
    example = data.pairs("train").pairs[0]
    assert example.completion.startswith("[IN:CREATE_ALARM Add a new [SL:PERIOD weekly ]")
