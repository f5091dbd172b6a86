"""Decoding in fixed shapes gives the readable decoders' output, several prompts at once, compiled or not."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from edgetrain.bench.self_speculative import with_identity_tail
from edgetrain.decoding.autoregressive import generate
from edgetrain.decoding.sampling import probabilities
from edgetrain.decoding.self_speculative import SelfSpeculativeStats
from edgetrain.decoding.static import StaticDecoder, StaticSelfSpeculation
from edgetrain.errors import UserError
from edgetrain.models.llama import Llama

NEW = 20


@pytest.fixture(scope="module")
def small() -> Llama:
    torch.manual_seed(0)
    model = Llama(40, dim=16, layers=4, heads=2, kv_heads=1, hidden_dim=32, context=64, tied=False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(40, (length,), generator=generator) for length in (5, 1, 17)]


def reference(model: Llama, prompts: list[Tensor], **options: object) -> list[list[int]]:
    return [list(generate(model, prompt, NEW, **options)) for prompt in prompts]


def test_prompts_of_different_lengths_decode_together(small: Llama, prompts: list[Tensor]) -> None:
    decoder = StaticDecoder(small, batch=4)
    assert decoder.decode(prompts, NEW) == reference(small, prompts)
    assert decoder.decode(prompts[::-1], NEW) == reference(small, prompts[::-1])  # what the last call left is not read


@pytest.mark.parametrize("exit_layer", [1, 3, 4])
def test_prompts_decode_together_from_an_early_exit(small: Llama, prompts: list[Tensor], exit_layer: int) -> None:
    decoder = StaticDecoder(small, exit_layer=exit_layer, batch=3)
    assert decoder.decode(prompts, NEW) == reference(small, prompts, exit_layer=exit_layer)
    with pytest.raises(UserError, match="exit_layer=5 is outside 1 to 4"):
        StaticDecoder(small, exit_layer=5)


@pytest.mark.parametrize("speculating", [False, True])
def test_every_prompt_may_have_a_budget_of_its_own(small: Llama, prompts: list[Tensor], speculating: bool) -> None:
    """A row that has used up its own waits at the end of its cache for the others."""
    long = [torch.arange(30), *prompts[:2]]
    options = {"batch": 4, "length": 32}
    decoder = (
        StaticSelfSpeculation(small, exit_layer=2, draft_length=3, **options)
        if speculating
        else StaticDecoder(small, **options)
    )
    budgets = [2, 7, 31]
    expected = [list(generate(small, prompt, budget)) for prompt, budget in zip(long, budgets, strict=True)]
    assert decoder.decode(long, budgets) == expected
    with pytest.raises(UserError, match="a prompt of 30 tokens and 3 new ones exceed the decoder's length=32"):
        decoder.decode(long, [3, 7, 31])


def test_a_stream_is_the_same_tokens_one_by_one(small: Llama, prompts: list[Tensor]) -> None:
    assert list(StaticDecoder(small, length=40).stream(prompts[0], NEW)) == reference(small, prompts)[0]


@pytest.mark.parametrize("draft_weights", [None, "float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("exit_layer", "draft_length"), [(1, 1), (1, 4), (2, 3), (3, 5)])
def test_self_speculation_does_not_change_the_output(
    small: Llama, prompts: list[Tensor], exit_layer: int, draft_length: int, draft_weights: str | None
) -> None:
    decoder = StaticSelfSpeculation(
        small, exit_layer=exit_layer, draft_length=draft_length, draft_weights=draft_weights, batch=3
    )
    assert decoder.decode(prompts, NEW) == reference(small, prompts)
    assert decoder.stats.emitted == 3 * (NEW - 1)


@pytest.mark.parametrize(("draft_length", "draft_weights"), list(product([1, 3, 4], [None, "float32"])))
def test_an_identity_tail_accepts_every_draft(
    small: Llama, prompts: list[Tensor], draft_length: int, draft_weights: str | None
) -> None:
    model = with_identity_tail(small, 2)
    decoder = StaticSelfSpeculation(model, exit_layer=2, draft_length=draft_length, draft_weights=draft_weights)
    assert decoder.decode(prompts[:1], NEW) == reference(model, prompts[:1])
    rounds = math.ceil((NEW - 1) / (draft_length + 1))
    drafted = NEW - 1 - rounds  # a round adds one token of its own
    assert decoder.stats == SelfSpeculativeStats(rounds, drafted, drafted, NEW - 1)


def test_the_first_layers_copy_reads_the_last_draft_after_a_round_that_stood(small: Llama) -> None:
    # Drafts of a float32 copy are those of the model itself, so every count must agree with the shared form.
    prompt = torch.arange(8)
    counts = []
    for draft_weights in (None, "float32"):
        decoder = StaticSelfSpeculation(small, exit_layer=3, draft_length=2, draft_weights=draft_weights)
        decoder.decode([prompt], 40)
        counts.append(decoder.stats)
    assert counts[0] == counts[1]
    assert 0 < counts[0].accepted < counts[0].drafted


@pytest.mark.parametrize("place", [0, 1, 2, 5, 9])
def test_nothing_follows_the_end_of_text(small: Llama, prompts: list[Tensor], place: int) -> None:
    eos_id = reference(small, prompts)[0][place]
    expected = reference(small, prompts, eos_id=eos_id)
    assert StaticDecoder(small, batch=3).decode(prompts, NEW, eos_id=eos_id) == expected
    decoder = StaticSelfSpeculation(small, exit_layer=3, draft_length=3, batch=3)
    assert decoder.decode(prompts, NEW, eos_id=eos_id) == expected
    assert decoder.stats.emitted == sum(map(len, expected)) - 3


def test_the_whole_context_can_be_filled(small: Llama) -> None:
    prompt = torch.arange(4)
    expected = list(generate(small, prompt, 60))
    assert list(StaticDecoder(small).stream(prompt, 60)) == expected
    assert list(StaticSelfSpeculation(small, exit_layer=1, draft_length=6).stream(prompt, 60)) == expected


def test_an_identity_tail_accepts_every_sampled_draft(small: Llama, prompts: list[Tensor]) -> None:
    decoder = StaticSelfSpeculation(with_identity_tail(small, 2), exit_layer=2, draft_length=3, batch=3)
    decoder.decode(prompts, NEW, temperature=0.5, generator=torch.Generator().manual_seed(3))
    assert decoder.stats.acceptance == 1.0  # p and q are one distribution, so min(1, p/q) is 1


@pytest.mark.parametrize("draft_weights", [None, "int8"])
def test_sampled_tokens_follow_the_full_models_distribution(small: Llama, draft_weights: str | None) -> None:
    batch, temperature = 512, 0.8
    decoder = StaticSelfSpeculation(small, exit_layer=1, draft_length=2, draft_weights=draft_weights, batch=batch)
    generator, prompt = torch.Generator().manual_seed(2), torch.tensor([3, 1, 4])
    outputs = [
        output
        for _ in range(12)
        for output in decoder.decode([prompt] * batch, 3, temperature=temperature, generator=generator)
    ]
    assert 0 < decoder.stats.acceptance < 1
    with torch.inference_mode():
        first = probabilities(small(prompt[None])[:, -1], temperature)[0]
        chi_square_fits([output[0] for output in outputs], first)
        common = int(first.argmax())
        second = probabilities(small(torch.cat([prompt, torch.tensor([common])])[None])[:, -1], temperature)[0]
    chi_square_fits([output[1] for output in outputs if output[0] == common], second)
    with torch.inference_mode():
        pair = (common, int(second.argmax()))
        third = probabilities(small(torch.cat([prompt, torch.tensor(pair)])[None])[:, -1], temperature)[0]
    chi_square_fits([output[2] for output in outputs if tuple(output[:2]) == pair], third)


def chi_square_fits(tokens: list[int], expected: Tensor) -> None:
    """Pearson's statistic over cells with at least five expected, below its 99.9 % quantile (Wilson and Hilferty)."""
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected)).double()
    want = expected.double() * len(tokens)
    large = want >= 5
    rest = (counts[~large].sum() - want[~large].sum()) ** 2 / want[~large].sum().clamp(min=1e-9)
    statistic = ((counts - want)[large] ** 2 / want[large]).sum() + (rest if want[~large].sum() >= 5 else 0)
    free = int(large.sum())
    assert free >= 3 and len(tokens) > 200
    assert statistic < free * (1 - 2 / (9 * free) + 3.09 * math.sqrt(2 / (9 * free))) ** 3


