"""The chosen exit layer and draft length are those that the measured costs and acceptances make fastest."""

import pytest
import torch
from torch import Tensor

from edgetrain.bench.self_speculative import with_identity_tail
from edgetrain.decoding.self_speculative import SelfSpeculation, layer_pass_bound
from edgetrain.decoding.tuning import LONGEST_DRAFT, Costs, accepted_a_round, best_choice, measure_costs, tune
from edgetrain.errors import UserError
from edgetrain.models.llama import Llama

FLAT = [1.0] * (LONGEST_DRAFT + 1)


def test_the_speedup_of_a_case_by_hand() -> None:
    costs = Costs(layer=[2.0, 3.0, 4.0], head=[1.0, 1.5, 2.0])
    # Autoregressive: 10 layers and the head, 21. A round of two drafts from 3 layers: 2 (6 + 1) + 6, then 7 * 4 + 2.
    assert costs.speedup(layers=10, exit_layer=3, draft_length=2, tokens=2.5) == pytest.approx(21 * 2.5 / (20 + 30))


def test_when_only_layer_passes_cost_it_is_the_layer_pass_bound() -> None:
    costs = Costs(FLAT, [0.0] * len(FLAT))
    for exit_layer, length, acceptance in ((2, 3, 0.5), (1, 6, 0.9), (7, 2, 0.1)):
        expected = layer_pass_bound(8, exit_layer, length, acceptance)
        assert costs.speedup(8, exit_layer, length, 1 + acceptance * length) == pytest.approx(expected)


def test_sure_drafts_are_long_from_few_layers_and_lost_ones_short() -> None:
    costs = Costs(FLAT, FLAT)
    sure = best_choice(8, costs, {1: [8, 8], 4: [8, 8]})
    assert (sure.exit_layer, sure.draft_length) == (1, LONGEST_DRAFT)
    lost = best_choice(8, costs, {1: [0, 0], 4: [0, 0]})
    assert (lost.exit_layer, lost.draft_length) == (1, 1)
    assert lost.speedup < 1
    # Two drafts stand in every round: the third is in vain.
    assert best_choice(8, costs, {2: [2, 2, 2]}).draft_length == 2


def test_verifying_that_grows_with_the_tokens_shortens_drafts() -> None:
    steep = Costs([1.0, 1.0, 1.0, *[9.0] * 6], FLAT)
    assert best_choice(8, steep, {1: [8]}).draft_length == 2


def test_rounds_are_counted_as_the_decoder_counts_them(model: Llama, held_out: Tensor) -> None:
    prompt, new = held_out[:20], 60
    counts = accepted_a_round(model, prompt[None], new, exit_layer=2)
    decoding = SelfSpeculation(model, prompt, new, exit_layer=2, draft_length=LONGEST_DRAFT)
    emitted = len(list(decoding))
    assert emitted == new
    cut = decoding.stats.rounds - len(counts)  # rounds whose drafts the budget cut
    assert 0 <= cut <= LONGEST_DRAFT
    assert 0 < sum(counts) <= decoding.stats.accepted
    assert sum(counts) + len(counts) >= new - LONGEST_DRAFT - 1


def test_an_identity_tail_is_chosen_with_its_exit(model: Llama, held_out: Tensor) -> None:
    model = with_identity_tail(model, 1)
    prompts = held_out[:40].view(2, 20)
    assert set(accepted_a_round(model, prompts, 40, exit_layer=1)) == {LONGEST_DRAFT}
    choice = tune(model, prompts, 40, exit_layer=1)
    assert choice.exit_layer == 1
    costs = measure_costs(model, 40)
    assert len(costs.layer) == len(costs.head) == LONGEST_DRAFT + 1
    assert min(costs.layer + costs.head) > 0


def test_one_layer_cannot_draft_for_itself() -> None:
    model = Llama(6, dim=16, layers=1, heads=2, kv_heads=1, hidden_dim=32, context=32)
    with pytest.raises(UserError, match="needs a model of at least 2 layers"):
        tune(model, torch.zeros(1, 4, dtype=torch.int64), 8)
