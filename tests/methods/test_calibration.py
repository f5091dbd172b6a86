"""Which samples set the ranges of a quantised network, and which are refused."""

import hashlib

import pytest
import torch
from quantize_networks import Samples

from edgetrain.errors import UserError
from edgetrain.methods.calibration import draw

DATA = Samples(torch.arange(10.0)[:, None])


def test_a_draw_is_without_replacement_and_named_by_its_indices() -> None:
    drawn = draw(DATA, 4, seed=0)
    chosen = [int(value) for value in drawn.inputs[:, 0].tolist()]
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 4
    lines = "\n".join(map(str, chosen))
    assert drawn.facts == {
        "data": "Samples",
        "split": "train",
        "seed": 0,
        "of": 10,
        "indices_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "samples": 4,
    }


def test_the_seed_is_what_decides_the_draw() -> None:
    assert torch.equal(draw(DATA, 4, seed=3).inputs, draw(DATA, 4, seed=3).inputs)
    assert len({draw(DATA, 4, seed=seed).facts["indices_sha256"] for seed in range(20)}) > 15


def test_a_smaller_split_is_taken_whole() -> None:
    assert torch.equal(draw(DATA, 99, seed=5).inputs, DATA.inputs)


def test_data_without_samples_gives_the_first_of_its_train_loader() -> None:
    class Loaded:
        def train_dataloader(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
            return [(torch.full((3, 2), float(batch)), torch.zeros(3)) for batch in range(4)]

    drawn = draw(Loaded(), 5, seed=0)
    assert drawn.inputs[:, 0].tolist() == [0, 0, 0, 1, 1]
    assert drawn.facts == {  # no seed: nothing was drawn with it
        "data": "Loaded",
        "split": "train",
        "drawn": "the first of the train loader, as training sees them",
        "samples": 5,
    }


def test_an_empty_split_and_values_that_are_not_finite_are_one_sentence() -> None:
    with pytest.raises(UserError, match="train split of Samples is empty"):
        draw(Samples(torch.zeros(0, 3)), 4, seed=0)
    with pytest.raises(UserError, match="2 of 3 calibration samples of Samples hold values that are not finite"):
        draw(Samples(torch.tensor([[1.0], [torch.nan], [torch.inf]])), 4, seed=0)


def test_batches_are_all_samples_in_order() -> None:
    drawn = draw(Samples(torch.arange(150.0)[:, None]), 150, seed=0)
    assert torch.equal(torch.cat(list(drawn.batches())), drawn.inputs)
