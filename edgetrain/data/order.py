"""The order of training samples: a function of (seed, epoch) alone, resumable in the middle of an epoch.

A plain DataLoader shuffles from the global generator and knows no position, so a resumed run sees its first batches
again. Here the sampler owns the order and the loader counts what it handed out; Lightning calls `set_epoch`,
`state_dict` and `load_state_dict` by itself, a plain loop may do the same.
"""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.distributed import get_rank, get_world_size, is_available, is_initialized
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from edgetrain.errors import UserError


class SeededSampler(DistributedSampler):
    """A permutation of the samples from (seed, epoch); process `rank` of `world` takes every world-th of it.

    It is a DistributedSampler because that is the type which Lightning leaves in place under DDP and FSDP. The
    remainder that does not divide by the number of processes is left out, a different one each epoch.
    """

    def __init__(self, samples: Sized, seed: int) -> None:
        distributed = is_available() and is_initialized()
        world, rank = (get_world_size(), get_rank()) if distributed else (1, 0)
        if len(samples) < world:
            raise UserError(
                f"{len(samples)} training samples cannot feed {world} processes; use fewer devices or more data"
            )
        super().__init__(samples, num_replicas=world, rank=rank, seed=seed, drop_last=True)
        self.start = 0  # samples of this epoch that the next iteration skips

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation. A restored position belongs to the epoch it was saved in, another begins at 0."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[int]:
        # A prime factor keeps (seed, epoch + 1) apart from (seed + 1, epoch).
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator)
        mine = order[self.rank :: self.num_replicas][: self.num_samples]
        start, self.start = self.start, 0
        return iter(mine[start:].tolist())


class ResumableLoader(DataLoader):
    """A DataLoader over SeededSampler whose state is the epoch and the number of samples handed out in it."""

    sampler: SeededSampler

    def __init__(self, samples: Dataset, seed: int, batch_size: int, workers: int = 0) -> None:
        # Without a generator of its own the loader would draw from the global one at every epoch, and a resumed
        # run's dropout would differ from the uninterrupted run's.
        generator = torch.Generator().manual_seed(seed)
        sampler = SeededSampler(samples, seed)
        super().__init__(samples, batch_size=batch_size, sampler=sampler, num_workers=workers, generator=generator)
        self.position = {"epoch": 0, "samples": 0}

    def __iter__(self) -> Iterator[Tensor]:
        # A generator on purpose: Lightning calls iter() before set_epoch(), and the epoch is read at the first next().
        self.position = {"epoch": self.sampler.epoch, "samples": self.sampler.start}
        for batch in super().__iter__():
            self.position["samples"] += len(batch)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: epoch, samples handed out in it by this process, samples in a whole epoch of it."""
        return self.position | {"total": len(self.sampler)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch handed out. Raises UserError when the data is no longer the saved run's."""
        if state["total"] != len(self.sampler):
            raise UserError(
                f"cannot resume: an epoch had {state['total']} training samples and now has {len(self.sampler)};"
                " resume with the data and number of processes of the saved run"
            )
        epoch, samples = state["epoch"], state["samples"]
        if samples >= len(self.sampler):  # saved at the edge: without this the resumed epoch would be empty
            epoch, samples = epoch + 1, 0
        self.sampler.epoch, self.sampler.start = epoch, samples
        self.position = {"epoch": epoch, "samples": samples}
