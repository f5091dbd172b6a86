"""Self-speculative decoding gives the full model's output, in fewer passes; the counts and the cache are exact."""

import copy
import math
from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from edgetrain.decoding.autoregressive import generate
from edgetrain.decoding.self_speculative import SelfSpeculation, SelfSpeculativeStats, layer_pass_bound
from edgetrain.errors import UserError
from edgetrain.models.llama import Llama

PROMPT_LENGTHS = [1, 2, 7, 50, 200]
NEW = 24


def greedy(model: Llama, prompt: Tensor, new: int, **options: object) -> list[int]:
    return list(generate(model, prompt, new, **options))


def uncached_greedy(model: Llama, prompt: Tensor, new: int, exit_layer: int | None = None) -> list[int]:
    """The slow reference: every token from a forward over everything before it."""
    tokens = prompt[None]
    with torch.inference_mode():
        for _ in range(new):
            states = model.run_layers(model.embed(tokens), 0, exit_layer or model.layers)
            tokens = torch.cat([tokens, model.head(states[:, -1:]).argmax(-1)], dim=1)
    return tokens[0, len(prompt) :].tolist()


def with_tail(model: Llama, exit_layer: int, tail: str) -> Llama:
    """A copy whose layers from exit_layer on are the identity, or random."""
    model = copy.deepcopy(model)
    torch.manual_seed(3)
    for layer in model.model.layers[exit_layer:]:
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            torch.nn.init.zeros_(weight) if tail == "identity" else torch.nn.init.normal_(weight, std=1.0)
    return model


def tiny(vocab_size: int = 6) -> Llama:
    """Untrained, with logits that differ clearly between exits."""
    torch.manual_seed(0)
    model = Llama(vocab_size, dim=16, layers=3, heads=2, kv_heads=1, hidden_dim=32, context=32, tied=False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.35)
    return model.eval()


@pytest.mark.parametrize("length", PROMPT_LENGTHS)
def test_autoregressive_equals_decoding_without_a_cache(model: Llama, held_out: Tensor, length: int) -> None:
    assert greedy(model, held_out[:length], NEW) == uncached_greedy(model, held_out[:length], NEW)


@pytest.mark.parametrize("exit_layer", [1, 2, 3, 4])
def test_early_exit_equals_the_model_cut_after_that_layer(model: Llama, held_out: Tensor, exit_layer: int) -> None:
    prompt = held_out[:9]
    assert greedy(model, prompt, NEW, exit_layer=exit_layer) == uncached_greedy(model, prompt, NEW, exit_layer)


def test_autoregressive_equals_transformers_greedy_generate(model: Llama, held_out: Tensor) -> None:
    peer = transformers_twin(model)
    prompt = held_out[100:140]
    peers = peer.generate(prompt[None], max_new_tokens=NEW, do_sample=False, pad_token_id=0)[0, len(prompt) :].tolist()
    assert greedy(model, prompt, NEW) == peers
    assert list(SelfSpeculation(model, prompt, NEW, exit_layer=2, draft_length=4)) == peers


def transformers_twin(model: Llama) -> LlamaForCausalLM:
    attention = model.model.layers[0].self_attn
    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=model.layers,
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.kv_heads,
        max_position_embeddings=model.context,
        rms_norm_eps=model.norm_eps,
        rope_theta=model.rope_theta,
        tie_word_embeddings=model.tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    peer = LlamaForCausalLM(config).eval()
    peer.load_state_dict(model.state_dict())
    return peer


@pytest.mark.parametrize("length", PROMPT_LENGTHS)
def test_self_speculative_output_equals_greedy(model: Llama, held_out: Tensor, length: int) -> None:
    prompt = held_out[50 : 50 + length]
    expected = greedy(model, prompt, NEW)
    for exit_layer, draft_length in product([1, 2, 3], range(1, 9)):
        decoding = SelfSpeculation(model, prompt, NEW, exit_layer=exit_layer, draft_length=draft_length)
        assert list(decoding) == expected, (exit_layer, draft_length)


