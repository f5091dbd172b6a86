"""ResNet-9: eight convolutions with batch norms, two residual pairs, four max pools and one linear layer.

The network of David Page's "How to train your ResNet" (2018) for DAWNBench's CIFAR-10: 94% in 24 epochs at width 64.

    prep w -> layer1 2w, pool, + residual pair -> layer2 4w, pool -> layer3 8w, pool, + residual pair -> pool -> linear

Notable choices: the linear layer has no bias, and its inputs are scaled by 1/8, as there; a ReLU stands before each
pool, where after it would give the same. The last pool takes all that is left of the image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgetrain.errors import UserError

SCALE = 0.125  # of the logits


class ResNet9(nn.Module):
    """Images float32 [batch, *input_shape] to logits [batch, num_classes].

    width: channels of the first layer, 64 in the original; input_shape: channels, height and width, both sides
    multiples of 8. Raises UserError for others.
    """

    def __init__(self, num_classes: int = 10, width: int = 64, input_shape: Sequence[int] = (3, 32, 32)) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"model.width={width} must be at least 1; the original has 64")
        if len(input_shape) != 3 or min(input_shape) < 1 or any(side % 8 for side in input_shape[1:]):
            raise UserError(
                f"model.input_shape={list(input_shape)} is not channels, height and width with sides that are "
                "multiples of 8, which three pools halve"
            )
        self.num_classes, self.input_shape = num_classes, tuple(input_shape)
        channels, height, width_pixels = input_shape
        self.prep = unit(channels, width)
        self.layer1 = nn.Sequential(unit(width, 2 * width, pool=True), Residual(2 * width))
        self.layer2 = unit(2 * width, 4 * width, pool=True)
        self.layer3 = nn.Sequential(unit(4 * width, 8 * width, pool=True), Residual(8 * width))
        self.pool = nn.MaxPool2d((height // 8, width_pixels // 8))
        self.classifier = nn.Linear(8 * width, num_classes, bias=False)
        self.to(memory_format=torch.channels_last)  # trains faster on CPUs and GPUs; the weights stay the same

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(images))))
        return self.classifier(SCALE * self.pool(x).flatten(1))


class Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pair = nn.Sequential(unit(channels, channels), unit(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pair(x)


def unit(channels: int, out: int, pool: bool = False) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU, and 2x2 max pool where asked for."""
    layers = [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))
