"""Small networks that the exporters' tests write, float and quantised."""

from functools import cache

import torch
from torch import Tensor, nn

from edgetrain.methods.quantize import post_training
from edgetrain.models.quantized import QuantizedModel

SHAPE = (49, 10)
CLASSES = 6


class Samples:
    """Standard normal samples of a shape, as a calibration asks data for them."""

    def __init__(self, shape: tuple[int, ...], count: int = 32) -> None:
        inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(7))
        self.items = [(value, 0) for value in inputs]

    def samples(self, split: str) -> list[tuple[Tensor, int]]:
        return self.items


def convolutional(seed: int = 0) -> nn.Sequential:
    """Convolution, depthwise and pointwise, with batch norms that do something, for [batch, 49, 10]."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 49)),
        nn.Conv2d(1, 16, (10, 4), stride=2, padding=(5, 1), bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 48, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(48, CLASSES),
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def batch(items: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(items, *shape, generator=torch.Generator().manual_seed(3))


@cache
def quantized(seed: int = 0) -> QuantizedModel:
    return post_training(convolutional(seed), (torch.zeros(1, *SHAPE),), Samples(SHAPE))
