"""From logits to tokens, and the acceptance rule of speculative sampling, as pure functions.

The rule is that of Leviathan et al. 2023 (arXiv 2211.17192, section 2.3 and appendix A.1): with drafts drawn from q and
judged by p, what comes out is distributed exactly as p, whatever q is. LayerSkip's paper decodes greedily; this is the
form that any temperature above 0 needs.
"""

import torch
from torch import Generator, Tensor


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) in float32, same shape [..., vocab]; temperature must be above 0."""
    logits = logits.float()
    # Relative to the largest logit, so that a tiny temperature gives a one-hot row and not inf - inf.
    return ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)


def draw(weights: Tensor, generator: Generator | None = None) -> Tensor:
    """One index for each row of non-negative weights [rows, vocab]: int64 [rows]."""
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)


def next_token(logits: Tensor, temperature: float, generator: Generator | None = None) -> Tensor:
    """int64 [rows] from logits [rows, vocab]: the most probable token at temperature 0, else a random one."""
    return logits.argmax(-1) if temperature == 0 else draw(probabilities(logits, temperature), generator)


def matching_prefix(drafted: list[int], verified: list[int]) -> int:
    """How many leading tokens agree: the greedy acceptance rule. `verified` may be longer."""
    for index, token in enumerate(drafted):
        if token != verified[index]:
            return index
    return len(drafted)


def accepted(tokens: Tensor, draft: Tensor, target: Tensor, generator: Generator | None = None) -> Tensor:
    """Whether each drafted token passes, with probability min(1, p/q): bool [rows].

    tokens: int64 [rows], drawn from q; draft, target: q and p, each [rows, vocab]. Written as u q < p, which needs no
    guard: a token with q = 0 passes when p > 0, and one with p = 0 never does.
    """
    q, p = (weights.gather(1, tokens[:, None]).squeeze(1) for weights in (draft, target))
    return torch.rand(len(tokens), generator=generator, device=tokens.device) * q < p


def residual(draft: Tensor, target: Tensor) -> Tensor:
    """What a rejected token is drawn from: max(0, p - q), normalised, [..., vocab].

    Where p <= q everywhere, which only rounding can bring about, p itself.
    """
    excess = (target - draft).clamp(min=0)
    total = excess.sum(-1, keepdim=True)
    return torch.where(total > 0, excess / total, target)


def accept_or_redraw(
    tokens: Tensor, draft: Tensor, target: Tensor, generator: Generator | None = None
) -> tuple[int, Tensor]:
    """How many of the k drafted tokens stand, and the token that follows them (int64 [1]).

    tokens: int64 [k]; draft: q of each, [k, vocab]; target: p of each and of the position after the last,
    [k + 1, vocab]. The following token replaces the first rejected one, or comes after all of them.
    """
    passed = accepted(tokens, draft, target[:-1], generator).tolist()
    count = passed.index(False) if False in passed else len(passed)
    rest = target[count] if count == len(passed) else residual(draft[count], target[count])
    return count, draw(rest[None], generator)