@pytest.mark.slow
@pytest.mark.parametrize("draft_weights", [None, "int8"])
def test_compiled_graphs_give_the_same_tokens(small: Llama, prompts: list[Tensor], draft_weights: str | None) -> None:
    expected = reference(small, prompts)
    assert StaticDecoder(small, batch=3, compiled=True).decode(prompts, NEW) == expected
    decoder = StaticSelfSpeculation(
        small, exit_layer=2, draft_length=2, draft_weights=draft_weights, batch=3, compiled=True
    )
    assert decoder.decode(prompts, NEW) == expected


def test_a_missing_compiler_is_a_sentence(small: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        StaticDecoder(small, compiled=True)


def test_requests_that_do_not_fit_are_a_sentence(small: Llama, prompts: list[Tensor]) -> None:
    with pytest.raises(UserError, match="length=65 is outside 2 to 64"):
        StaticDecoder(small, length=65)
    with pytest.raises(UserError, match="3 prompts were given to a decoder of 1 to 2"):
        StaticDecoder(small, batch=2).decode(prompts, NEW)
    with pytest.raises(UserError, match="exceed the decoder's length=30"):
        StaticDecoder(small, length=30).decode(prompts[2:], NEW)
    with pytest.raises(UserError, match="exit_layer=4 is outside 1 to 3"):
        StaticSelfSpeculation(small, exit_layer=4, draft_length=1)
    with pytest.raises(UserError, match="draft_length=64 must be below 64"):
        StaticSelfSpeculation(small, exit_layer=1, draft_length=64)
