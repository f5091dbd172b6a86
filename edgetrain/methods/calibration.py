"""The samples whose activations set the ranges of a quantised network: a seeded draw from the train split."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from edgetrain.errors import UserError

BATCH = 64  # samples that go through a network at once


@dataclass(frozen=True)
class Calibration:
    """inputs: float32 [samples, ...]; facts: data set, split, samples, and seed and sha256 of a draw."""

    inputs: Tensor
    facts: dict[str, Any]

    def batches(self) -> Iterator[Tensor]:
        return iter(self.inputs.split(BATCH))


def draw(data: Any, samples: int, seed: int) -> Calibration:
    """At most `samples` inputs of the train split, drawn without replacement; all of a smaller split.

    Through `data.samples("train")`, without augmentation, where the data has it; the sha256 is of the sorted indices as
    decimal numbers, one a line. Of other data the first of its train loader, as training sees them, with whatever
    augmentation and shuffling it does; the facts say so instead of a seed. Raises UserError when there are
    none, or when one holds a value that is not finite.
    """
    name = type(data).__name__
    facts: dict[str, Any] = {"data": name, "split": "train"}
    if hasattr(data, "samples"):
        split = data.samples("train")
        total = len(split)
        chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:samples].sort().values.tolist()
        items = [split[index][0] for index in chosen]
        facts |= {
            "seed": seed,
            "of": total,
            "indices_sha256": hashlib.sha256("\n".join(map(str, chosen)).encode()).hexdigest(),
        }
    else:
        items = [
            item
            for inputs in first_of_loader((batch[0] for batch in data.train_dataloader()), samples)
            for item in inputs
        ]
        facts |= {"drawn": "the first of the train loader, as training sees them"}
    if not items:
        raise UserError(f"the train split of {name} is empty: nothing to calibrate with; give it samples")
    inputs = default_collate(items)
    if not torch.isfinite(inputs).all():
        bad = int((~torch.isfinite(inputs).flatten(1).all(1)).sum())
        raise UserError(f"{bad} of {len(inputs)} calibration samples of {name} hold values that are not finite")
    return Calibration(inputs, facts | {"samples": len(inputs)})


def first_of_loader(batches: Iterable[Tensor], samples: int) -> Iterator[Tensor]:
    """Batches [batch, ...] up to `samples` items, the last one cut; no batch is loaded after it."""
    for batch in batches:
        yield batch[:samples]
        samples -= len(batch)
        if samples <= 0:
            return
