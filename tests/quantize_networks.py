"""Small networks and data that the tests of quantisation share."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Samples:
    """Data of one split: inputs [n, ...] and labels."""

    def __init__(self, inputs: Tensor, labels: Tensor | None = None) -> None:
        self.inputs = inputs
        self.labels = torch.zeros(len(inputs), dtype=torch.int64) if labels is None else labels

    def samples(self, split: str) -> list[tuple[Tensor, Tensor]]:
        assert split == "train"
        return list(zip(self.inputs, self.labels, strict=True))


def separable(seed: int = 0) -> nn.Sequential:
    """Depthwise-separable, with batch norms that are not neutral, for inputs [batch, 1, 12, 6]; in eval mode."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 8, (3, 3), stride=2, padding=(1, 2), bias=False),
        nn.BatchNorm2d(8, eps=1e-3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1, bias=False),
        nn.BatchNorm2d(12, affine=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )
    unsettle(network)
    network.input_shape = (1, 12, 6)
    return network.eval()


def unsettle(network: nn.Module) -> None:
    """Statistics and affine numbers of batch norms far from where they start; a factor may be negative."""
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 3)
            if norm.weight is not None:
                nn.init.normal_(norm.weight, 1, 0.5)
                nn.init.normal_(norm.bias)


@torch.no_grad()
def settle(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Statistics of batch norms as some inputs have them, so that no signal vanishes; in eval mode."""
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.reset_running_stats()
            norm.momentum = None
    network.train()(inputs(64, shape))
    return network.eval()


def inputs(count: int, shape: tuple[int, ...] = (1, 12, 6), seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLU between, in eval mode."""
    torch.manual_seed(seed)
    layers: list[Any] = []
    for pair in pairwise(widths):
        layers += [nn.Linear(*pair), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    network.input_shape = (widths[0],)
    return network.eval()
