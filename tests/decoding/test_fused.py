"""The rearranged model is the same function as the plain one, at any position, in any row of a batch."""

import pytest
import torch

from edgetrain.decoding.fused import FusedLlama, Product, Weights
from edgetrain.models.llama import Llama

LENGTH = 40


@pytest.fixture(scope="module")
def wild() -> Llama:
    """Untrained, with large weights, so that every part of a block changes the logits much."""
    torch.manual_seed(0)
    model = Llama(50, dim=32, layers=4, heads=4, kv_heads=2, hidden_dim=48, context=LENGTH, tied=False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
        elif "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


@torch.inference_mode()
def logits_in_pieces(model: FusedLlama, tokens: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    cache = model.new_cache(len(tokens), LENGTH)
    done, logits = 0, []
    for piece in pieces:
        start = torch.full((len(tokens),), done)
        logits.append(model.head(model(tokens[:, done : done + piece], cache, start)))
        done += piece
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("pieces", [[20], [1] * 20, [7, 1, 1, 5, 6], [19, 1]])
def test_logits_equal_the_plain_models_however_the_tokens_are_cut(wild: Llama, pieces: list[int]) -> None:
    tokens = torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = wild(tokens)
    torch.testing.assert_close(logits_in_pieces(FusedLlama(wild), tokens, pieces), expected, atol=2e-4, rtol=1e-4)


def test_rows_stand_at_positions_of_their_own(wild: Llama) -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(50, (2, 12), generator=generator)
    model, lengths = FusedLlama(wild), torch.tensor([3, 9])
    with torch.inference_mode():
        cache = model.new_cache(2, LENGTH)
        model(tokens[:, :9], cache, torch.zeros(2, dtype=torch.int64))  # row 0 has six tokens too many
        following = torch.stack([tokens[0, 3:5], tokens[1, 9:11]])
        logits = model.head(model(following, cache, lengths))
        for row, length in enumerate(lengths.tolist()):
            expected = wild(tokens[row : row + 1, : length + 2])[0, length:]
            torch.testing.assert_close(logits[row], expected, atol=2e-4, rtol=1e-4)


def test_layers_run_in_ranges(wild: Llama) -> None:
    tokens = torch.randint(50, (1, 6), generator=torch.Generator().manual_seed(3))
    model, start = FusedLlama(wild), torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        cache = model.new_cache(1, LENGTH)
        states = model.run_layers(model.embed(tokens), 0, 2, cache, start)
        torch.testing.assert_close(states, wild.run_layers(wild.embed(tokens), 0, 2), atol=1e-4, rtol=1e-4)
        states = model.run_layers(states, 2, 4, cache, start)
        torch.testing.assert_close(model.head(states), wild(tokens), atol=2e-4, rtol=1e-4)


def test_a_copy_of_the_first_layers_is_the_early_exit(wild: Llama) -> None:
    tokens = torch.randint(50, (1, 6), generator=torch.Generator().manual_seed(4))
    model = FusedLlama(wild, layers=2)
    assert model.layers == 2
    with torch.inference_mode():
        expected = wild.head(wild.run_layers(wild.embed(tokens), 0, 2))
    torch.testing.assert_close(logits_in_pieces(model, tokens, [6]), expected, atol=2e-4, rtol=1e-4)


def test_int8_products_are_within_half_a_level_of_each_weight() -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(64, 32, generator=generator) * torch.rand(64, 1, generator=generator)
    weight[7] = 0  # a channel of zeros has a scale all the same
    product = Product(weight, "int8")
    restored = product.weight.float() * product.scales.float()[:, None]
    level = weight.abs().amax(1, keepdim=True) / 127
    assert ((restored - weight).abs() <= 1.01 * level).all()  # half a level, and what rounding the scale adds
    assert ((restored - weight).abs().mean() <= 0.3 * level.mean()).all()
    x = torch.randn(5, 3, 32, generator=generator).bfloat16()
    expected = torch.nn.functional.linear(x.float(), restored)
    torch.testing.assert_close(product(x).float(), expected, atol=0.05, rtol=0.02)
    assert restored[7].eq(0).all()


@pytest.mark.parametrize(("weights", "most"), [("bfloat16", 0.02), ("int8", 0.05)])
def test_cheaper_weights_change_the_distribution_little(wild: Llama, weights: Weights, most: float) -> None:
    tokens = torch.randint(50, (4, 20), generator=torch.Generator().manual_seed(6))
    exact, cheap = (logits_in_pieces(FusedLlama(wild, kind), tokens, [20]) for kind in ("float32", weights))
    shares, others = (logits.float().log_softmax(-1) for logits in (exact, cheap))
    divergence = (shares.exp() * (shares - others)).sum(-1)  # Kullback-Leibler, nats
    assert 0 < divergence.mean() < most
