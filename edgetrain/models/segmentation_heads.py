"""What turns four maps at strides 4 to 32 into class scores at stride 4: SegFormer's head, UPerHead, and FCN beside it.

Xie et al. 2021 (arXiv 2105.15203), section 3.2; Xiao et al. 2018 (arXiv 1807.10221), section 3; Long et al. 2015
(arXiv 1411.4038). Names inside follow mmsegmentation's, whose counts the published tables hold.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOL_SCALES = (1, 2, 3, 6)


class ConvNormReLU(nn.Module):
    """A convolution without bias, batch norm, ReLU; [batch, width, h, w] to [batch, out, h, w]."""

    def __init__(self, width: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class SegFormerHead(nn.Module):
    """Every map through a linear layer, all brought to the first one's size, one more linear layer, the classifier.

    The second layer is applied before the resizing, to each map its own columns, and the results are added: the same
    numbers, as both are linear, for a third of the multiplications and without a tensor of all maps.

    widths: channels of the maps; channels: of the head; dropout: of whole channels before the classifier.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.linear_c = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.linear_fuse = ConvNormReLU(len(widths) * channels, channels, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[batch, num_classes, height, width] of the first map."""
        total: Tensor | None = None
        weights = self.linear_fuse.conv.weight.chunk(len(maps), 1)[::-1]  # the smallest map's come first
        for linear, x, weight in zip(self.linear_c, maps, weights, strict=True):
            part = F.conv2d(linear(x), weight)
            total = part if total is None else total + resized(part, total.shape[2:])
        return self.conv_seg(self.dropout(F.relu(self.linear_fuse.bn(total))))


class UPerHead(nn.Module):
    """A feature pyramid over the maps, with pyramid pooling on the smallest.

    widths: channels of the maps; channels: of the head; dropout: of whole channels before the classifier.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int = 512, dropout: float = 0.1) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(ConvNormReLU(widths[-1], channels, 1) for _ in POOL_SCALES)
        self.bottleneck = ConvNormReLU(widths[-1] + len(POOL_SCALES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNormReLU(width, channels, 1) for width in widths[:-1])
        self.fpn_convs = nn.ModuleList(ConvNormReLU(channels, channels, 3) for _ in widths[:-1])
        self.fpn_bottleneck = ConvNormReLU(len(widths) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[batch, num_classes, height, width] of the first map."""
        last = maps[-1]
        pooled = [
            resized(module(F.adaptive_avg_pool2d(last, scale)), last.shape[2:])
            for module, scale in zip(self.psp_modules, POOL_SCALES, strict=True)
        ]
        path = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=False)]
        path.append(self.bottleneck(torch.cat([last, *pooled], 1)))
        for level in range(len(path) - 1, 0, -1):
            path[level - 1] = path[level - 1] + resized(path[level], path[level - 1].shape[2:])
        first, *others = [conv(x) for conv, x in zip(self.fpn_convs, path, strict=False)] + path[-1:]
        same = torch.cat([first, *(resized(x, first.shape[2:]) for x in others)], 1)
        return self.conv_seg(self.dropout(self.fpn_bottleneck(same)))


class FCNHead(nn.Module):
    """A 3x3 convolution and the classifier on one map: the auxiliary head beside UPerHead, in training alone."""

    def __init__(self, width: int, num_classes: int, channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNormReLU(width, channels, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(self.convs(x)))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, align_corners false."""
    return F.interpolate(x, size=tuple(size), mode="bilinear")
