"""The ImageNet head of HRViT, which is HRNet's: every branch widened, added up from fine to coarse, then pooled.

Gu et al. 2022 (arXiv 2111.01236); Wang et al. 2020 (arXiv 1908.07919), section 4. The same for all sizes of HRViT.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

PLANES, EXPANSION, LAST = (32, 64, 128, 256), 4, 2048


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a 1x1 (He et al. 2015, arXiv 1512.03385, figure 5)."""

    def __init__(self, width: int, planes: int) -> None:
        super().__init__()
        out = EXPANSION * planes
        self.conv1 = nn.Conv2d(width, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ClassificationHead(nn.Module):
    """Four maps, channels of each given, to logits [batch, num_classes]."""

    def __init__(self, channels: Sequence[int], num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        outs = [EXPANSION * planes for planes in PLANES]
        self.incre_modules = nn.ModuleList(
            nn.Sequential(Bottleneck(width, planes)) for width, planes in zip(channels, PLANES, strict=True)
        )
        self.downsamp_modules = nn.ModuleList(
            nn.Sequential(nn.Conv2d(fine, coarse, 3, 2, 1), nn.BatchNorm2d(coarse), nn.ReLU())
            for fine, coarse in pairwise(outs)
        )
        self.final_layer = nn.Sequential(nn.Conv2d(outs[-1], LAST, 1), nn.BatchNorm2d(LAST), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(LAST, num_classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        widened = [widen(x) for widen, x in zip(self.incre_modules, maps, strict=True)]
        total = widened[0]
        for down, x in zip(self.downsamp_modules, widened[1:], strict=True):
            total = x + down(total)
        return self.classifier(self.dropout(self.final_layer(total).mean((2, 3))))

    def reset(self, num_classes: int) -> None:
        """A fresh classifier, where the old one was."""
        self.classifier = nn.Linear(LAST, num_classes).to(self.classifier.weight)
