"""What a model said of every judged item; metrics are counted from it, whoever made it: model or artefact."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetrain.folder import Row
from edgetrain.paired import compare


@dataclass(frozen=True)
class Predictions:
    """One row an item, in the order of the data. target, predicted: int64 class [n]; loss: float32, nats [n]."""

    target: Tensor
    predicted: Tensor
    loss: Tensor

    def __len__(self) -> int:
        return len(self.target)

    @property
    def right(self) -> Tensor:
        """bool [n]"""
        return self.target == self.predicted

    @property
    def accuracy(self) -> float:
        return self.right.double().mean().item()

    @property
    def mean_loss(self) -> float:
        """nats an item"""
        return self.loss.double().mean().item()

    def scores(self) -> Row:
        return {"accuracy": self.accuracy, "loss": self.mean_loss}

    def first(self, items: int) -> "Predictions":
        return Predictions(self.target[:items], self.predicted[:items], self.loss[:items])

    def at(self, places: list[int]) -> "Predictions":
        """Of the items at these places."""
        return Predictions(self.target[places], self.predicted[places], self.loss[places])

    def same(self, other: "Predictions") -> Tensor:
        """Items of which both say the same: bool [n]"""
        return self.predicted == other.predicted

    def compared_with(self, reference: "Predictions") -> Row:
        """The same items in pairs: differs, the answers that do; change of the accuracy, its interval; McNemar's p."""
        pairs = compare(reference.right, self.right)
        return {
            "differs": int((~self.same(reference)).sum()),
            "change": pairs.difference,
            "change_low": pairs.low,
            "change_high": pairs.high,
            "p": pairs.p,
        }

    def identity(self) -> tuple[list[int], list[int]]:
        """Plain values that are the same for the same answers about the same items."""
        return self.target.tolist(), self.predicted.tolist()

    def columns(self) -> dict[str, list[Any]]:
        """For a CSV file, a row an item."""
        return {"target": self.target.tolist(), "predicted": self.predicted.tolist(), "loss": self.loss.tolist()}

    @classmethod
    def of_rows(cls, rows: list[dict[str, str]]) -> "Predictions":
        """From the rows of that file, every value as text."""
        target, predicted = (torch.tensor([int(row[key]) for row in rows]) for key in ("target", "predicted"))
        return cls(target, predicted, torch.tensor([float(row["loss"]) for row in rows]))

    @classmethod
    def joined(cls, parts: list["Predictions"]) -> "Predictions":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("target", "predicted", "loss")))

    @classmethod
    def of_logits(cls, logits: Tensor, targets: Tensor) -> "Predictions":
        """logits [n, classes], targets [n] on any device."""
        logits = logits.float()
        targets = targets.to(logits.device)
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return cls(targets.cpu(), logits.argmax(-1).cpu(), loss.cpu())


def trivial_accuracies(data: Any) -> dict[str, float]:
    """What needs no model: chance, a guess, and where the data knows it majority, training's most frequent label."""
    labels = getattr(data, "labels", None)
    if not labels:
        return {}
    facts = data.facts() if hasattr(data, "facts") else {}
    return {"chance": 1 / len(labels)} | ({"majority": facts["majority"]} if "majority" in facts else {})


def logits_of(output: Any) -> Tensor:
    """Hugging Face models wrap their logits; others return them."""
    return getattr(output, "logits", output)
