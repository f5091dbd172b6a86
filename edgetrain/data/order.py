"""The order of training samples: a function of (seed, epoch) alone, resumable in the middle of an epoch.

A plain DataLoader shuffles from the global generator and knows no position, so a resumed run sees its first batches
again. Here the sampler owns the order, and the loader counts what it handed out and how often it went through the
data. It keeps that count itself: a run that stopped at max_steps in the middle of its data is at the end of an epoch
for Lightning, and must still go on with the samples that it has not seen. Lightning calls `state_dict` and
`load_state_dict` by itself; a plain loop may do the same.
"""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.distributed import get_rank, get_world_size, is_available, is_initialized
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from edgetrain.errors import UserError


def world_and_rank() -> tuple[int, int]:
    """The number of training processes and which of them this is."""
    return (get_world_size(), get_rank()) if is_available() and is_initialized() else (1, 0)


class SeededSampler(DistributedSampler):
    """A permutation of the samples from (seed, epoch); process `rank` of `world` takes every world-th of it.

    It is a DistributedSampler because that is the type which Lightning leaves in place under DDP and FSDP. The
    remainder that does not divide by the number of processes is left out, a different one each epoch.
    """

    def __init__(self, samples: Sized, seed: int) -> None:
        world, rank = world_and_rank()
        if len(samples) < world:
            raise UserError(
                f"{len(samples)} training samples cannot feed {world} processes; use fewer devices or more data"
            )
        super().__init__(samples, num_replicas=world, rank=rank, seed=seed, drop_last=True)
        self.start = 0  # samples of this epoch that the next iteration skips

    def set_epoch(self, epoch: int) -> None:
        """Lightning's count of epochs is not used; the loader sets `epoch` and `start`."""

    def __iter__(self) -> Iterator[int]:
        # A prime factor keeps (seed, epoch + 1) apart from (seed + 1, epoch).
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator)
        mine = order[self.rank :: self.num_replicas][: self.num_samples]
        # Part by part: a list of them all would take five times the memory of the tensor.
        return (sample for part in mine[self.start :].split(2**16) for sample in part.tolist())


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
        """The rest of the epoch that was begun, or the next one."""
        if self.position["samples"] >= len(self.sampler):
            self.position = {"epoch": self.position["epoch"] + 1, "samples": 0}
        self.sampler.epoch, self.sampler.start = self.position["epoch"], self.position["samples"]
        if hasattr(self.dataset, "epoch"):  # of samples that are another at every epoch; workers start after this
            self.dataset.epoch = self.position["epoch"]
        for batch in super().__iter__():
            self.position["samples"] += len(batch if isinstance(batch, Tensor) else batch[0])
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
        self.position = {"epoch": state["epoch"], "samples": state["samples"]}
