"""Texts of many prompts at once, as one prompt at a time writes them, and where they end."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edgetrain.decoding.autoregressive import generate
from edgetrain.errors import UserError
from edgetrain.evaluation import generation
from edgetrain.evaluation.generation import continuations, continued, cut
from edgetrain.evaluation.humaneval import STOP


@pytest.mark.parametrize("exit_layer", [None, 2])
def test_batched_texts_equal_those_of_one_prompt_at_a_time(loaded: Any, exit_layer: int | None) -> None:
    tokenizer, model = loaded.data.tokenizer, loaded.model
    texts = ["def", "def function_1_2(value):", "    return value + 3", "return", "def function"]
    prompts = [tokenizer.encode(text) for text in texts]
    found = dict(continuations(model, tokenizer, prompts, 12, exit_layer=exit_layer, batch_size=2))
    for index, prompt in enumerate(prompts):
        tokens = list(generate(model, torch.tensor(prompt), 12, exit_layer=exit_layer))
        assert found[index] == tokenizer.decode(tokens)
    stop = found[0][2:4]
    assert dict(continuations(model, tokenizer, prompts, 12, exit_layer=exit_layer, stop=[stop]))[0] == cut(
        found[0], [stop]
    )


def test_a_text_ends_before_its_first_stop_sequence() -> None:
    assert cut("    return 1\n\nprint(f(2))\n\ndef g():", STOP) == "    return 1\n"
    assert cut("    return 1\n    # still inside\n", STOP) == "    return 1\n    # still inside\n"
    assert cut("plain", STOP) == "plain" and cut("abcd", ["cd", "bc"]) == "a"


def test_the_end_of_text_ends_a_text_and_is_not_in_it(loaded: Any) -> None:
    """A token of the greedy text stands in for the end of text."""
    tokenizer, model = loaded.data.tokenizer, loaded.model
    prompt = tokenizer.encode("def function_1")
    tokens = list(generate(model, torch.tensor(prompt), 12))
    end = tokens[4]
    before = tokens[: tokens.index(end)]
    assert dict(continuations(model, tokenizer, [prompt], 12, eos_id=end)) == {0: tokenizer.decode(before)}


def test_decoding_stops_when_every_text_of_a_batch_has_ended(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    chunks = generation.StaticDecoder.chunks
    monkeypatch.setattr(
        generation.StaticDecoder, "chunks", lambda *a, **k: (steps.append(1) or part for part in chunks(*a, **k))
    )
    prompts = [loaded.data.tokenizer.encode("def function_1")]
    ((_, whole),) = continuations(loaded.model, loaded.data.tokenizer, prompts, 12)
    assert len(steps) == 12
    steps.clear()
    list(continuations(loaded.model, loaded.data.tokenizer, prompts, 12, stop=[whole[0]]))
    assert len(steps) == 1


def test_a_space_at_the_beginning_of_a_continuation_is_kept() -> None:
    """SentencePiece writes a space as part of the next word, and drops the first one of a text."""
    words = {"▁def": 0, "▁return": 1, "▁": 2, ":": 3, "</s>": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=":"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)
    assert wrapped.decode([1]) == "return"
    assert continued(wrapped, [0, 3][-1:], [1, 3, 4], eos_id=4) == " return:"


def test_no_prompt_is_no_text_and_too_long_a_one_a_sentence(loaded: Any) -> None:
    assert list(continuations(loaded.model, loaded.data.tokenizer, [], 4)) == []
    with pytest.raises(UserError, match="a prompt of 31 tokens and 4 new ones are 35, more than"):
        list(continuations(loaded.model, loaded.data.tokenizer, [[5] * 31], 4))
