"""The least network that learns to segment: three convolutions, which a real one of equal parameters has to beat.

    3 x 3 stride 2, batch norm, ReLU -> 3 x 3 stride 2, batch norm, ReLU -> 3 x 3 to the classes
        -> bilinear to the input's size

A pixel of its logits has seen 15 x 15 pixels of the image: colours and textures, hardly a shape and no place.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.errors import UserError


class ThreeLayerCNN(nn.Module):
    """Images float32 [n, channels, h, w] of any size to logits float32 [n, num_classes, h, w].

    width: channels between the convolutions; or parameters: the width is the one whose count is nearest to this number.
    input_shape: channels, height and width of the images that it is traced and exported with.
    Raises UserError unless exactly one of width and parameters is given, and for numbers below 1.
    """

    def __init__(
        self,
        num_classes: int,
        width: int | None = None,
        parameters: int | None = None,
        input_shape: Sequence[int] = (3, 224, 224),
    ) -> None:
        super().__init__()
        if (width is None) == (parameters is None):
            raise UserError(
                f"model.width={width} and model.parameters={parameters}: give one of them, and null for the other"
            )
        for key, value in (("num_classes", num_classes), ("width", width), ("parameters", parameters)):
            if value is not None and value < 1:
                raise UserError(f"model.{key}={value} must be at least 1")
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise UserError(f"model.input_shape={list(input_shape)} is not channels, height and width of an image")
        channels = input_shape[0]
        self.num_classes, self.input_shape = num_classes, tuple(input_shape)
        self.width = width or nearest_width(parameters, num_classes, channels)
        # Named so that groups of parameters by name, `norm` and `head`, are the same as a segmenter's.
        self.conv1 = nn.Conv2d(channels, self.width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(self.width)
        self.conv2 = nn.Conv2d(self.width, self.width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(self.width)
        self.head = nn.Conv2d(self.width, num_classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm1(self.conv1(images)).relu()
        features = self.norm2(self.conv2(features)).relu()
        logits = self.head(features)  # [n, num_classes, h / 4, w / 4], rounded up
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


def parameters_of(width: int, num_classes: int, channels: int = 3) -> int:
    """Three convolutions, a bias for each class, and two batch norms."""
    return 9 * width * (channels + width + num_classes) + num_classes + 4 * width


def nearest_width(parameters: int, num_classes: int, channels: int = 3) -> int:
    """The width, at least 1, whose count is nearest to `parameters`; the smaller of two that are equally near."""
    half = (9 * (channels + num_classes) + 4) / 18  # the count is 9 (w^2 + 2 half w) + num_classes
    exact = math.sqrt(max(0.0, half**2 + (parameters - num_classes) / 9)) - half
    below = max(1, math.floor(exact))
    return min((below, below + 1), key=lambda width: abs(parameters_of(width, num_classes, channels) - parameters))
