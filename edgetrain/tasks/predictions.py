"""What a model said of every judged item; metrics are counted from it, whoever made it: model or artefact."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