def test_the_early_exits_of_the_trained_model_are_neither_useless_nor_perfect(model: Llama, held_out: Tensor) -> None:
    decoding = SelfSpeculation(model, held_out[:64], 100, exit_layer=2, draft_length=4)
    list(decoding)
    assert 0.1 < decoding.stats.acceptance < 1.0


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 9])
def test_the_budget_is_exact(model: Llama, held_out: Tensor, budget: int) -> None:
    expected = greedy(model, held_out[:20], 9)[:budget]
    for draft_length in (1, 3, 8):
        decoding = SelfSpeculation(model, held_out[:20], budget, exit_layer=2, draft_length=draft_length)
        assert list(decoding) == expected
        assert len(greedy(model, held_out[:20], budget)) == decoding.stats.emitted == budget


def test_a_request_may_fill_the_context_to_the_last_token(model: Llama, held_out: Tensor) -> None:
    prompt, new = held_out[: model.context - 5], 5
    assert list(SelfSpeculation(model, prompt, new, exit_layer=1, draft_length=8)) == greedy(model, prompt, new)


def test_both_stop_after_the_end_of_text_wherever_it_falls(model: Llama, held_out: Tensor) -> None:
    """Each token of the output in turn is taken for the end of text: drafted, corrected and bonus ones."""
    prompt = held_out[300:320]
    full = greedy(model, prompt, NEW)
    for eos_id in sorted(set(full)):
        expected = full[: full.index(eos_id) + 1]
        assert greedy(model, prompt, NEW, eos_id=eos_id) == expected
        for exit_layer, draft_length in product([1, 2, 3], [1, 3, 8]):
            options = {"exit_layer": exit_layer, "draft_length": draft_length, "eos_id": eos_id}
            assert list(SelfSpeculation(model, prompt, NEW, **options)) == expected


def test_drafting_stops_at_a_drafted_end_of_text(model: Llama, held_out: Tensor) -> None:
    same = with_tail(model, 2, "identity")
    full = greedy(same, held_out[:30], NEW)
    place = next(index for index in range(2, 8) if full[index] not in full[:index])
    decoding = SelfSpeculation(same, held_out[:30], NEW, exit_layer=2, draft_length=8, eos_id=full[place])
    assert list(decoding) == full[: place + 1]
    assert decoding.stats == SelfSpeculativeStats(1, place + 1, place + 1, place + 1)


@pytest.mark.parametrize("exit_layer", [1, 2, 3])
@pytest.mark.parametrize("draft_length", [1, 3, 5, 8])
def test_an_identity_tail_accepts_everything(
    model: Llama, held_out: Tensor, exit_layer: int, draft_length: int
) -> None:
    same = with_tail(model, exit_layer, "identity")
    for new in (2 * (draft_length + 1), 23):
        decoding = SelfSpeculation(same, held_out[:11], new, exit_layer=exit_layer, draft_length=draft_length)
        assert list(decoding) == greedy(same, held_out[:11], new)
        assert decoding.stats.acceptance == 1.0
        assert decoding.stats.rounds == math.ceil(new / (draft_length + 1))
        assert decoding.stats.drafted + decoding.stats.rounds == new
        if new % (draft_length + 1) == 0:
            assert decoding.stats.tokens_per_round == draft_length + 1
        assert {source for _, source in decoding.trace} <= {"drafted", "bonus"}


@pytest.mark.parametrize("exit_layer", [1, 2, 3])
def test_a_random_tail_still_gives_the_full_models_output(model: Llama, held_out: Tensor, exit_layer: int) -> None:
    other = with_tail(model, exit_layer, "random")
    expected = greedy(other, held_out[:40], NEW)
    decoding = SelfSpeculation(other, held_out[:40], NEW, exit_layer=exit_layer, draft_length=4)
    assert list(decoding) == expected
    assert decoding.stats.accepted < decoding.stats.drafted


