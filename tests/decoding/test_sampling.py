"""The acceptance rule gives exactly the target's distribution, and its corner cases hold."""

import pytest
import torch
from torch import Tensor

from edgetrain.decoding.sampling import (
    accept_or_redraw,
    accepted,
    draw,
    matching_prefix,
    next_token,
    probabilities,
    residual,
)

VOCAB, DRAWS = 7, 80_000


def chi_square_p(counts: Tensor, expected: Tensor) -> float:
    """Survival probability of Pearson's statistic with cells - 1 degrees of freedom."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2.0), statistic / 2).item()


def two_distributions() -> tuple[Tensor, Tensor]:
    """q and p [3, vocab]: draft and target at the first, second and third position, unlike each other."""
    generator = torch.Generator().manual_seed(1)
    return tuple(probabilities(torch.randn(3, VOCAB, generator=generator) * 1.5, 1.0) for _ in range(2))


def test_probabilities_are_the_softmax_at_a_temperature() -> None:
    logits = torch.randn(5, VOCAB)
    torch.testing.assert_close(probabilities(logits, 0.7), (logits / 0.7).softmax(-1))


def test_a_tiny_temperature_is_greedy() -> None:
    logits = torch.randn(50, VOCAB)
    assert probabilities(logits, 1e-30).isfinite().all()
    assert torch.equal(next_token(logits, 1e-30), next_token(logits, 0.0))


def test_temperature_zero_needs_no_generator_and_takes_the_most_probable() -> None:
    assert next_token(torch.tensor([[0.0, 3.0, 1.0], [9.0, 3.0, 1.0]]), 0.0).tolist() == [1, 0]


def test_draws_follow_their_weights() -> None:
    _, p = two_distributions()
    counts = draw(p[0].expand(DRAWS, VOCAB), torch.Generator().manual_seed(0)).bincount(minlength=VOCAB)
    assert chi_square_p(counts, DRAWS * p[0]) > 1e-3


@pytest.mark.parametrize("position", [0, 1])
def test_accepted_and_redrawn_tokens_follow_the_target(position: int) -> None:
    """The vectorised rule: 80,000 drafts from q, judged by p; position 1 counts those whose first draft stood."""
    generator = torch.Generator().manual_seed(2)
    q, p = two_distributions()
    stands = torch.ones(DRAWS, dtype=torch.bool)
    for place in range(position + 1):
        draft, target = q[place].expand(DRAWS, VOCAB), p[place].expand(DRAWS, VOCAB)
        tokens = draw(draft, generator)
        passed = accepted(tokens, draft, target, generator)
        output = torch.where(passed, tokens, draw(residual(draft, target), generator))
        if place < position:
            stands &= passed
    counts = output[stands].bincount(minlength=VOCAB)
    assert counts.sum() > 20_000
    assert 0.2 < passed.float().mean() < 0.9
    assert chi_square_p(counts, counts.sum() * p[position]) > 1e-3


def test_acceptance_probability_is_one_minus_the_total_variation() -> None:
    q, p = two_distributions()
    generator = torch.Generator().manual_seed(3)
    draft, target = q[0].expand(DRAWS, VOCAB), p[0].expand(DRAWS, VOCAB)
    share = accepted(draw(draft, generator), draft, target, generator).float().mean()
    torch.testing.assert_close(share, torch.minimum(q[0], p[0]).sum(), atol=0.01, rtol=0)


def test_one_round_of_two_drafts_follows_the_target_at_both_positions() -> None:
    """`accept_or_redraw` itself, one round at a time: the first token always, the second where there is one."""
    generator = torch.Generator().manual_seed(4)
    q, p = two_distributions()
    counts = torch.zeros(2, VOCAB)
    for _ in range(6000):
        tokens = draw(q[:2], generator)
        count, following = accept_or_redraw(tokens, q[:2], p, generator)
        for place, token in enumerate([*tokens[:count].tolist(), following.item()][:2]):
            counts[place, token] += 1
    for place in range(2):
        assert chi_square_p(counts[place], counts[place].sum() * p[place]) > 1e-3


def test_equal_distributions_always_accept() -> None:
    q, _ = two_distributions()
    tokens = draw(q[:2])
    for _ in range(200):
        assert accept_or_redraw(tokens, q[:2], q)[0] == 2


def test_a_token_that_the_draft_calls_impossible_passes_when_the_target_does_not() -> None:
    draft, target = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.3, 0.7]])
    assert accepted(torch.tensor([0]), draft, target).item()


def test_a_token_that_the_target_calls_impossible_never_passes() -> None:
    draft, target = torch.tensor([[0.5, 0.5]]).expand(500, 2), torch.tensor([[0.0, 1.0]]).expand(500, 2)
    assert not accepted(torch.zeros(500, dtype=torch.int64), draft, target).any()


def test_the_residual_is_the_normalised_excess_of_the_target() -> None:
    draft, target = torch.tensor([0.5, 0.4, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    torch.testing.assert_close(residual(draft, target), torch.tensor([0.0, 1 / 3, 2 / 3]))


def test_a_residual_of_zeros_falls_back_to_the_target() -> None:
    target = torch.tensor([0.25, 0.75])
    assert torch.equal(residual(target, target), target)


def test_greedy_acceptance_is_the_rule_on_one_hot_distributions() -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(50):
        drafted, verified = torch.randint(2, (4,), generator=generator), torch.randint(2, (5,), generator=generator)
        one_hot = [torch.nn.functional.one_hot(tokens, 2).float() for tokens in (drafted, verified)]
        count, following = accept_or_redraw(drafted, *one_hot)
        assert count == matching_prefix(drafted.tolist(), verified.tolist())
        assert following.item() == verified[count]


def test_nothing_drafted_draws_from_the_target() -> None:
    target = torch.tensor([[0.0, 0.0, 1.0]])
    count, following = accept_or_redraw(torch.zeros(0, dtype=torch.int64), target[:0], target)
    assert (count, following.tolist()) == (0, [2])
