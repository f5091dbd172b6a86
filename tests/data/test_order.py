import copy

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import TensorDataset

from edgetrain.data.order import ResumableLoader, SeededSampler
from edgetrain.errors import UserError

SAMPLES = torch.arange(22)


class Numbers(TensorDataset):
    def __getitem__(self, index: int) -> torch.Tensor:
        return super().__getitem__(index)[0]


def loader(seed: int = 1, workers: int = 0) -> ResumableLoader:
    return ResumableLoader(Numbers(SAMPLES), seed, batch_size=4, workers=workers)


def epochs(source: ResumableLoader, first: int, last: int) -> list[list[int]]:
    """The batches of epochs first..last-1; the first of them may have been begun."""
    if source.position["epoch"] != first:
        source.position = {"epoch": first, "samples": 0}
    return [batch.tolist() for _ in range(first, last) for batch in source]


def test_order_is_a_function_of_seed_and_epoch():
    torch.manual_seed(5)
    first = epochs(loader(), 0, 2)
    torch.manual_seed(6)
    assert epochs(loader(), 0, 2) == first
    assert epochs(loader(), 1, 2) == first[6:]
    assert first[:6] != first[6:]
    assert epochs(loader(seed=2), 0, 1) != first[:6]


def test_each_epoch_hands_out_every_sample_once():
    assert sorted(sample for batch in epochs(loader(), 3, 4) for sample in batch) == SAMPLES.tolist()


def test_iterating_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    epochs(loader(), 0, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("taken", range(13))
def test_a_loaded_state_continues_where_the_saved_one_stopped(taken: int):
    whole = epochs(loader(), 0, 3)
    saved, seen, state = loader(), [], None
    state = saved.state_dict()
    for _ in range(3):
        for batch in saved:
            if len(seen) < taken:
                seen.append(batch.tolist())
                state = copy.deepcopy(saved.state_dict())
    resumed = loader()
    resumed.load_state_dict(state)
    for _ in range(3):
        seen += [batch.tolist() for batch in resumed]
    assert seen[: len(whole)] == whole


def test_workers_change_neither_order_nor_resume():
    whole = epochs(loader(), 0, 1)
    first = loader(workers=1)
    iterator = iter(first)
    seen = [next(iterator).tolist() for _ in range(2)]
    resumed = loader(workers=1)
    resumed.load_state_dict(first.state_dict())
    assert seen + epochs(resumed, 0, 1) == whole


def test_an_epoch_cut_short_goes_on_with_the_samples_not_seen():
    cut = loader()
    first = next(iter(cut)).tolist()
    assert [first, *(batch.tolist() for batch in cut)] == epochs(loader(), 0, 1)


def test_resuming_with_other_data_is_an_error():
    state = loader().state_dict() | {"total": 23}
    with pytest.raises(UserError, match="an epoch had 23 training samples and now has 22; resume with the data"):
        loader().load_state_dict(state)


@pytest.fixture
def world_of_two(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgetrain.data.order.is_initialized", lambda: True)
    monkeypatch.setattr("edgetrain.data.order.get_world_size", lambda: 2)
    return lambda rank: monkeypatch.setattr("edgetrain.data.order.get_rank", lambda: rank)


def test_processes_share_an_epoch_without_overlap(world_of_two):
    parts = []
    for rank in range(2):
        world_of_two(rank)
        sampler = SeededSampler(range(7), seed=0)
        assert len(sampler) == 3
        parts += list(sampler)
    assert len(set(parts)) == 6


def test_fewer_samples_than_processes_is_an_error(world_of_two):
    world_of_two(0)
    with pytest.raises(UserError, match="1 training samples cannot feed 2 processes"):
        SeededSampler(range(1), seed=0)


class Recorder(lightning.LightningModule):
    """Remembers the batches that it was trained on; `stop_after` of them raise."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[list[int]] = []
        self.stop_after = stop_after

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        if len(self.batches) == self.stop_after:
            raise RuntimeError("interrupted")
        self.batches.append(batch.tolist())
        return self.weight * batch.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [1.0, 3], ids=["whole_epochs", "short_epochs"])
@pytest.mark.parametrize("stop_after", [2, 3, 6, 8])
def test_lightning_resumes_with_the_batches_of_an_uninterrupted_run(tmp_path, stop_after: int, limit: float):
    def train(module: Recorder, checkpoint: str | None = None) -> Recorder:
        trainer = lightning.Trainer(
            max_epochs=3,
            limit_train_batches=limit,
            accelerator="cpu",
            logger=False,
            callbacks=[
                ModelCheckpoint(
                    tmp_path, every_n_train_steps=1, save_top_k=1, filename="last", enable_version_counter=False
                )
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader(), ckpt_path=checkpoint)
        return module

    whole = train(Recorder()).batches
    interrupted = Recorder(stop_after)
    with pytest.raises(RuntimeError, match="interrupted"):
        train(interrupted)
    resumed = train(Recorder(), str(tmp_path / "last.ckpt"))
    assert interrupted.batches + resumed.batches == whole
