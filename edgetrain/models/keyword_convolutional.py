"""The feed-forward networks of Hello Edge: DNN, CNN and DS-CNN (arXiv 1711.07128, section 3; sizes in `keyword`).

Convolutions run over [batch, channels, frames, coefficients]. One is written (channels, kernel over frames, kernel over
coefficients, stride over frames, stride over coefficients), as in the released code. Where maps become flat, channels
come last, as in the released weights.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.models.keyword_network import NORM_EPS, NORM_MOMENTUM, KeywordNetwork, ShiftNorm, xavier_

Shape = Sequence[int]  # channels, kernel and stride of a convolution


class DNN(KeywordNetwork):
    """Linear layers with ReLU between. widths: of the hidden ones. The other arguments are KeywordNetwork's."""

    def __init__(self, widths: Sequence[int], classes: int, frames: int, coefficients: int, **inputs: Any) -> None:
        super().__init__(frames, coefficients, **inputs)
        sizes = [frames * coefficients, *widths]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, widths, strict=False))
        self.classifier = nn.Linear(sizes[-1], classes)
        xavier_(self)

    def logits(self, features: Tensor) -> Tensor:
        x = features.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.classifier(x)


class CNN(KeywordNetwork):
    """Two convolutions without padding, a low-rank linear layer, a hidden layer. first, second: the convolutions."""

    def __init__(
        self,
        first: Shape,
        second: Shape,
        low_rank: int,
        hidden: int,
        classes: int,
        frames: int,
        coefficients: int,
        **inputs: Any,
    ) -> None:
        super().__init__(frames, coefficients, **inputs)
        self.conv1 = valid_convolution(1, first)
        self.norm1 = nn.BatchNorm2d(first[0], NORM_EPS, NORM_MOMENTUM)
        self.conv2 = valid_convolution(first[0], second)
        self.norm2 = nn.BatchNorm2d(second[0], NORM_EPS, NORM_MOMENTUM)
        height, width = valid_size(valid_size((frames, coefficients), first), second)
        self.low_rank = nn.Linear(height * width * second[0], low_rank)
        self.hidden = nn.Linear(low_rank, hidden, bias=False)
        self.norm3 = nn.BatchNorm1d(hidden, NORM_EPS, NORM_MOMENTUM)
        self.classifier = nn.Linear(hidden, classes)
        xavier_(self)

    def logits(self, features: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(one_channel(features))))
        x = F.relu(self.norm2(self.conv2(x)))
        x = self.low_rank(x.permute(0, 2, 3, 1).flatten(1))
        return self.classifier(F.relu(self.norm3(self.hidden(x))))


class SeparableBlock(nn.Module):
    """A 3x3 of each channel for itself, then a 1x1 across channels, each with its norm and ReLU."""

    def __init__(self, channels: int, shape: Shape, size: tuple[int, int]) -> None:
        super().__init__()
        self.depthwise = SameConvolution(channels, (channels, *shape[1:]), size, groups=channels)
        self.depthwise_norm = ShiftNorm(channels)
        self.pointwise = nn.Conv2d(channels, shape[0], 1, bias=False)
        self.pointwise_norm = ShiftNorm(shape[0])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise_norm(self.depthwise(x)))
        return F.relu(self.pointwise_norm(self.pointwise(x)))


class DSCNN(KeywordNetwork):
    """A convolution, depthwise-separable blocks, the average over the map, a linear layer. All padded as SAME.

    first: the convolution; blocks: the depthwise kernel and stride of each with the channels that it gives.
    """

    def __init__(
        self, first: Shape, blocks: Sequence[Shape], classes: int, frames: int, coefficients: int, **inputs: Any
    ) -> None:
        super().__init__(frames, coefficients, **inputs)
        self.conv = SameConvolution(1, first, (frames, coefficients))
        self.norm = ShiftNorm(first[0])
        self.blocks = nn.ModuleList()
        channels, size = first[0], self.conv.out_size
        for shape in blocks:
            block = SeparableBlock(channels, shape, size)
            self.blocks.append(block)
            channels, size = shape[0], block.depthwise.out_size
        self.classifier = nn.Linear(channels, classes)
        xavier_(self)

    def logits(self, features: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(one_channel(features))))
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((2, 3), keepdim=True).flatten(1))


class SameConvolution(nn.Conv2d):
    """Without bias, padded as TensorFlow's SAME: ceil(n / stride) outputs, and an odd row or column of zeros goes last.

    size: of its input, (frames, coefficients).
    """

    def __init__(self, channels: int, shape: Shape, size: tuple[int, int], groups: int = 1) -> None:
        kernel, stride = tuple(shape[1:3]), tuple(shape[3:])
        self.out_size = tuple(-(-n // step) for n, step in zip(size, stride, strict=True))
        short = [
            max(0, (out - 1) * step + width - n)
            for n, out, step, width in zip(size, self.out_size, stride, kernel, strict=True)
        ]
        padding = tuple(zeros // 2 for zeros in short)
        super().__init__(channels, shape[0], kernel, stride, padding, groups=groups, bias=False)
        self.odd = (0, short[1] % 2, 0, short[0] % 2)  # as F.pad takes it

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.odd) if any(self.odd) else x)


def valid_convolution(channels: int, shape: Shape, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, shape[0], tuple(shape[1:3]), tuple(shape[3:]), bias=bias)


def valid_size(size: tuple[int, int], shape: Shape) -> tuple[int, int]:
    """Frames and coefficients after a convolution without padding. Raises ValueError when its kernel does not fit."""
    kernel, stride = shape[1:3], shape[3:]
    if any(n < width for n, width in zip(size, kernel, strict=True)):
        raise ValueError(f"a kernel of {kernel[0]} x {kernel[1]} does not fit into {size[0]} x {size[1]}")
    height, width = ((n - width) // step + 1 for n, width, step in zip(size, kernel, stride, strict=True))
    return height, width


def one_channel(features: Tensor) -> Tensor:
    """[batch, 1, frames, coefficients], told to be channels last: convolutions keep that order, twice as fast."""
    return features[..., None].movedim(-1, 1)
