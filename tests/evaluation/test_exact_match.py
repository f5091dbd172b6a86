"""Exact match by exit, against answers that were decoded one prompt at a time."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgetrain.data.pairs import Pair, PairSplit
from edgetrain.decoding.autoregressive import generate
from edgetrain.decoding.static import StaticDecoder
from edgetrain.errors import UserError
from edgetrain.evaluation import exact_match
from edgetrain.evaluation.exact_match import UNFINISHED, ExactMatch, answer, decode, normal, spaced
from edgetrain.folder import RunFolder
from edgetrain.models.llama import Llama
from edgetrain.spread import wilson_interval

VOCAB, LAYERS, CONTEXT, NEW, EOS = 20, 4, 24, 10, 0


class Letters:
    """Token 1 is a space, 2 to 19 are letters."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(" " if token == 1 else chr(ord("a") + token) for token in tokens)


@pytest.fixture(scope="module")
def model() -> Llama:
    """Random weights, large enough that the exits disagree and that some answers end."""
    torch.manual_seed(2)
    model = Llama(VOCAB, dim=16, layers=LAYERS, heads=2, kv_heads=1, hidden_dim=32, context=CONTEXT, tied=False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(20)
    return model.eval()


def prompts(count: int = 30) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, CONTEXT - 3, (count,), generator=generator).tolist()
    return [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]


def slow_answer(model: Llama, prompt: torch.Tensor, layer: int) -> list[int]:
    room = min(NEW, CONTEXT - len(prompt))
    return list(generate(model, prompt, room, eos_id=EOS, exit_layer=layer))


def data_of(pairs: list[tuple[torch.Tensor, str]], too_long: int = 0) -> SimpleNamespace:
    """A data module whose expected completions are those given."""
    made = [Pair("?", text, prompt.numpy(), np.array([EOS])) for prompt, text in pairs]
    longer = [Pair("?", "", np.ones(CONTEXT, dtype=int), np.array([EOS]))] * too_long
    split = PairSplit(made, longer)
    return SimpleNamespace(pairs=lambda name: split, tokenizer=Letters(), eos_id=EOS, context=CONTEXT)


def test_answers_in_batches_are_those_of_one_prompt_at_a_time(model: Llama) -> None:
    for layer in (1, 3, LAYERS):
        outputs, _ = decode(StaticDecoder(model, exit_layer=layer, batch=7), prompts(), NEW, EOS)
        assert outputs == [slow_answer(model, prompt, layer) for prompt in prompts()]


def test_each_exits_share_is_of_the_answers_that_it_gives(model: Llama, tmp_path: Path) -> None:
    """The expected texts are exit 2's own answers for every third prompt, the last exit's for another third."""
    texts = {layer: [slow_answer(model, prompt, layer) for prompt in prompts()] for layer in (2, LAYERS)}
    pairs = []
    for index, prompt in enumerate(prompts()):
        wanted = texts[2][index] if index % 3 == 0 else texts[LAYERS][index] if index % 3 == 1 else [5] * 11
        pairs.append((prompt, Letters().decode(wanted[:-1]) if wanted[-1] == EOS else "never"))
    expected = {
        layer: sum(answer(Letters(), slow_answer(model, prompt, layer), EOS) == normal(text) for prompt, text in pairs)
        for layer in (1, 2, LAYERS)
    }
    assert 0 < expected[2] < len(pairs)  # else nothing is tested
    assert expected[2] != expected[LAYERS]
    trained = SimpleNamespace(model=model, data=data_of(pairs, too_long=10))
    metrics = ExactMatch([2, 1], samples=None, new_tokens=NEW, draft_length=3).measure(trained, RunFolder(tmp_path))
    assert metrics["exact_match/n"] == 40
    assert metrics["exact_match/too_long"] == 10
    assert metrics["exact_match/exit_1"] == expected[1] / 40
    assert metrics["exact_match/exit_2"] == expected[2] / 40
    assert metrics["exact_match/last"] == expected[LAYERS] / 40
    low, high = wilson_interval(expected[2] / 40, 40)
    assert (metrics["exact_match/exit_2_low"], metrics["exact_match/exit_2_high"]) == (low, high)
    table = RunFolder(tmp_path).read_table("exact_match")
    assert [int(row["layer"]) for row in table] == [1, 2, LAYERS]
    unfinished = sum(slow_answer(model, prompt, LAYERS)[-1] != EOS for prompt in prompts())
    assert int(table[-1]["unfinished"]) == unfinished > 0
    assert (tmp_path / "figures" / "exact_match.png").is_file()


def test_self_speculative_answers_are_the_last_exits_and_differences_are_counted(
    model: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = SimpleNamespace(model=model, data=data_of([(prompt, "x") for prompt in prompts()]))
    measure = ExactMatch([1, 2, 3], samples=None, new_tokens=NEW, draft_length=4)
    metrics = measure.measure(trained, RunFolder(tmp_path))
    assert metrics["exact_match/mismatches"] == 0
    assert all(0 <= metrics[f"exact_match/acceptance_{layer}"] < 1 for layer in (1, 2, 3))

    class Wrong(exact_match.StaticSelfSpeculation):
        def decode(self, *arguments: object, **options: object) -> list[list[int]]:
            return [[*output[:-1], 19] for output in super().decode(*arguments, **options)]

    monkeypatch.setattr(exact_match, "StaticSelfSpeculation", Wrong)
    wrong = measure.measure(trained, RunFolder(tmp_path))["exact_match/mismatches"]
    assert wrong == 3 * sum(slow_answer(model, prompt, LAYERS)[-1] != 19 for prompt in prompts())


def test_an_identity_tail_accepts_every_draft(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Llama(VOCAB, dim=16, layers=LAYERS, heads=2, kv_heads=1, hidden_dim=32, context=CONTEXT).eval()
    for block in model.model.layers[2:]:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    trained = SimpleNamespace(model=model, data=data_of([(prompt, "x") for prompt in prompts(9)]))
    measure = ExactMatch([2], samples=None, new_tokens=NEW, draft_length=3)
    assert measure.measure(trained, RunFolder(tmp_path))["exact_match/acceptance_2"] == 1.0


def test_text_is_compared_with_white_space_made_normal() -> None:
    assert normal("  a [b \n c]\t") == "a [b c]"
    assert normal("a[b") != normal("a [b")
    assert answer(Letters(), [2, 1, 1, 3, EOS], EOS) == "c d"
    assert answer(Letters(), [2, 3], EOS) == UNFINISHED != normal(UNFINISHED + "x")


def test_samples_are_evenly_spaced() -> None:
    assert spaced(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert spaced(list(range(3)), 5) == [0, 1, 2] == spaced([0, 1, 2], None)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"exit_layers": [4]}, "exit_layer=4 is outside 1 to 3"),
        ({"exit_layers": [0]}, "exit_layer=0 is outside 1 to 3"),
        ({"exit_layers": [1], "draft_length": 0}, "draft_length=0"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused_before_training(
    model: Llama, settings: dict, sentence: str
) -> None:
    with pytest.raises(UserError, match=f"measure.exact_match: {sentence}"):
        ExactMatch(**settings).check(model)


def test_other_models_other_data_and_no_samples_are_refused(model: Llama, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not Linear"):
        ExactMatch([]).check(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="SimpleNamespace has no pairs"):
        ExactMatch([]).measure(SimpleNamespace(model=model, data=SimpleNamespace()), RunFolder(tmp_path))
    for key in ("samples", "new_tokens"):
        with pytest.raises(UserError, match=f"{key}=0 must be at least 1"):
            ExactMatch([], **{key: 0})
