"""Random windows: of the asked shape and vocabulary, each a function of the seed and its number."""

import torch

from edgetrain.bench.random_tokens import RandomTokens


def test_batches_have_the_shape_and_the_vocabulary() -> None:
    batch = next(iter(RandomTokens(context=300, batch_size=4, vocab_size=50).train_dataloader()))
    assert batch.shape == (4, 301) and batch.dtype == torch.int64
    assert set(batch.unique().tolist()) == set(range(50))


def test_a_window_is_a_function_of_seed_and_number() -> None:
    one, again, other = (RandomTokens(16, 1, 1000, seed).windows for seed in (3, 3, 4))
    assert torch.equal(one[7], again[7])
    assert not torch.equal(one[7], one[8])
    assert not torch.equal(one[7], other[7])
    assert not torch.equal(one[8], other[7])  # of neighbouring seeds, neither
