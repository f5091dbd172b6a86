"""The samples whose activations set the ranges of a quantised network: a seeded draw from the train split."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from edgetrain.errors import UserError

BATCH = 64  # samples that go through a network at once


@dataclass(frozen=True)
class Calibration:
    """inputs: float32 [samples, ...]; facts: data set, split, samples, seed and what identifies the draw."""

    inputs: Tensor
    facts: dict[str, Any]

    def batches(self) -> Iterator[Tensor]:
        return iter(self.inputs.split(BATCH))


def draw(data: Any, samples: int, seed: int) -> Calibration:
    """At most `samples` inputs of the train split, drawn without replacement; all of a smaller split.

    Through `data.samples("train")`, without augmentation, where the data has it; the sha256 is of the sorted indices as
    decimal numbers, one a line. Of other data the first samples of its train loader. Raises UserError when there are
    none, or when one holds a value that is not finite.
    """
    name = type(data).__name__
    facts: dict[str, Any] = {"data": name, "split": "train", "seed": seed}
    if hasattr(data, "samples"):
        split = data.samples("train")
        total = len(split)
        chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:samples].sort().values.tolist()
        items = [split[index][0] for index in chosen]
        facts |= {"of": total, "indices_sha256": hashlib.sha256("\n".join(map(str, chosen)).encode()).hexdigest()}
    else:
        items = list(islice((item for batch in data.train_dataloader() for item in batch[0]), samples))
    if not items:
        raise UserError(f"the train split of {name} is empty: nothing to calibrate with; give it samples")
    inputs = default_collate(items)
    if not torch.isfinite(inputs).all():
        bad = int((~torch.isfinite(inputs).flatten(1).all(1)).sum())
        raise UserError(f"{bad} of {len(inputs)} calibration samples of {name} hold values that are not finite")
    return Calibration(inputs, facts | {"samples": len(inputs)})