def test_trace_and_counts_agree(model: Llama, held_out: Tensor) -> None:
    decoding = SelfSpeculation(model, held_out[:40], 60, exit_layer=2, draft_length=4)
    tokens = list(decoding)
    sources = [source for _, source in decoding.trace]
    assert [token for token, _ in decoding.trace] == tokens
    assert sources.count("drafted") == decoding.stats.accepted
    assert sources.count("corrected") + sources.count("bonus") == decoding.stats.rounds
    assert decoding.stats.emitted == 60 == decoding.stats.accepted + decoding.stats.rounds
    # One d+1 apart: a bonus comes only after d drafts that stood (the last round may be cut).
    runs = "".join(source[0] for source in sources).replace("b", "b ").replace("c", "c ").split()
    assert all(run.count("d") == 4 for run in runs[:-1] if run.endswith("b"))
    assert all(run.count("d") < 4 for run in runs if run.endswith("c"))


def test_every_position_passes_every_layer_once_unless_rejected(model: Llama, held_out: Tensor) -> None:
    """No second prefill: tokens through the first and the last layer are the prompt, the drafts, and one a round."""
    passed = {0: 0, model.layers - 1: 0}

    def count(index: int) -> object:
        def hook(module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            passed[index] += output.shape[1]

        return model.model.layers[index].register_forward_hook(hook)

    handles = [count(index) for index in passed]
    decoding = SelfSpeculation(model, held_out[:50], 40, exit_layer=2, draft_length=4)
    list(decoding)
    for handle in handles:
        handle.remove()
    tokens = 50 + decoding.stats.drafted + decoding.stats.rounds - 1
    assert passed == {0: tokens, model.layers - 1: tokens}


def test_logits_from_kept_exit_states_equal_a_full_forward(model: Llama, held_out: Tensor, monkeypatch: object) -> None:
    """Every verify of a whole decoding, in float64, against a forward over prompt, output and drafts."""
    double = copy.deepcopy(model).double()
    prompt = held_out[:33]
    seen = []
    original = SelfSpeculation._verify

    def spy(self: SelfSpeculation, cache: object, draft: object, position: int) -> Tensor:
        logits = original(self, cache, draft, position)
        decided = torch.cat([prompt, torch.tensor([token for token, _ in self.trace], dtype=torch.int64)])
        seen.append((torch.cat([decided, *draft.tokens]), logits))
        return logits

    monkeypatch.setattr(SelfSpeculation, "_verify", spy)
    list(SelfSpeculation(double, prompt, NEW, exit_layer=2, draft_length=3))
    assert len(seen) > 3
    with torch.no_grad():
        for tokens, logits in seen:
            full = double(tokens[None])[0, -len(logits) :]
            torch.testing.assert_close(logits, full, atol=1e-12, rtol=0)


@pytest.mark.parametrize("exit_layer", [1, 2])
def test_sampled_pairs_follow_the_full_model(exit_layer: int) -> None:
    """End to end at temperature 0.8: the joint distribution of the first two tokens, chi-square."""
    model, prompt, temperature, draws = tiny(4), torch.tensor([1, 3, 0]), 0.8, 1200
    with torch.no_grad():
        first = (model(prompt[None])[0, -1] / temperature).softmax(-1)
        after = torch.stack([model(torch.cat([prompt, torch.tensor([t])])[None])[0, -1] for t in range(4)])
    joint = (first[:, None] * (after / temperature).softmax(-1)).flatten()
    generator = torch.Generator().manual_seed(0)
    counts, total = torch.zeros(16), SelfSpeculativeStats()
    for _ in range(draws):
        options = {"exit_layer": exit_layer, "draft_length": 2, "temperature": temperature, "generator": generator}
        decoding = SelfSpeculation(model, prompt, 3, **options)
        a, b, _ = decoding
        counts[4 * a + b] += 1
        total += decoding.stats
    assert 0.1 < total.acceptance < 0.95
    statistic = ((counts - draws * joint) ** 2 / (draws * joint)).sum()
    assert torch.special.gammaincc(torch.tensor(15 / 2.0), statistic / 2) > 1e-3


def test_an_identity_tail_accepts_everything_when_sampling_too(model: Llama, held_out: Tensor) -> None:
    same = with_tail(model, 2, "identity")
    decoding = SelfSpeculation(same, held_out[:11], 40, exit_layer=2, draft_length=4, temperature=0.6)
    assert len(list(decoding)) == 40
    assert decoding.stats.acceptance > 0.9  # q and p differ by rounding only


def test_sampling_is_repeatable_with_a_seed(model: Llama, held_out: Tensor) -> None:
    def sample(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        options = {"exit_layer": 2, "draft_length": 3, "temperature": 1.0, "generator": generator}
        return list(SelfSpeculation(model, held_out[:10], 20, **options))

    assert sample(0) == sample(0) != sample(1)


def test_tokens_arrive_before_the_decoding_ends(model: Llama, held_out: Tensor) -> None:
    decoding = SelfSpeculation(model, held_out[:10], 40, exit_layer=2, draft_length=3)
    next(iter(decoding))
    assert decoding.stats.rounds == 1
    assert not torch.is_inference_mode_enabled()
    next(generate(model, held_out[:10], 40))
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("prompt", "new", "options", "message"),
    [
        (0, 5, {}, "prompt is empty"),
        (256, 5, {}, "has 256 tokens, which leaves no room in the model's context of 256"),
        (250, 7, {}, "prompt of 250 tokens and 7 new ones are 257.*at most 6 new"),
        (5, 0, {}, "0 new tokens"),
        (5, 5, {"temperature": -1.0}, "temperature=-1.0 is below 0"),
        (5, 5, {"exit_layer": 0}, "exit_layer=0 is outside 1 to 3"),
        (5, 5, {"exit_layer": 4}, "exit_layer=4 is outside 1 to 3"),
        (5, 5, {"draft_length": 0}, "draft_length=0 must be at least 1"),
    ],
)
def test_a_request_that_does_not_fit_is_a_sentence(
    model: Llama, prompt: int, new: int, options: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        SelfSpeculation(
            model, torch.zeros(prompt, dtype=torch.int64), new, **{"exit_layer": 2, "draft_length": 3} | options
        )


def test_an_early_exit_outside_the_model_is_a_sentence(model: Llama) -> None:
    for exit_layer in (0, 5):
        with pytest.raises(UserError, match=f"exit_layer={exit_layer} is outside 1 to 4"):
            generate(model, torch.zeros(1, dtype=torch.int64), 1, exit_layer=exit_layer)


@pytest.mark.parametrize(
    ("layers", "exit_layer", "draft_length", "acceptance", "bound"),
    [
        (32, 8, 12, 0.689, 2.32),  # Llama2 7B, CNN/DM: the paper's Table 3 measures 1.86
        (32, 8, 6, 0.671, 2.01),
        (40, 15, 12, 0.745, 1.81),
        (24, 6, 8, 0.760, 2.36),
    ],
)
def test_the_bound_of_published_settings(
    layers: int, exit_layer: int, draft_length: int, acceptance: float, bound: float
) -> None:
    assert layer_pass_bound(layers, exit_layer, draft_length, acceptance) == pytest.approx(bound, abs=0.005)


def test_the_bound_is_the_ratio_of_layer_passes(model: Llama, held_out: Tensor) -> None:
    decoding = SelfSpeculation(model, held_out[:50], 80, exit_layer=1, draft_length=4)
    list(decoding)
    stats = decoding.stats
    passes = stats.drafted * 1 + stats.rounds * 4
    bound = layer_pass_bound(4, 1, stats.drafted / stats.rounds, stats.acceptance)
    assert bound == pytest.approx(80 * 4 / passes)


def test_break_even_is_where_acceptance_equals_the_share_of_layers() -> None:
    for draft_length in (1, 4, 12):
        assert layer_pass_bound(8, 2, draft_length, 0.25) == pytest.approx(1.0)
