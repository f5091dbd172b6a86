"""HRViT: a vision transformer that keeps maps at strides 4, 8, 16 and 32 side by side, and fuses them again and again.

Gu et al. 2022 (arXiv 2111.01236). Written from the description; state-dict keys and numbers are those of the published
code. A module is a fusion of all branches, then blocks on each branch (hrvit_block.py). Sides of any length: a branch
at stride s has ceil(side / s) rows, which is what its convolutions give, and what nearest-neighbour upsampling adds
beyond that is cut off. Everything runs channels last.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.models.hrvit_block import HRViTBlock, Pointwise, depthwise, first, per_branch
from edgetrain.models.hrvit_head import ClassificationHead

Blocks = Sequence[Sequence[int]]  # of every module, of each of its branches


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with batch norm and ReLU."""

    def __init__(self, middle: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, middle, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, out, 3, 2, 1)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, height, width] to [batch, out, height / 4, width / 4], rounded up."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Fusion(nn.Module):
    """Every branch becomes the GELU of the sum of all: larger maps by strided convolutions, smaller ones upsampled.

    widths: channels of the branches that come in; outs: of those that go out, of which the last may be new.
    """

    def __init__(self, widths: Sequence[int], outs: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(fused(widths[j], out, i - j) for j in range(len(widths))) for i, out in enumerate(outs)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        outs = []
        for i, row in enumerate(self.blocks):
            parts = [block(x) for block, x in zip(row, maps, strict=True)]
            rows, columns = parts[min(i, len(maps) - 1)].shape[2:]  # of the map or, of a new one, of what makes it
            total = parts[0]
            for j, part in enumerate(parts):
                if j > i:
                    part = first(first(F.interpolate(part, scale_factor=2 ** (j - i)), 2, rows), 3, columns)
                total = total + part if j else part
            outs.append(F.gelu(total))
        return outs


def fused(width: int, out: int, steps: int) -> nn.Module:
    """From one branch to another whose stride is 2**steps times larger; upsampling stands outside."""
    if steps == 0:
        return nn.Identity()
    if steps < 0:
        return nn.Sequential(Pointwise(width, out), nn.BatchNorm2d(out))
    stride = 2**steps
    down = nn.Conv2d(width, width, stride + 1, stride, stride // 2, groups=width, bias=False)
    return nn.Sequential(down, nn.BatchNorm2d(width), Pointwise(width, out), nn.BatchNorm2d(out))


class PatchEmbedding(nn.Module):
    """1x1 convolution, 3x3 of each channel, layer norm: [batch, channels, h, w] to [batch, h, w, out]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(Pointwise(width, out), depthwise(out, 3))
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Patch embedding, blocks and a layer norm on every branch, none of which sees another."""

    def __init__(self, widths: Sequence[int], branches: list[list[HRViTBlock]], outs: Sequence[int]) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleList(PatchEmbedding(width, out) for width, out in zip(widths, outs, strict=True))
        self.branches = nn.ModuleList(nn.Sequential(*blocks) for blocks in branches)
        self.norm = nn.ModuleList(nn.LayerNorm(out) for out in outs)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        parts = zip(self.patch_embed, self.branches, self.norm, maps, strict=True)
        return [norm(blocks(embed(x))).permute(0, 3, 1, 2) for embed, blocks, norm, x in parts]


class HRViT(nn.Module):
    """Images float32 [batch, 3, height, width] to four maps, or to logits [batch, num_classes] where it has classes.

    The maps are [batch, channels[i], height / strides[i], width / strides[i]], rounded up, each layer-normalised.

    channels: of each branch; blocks: of every module, of each of its branches; windows: rows of a stripe, of each
    branch; ratios: hidden channels of MixCFN over channels, of each branch; head_width: channels of an attention head;
    stem: channels of its two convolutions. drop_path rises linearly to this over the blocks; dropout: after the
    projections of a block. num_classes: None for the four maps; head_dropout: before the classifier. shared_kv,
    parallel_conv, shortcut, mixed: the paper's ablations, see `HRViTBlock`. input_shape: for traces and exports.
    Raises UserError for settings that do not fit together.
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        channels: Sequence[int],
        blocks: Blocks,
        windows: Sequence[int] = (1, 2, 7, 7),
        ratios: Sequence[float] = (4, 4, 4, 4),
        head_width: int = 32,
        stem: Sequence[int] = (32, 64),
        drop_path: float = 0.1,
        dropout: float = 0.0,
        num_classes: int | None = 1000,
        head_dropout: float = 0.1,
        shared_kv: bool = True,
        parallel_conv: bool = True,
        shortcut: bool = True,
        mixed: bool = True,
        input_shape: Sequence[int] = (3, 224, 224),
    ) -> None:
        super().__init__()
        check_blocks(blocks)
        for key, value in (("channels", channels), ("windows", windows), ("ratios", ratios)):
            per_branch(value, len(self.strides), key)
        per_branch(stem, 2, "stem")
        self.channels, self.num_classes, self.input_shape = tuple(channels), num_classes, tuple(input_shape)
        options = {"dropout": dropout, "shared_kv": shared_kv, "parallel_conv": parallel_conv}
        options |= {"shortcut": shortcut, "mixed": mixed}
        depth = sum(map(max, blocks))
        rates = [drop_path * block / max(1, depth - 1) for block in range(depth)]
        self.stem = Stem(*stem)
        self.features = nn.Sequential()
        widths = [stem[1]]
        for counts in blocks:
            fused_widths = [*widths, *channels[len(widths) : len(counts)]]
            outs = list(channels[: len(counts)])
            branches = [
                [
                    HRViTBlock(outs[i], head_width, windows[i], ratios[i], rates[block], **options)
                    for block in range(count)
                ]
                for i, count in enumerate(counts)
            ]
            self.features += nn.Sequential(Fusion(widths, fused_widths), Stage(fused_widths, branches, outs))
            rates, widths = rates[max(counts) :], outs
        self.head = None if num_classes is None else ClassificationHead(channels, num_classes, head_dropout)

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """The four maps."""
        return self.features([self.stem(images.contiguous(memory_format=torch.channels_last))])

    def forward(self, images: Tensor) -> Any:
        maps = self.forward_features(images)
        return maps if self.head is None else self.head(maps)

    def repeated_blocks(self) -> list[HRViTBlock]:
        """What is compiled, or recomputed in the backward pass, one by one."""
        return [module for module in self.modules() if isinstance(module, HRViTBlock)]

    def reset_head(self, num_classes: int | None) -> None:
        """A fresh classifier of so many classes; None takes the head away and leaves the four maps."""
        self.num_classes = num_classes
        if num_classes is None:
            self.head = None
        elif self.head is None:
            self.head = ClassificationHead(self.channels, num_classes).to(self.stem.conv1.weight)
        else:
            self.head.reset(num_classes)


def check_blocks(blocks: Blocks) -> None:
    """Raises UserError unless the modules have 1 to 4 branches, one more now and then, and every branch a block."""
    branches = [len(counts) for counts in blocks]
    grows = branches[:1] == [1] and all(after - before in (0, 1) for before, after in pairwise(branches))
    if not grows or branches[-1] != len(HRViT.strides) or min(map(min, blocks)) < 1:
        raise UserError(
            f"blocks={[list(counts) for counts in blocks]} must begin with a module of one branch, add one branch at a "
            "time up to four, and give every branch a block"
        )


def hrvit_b1(drop_path: float = 0.1, **settings: Any) -> HRViT:
    """19.7 M parameters with 1,000 classes, 7.8 M without. Arguments: `HRViT`'s."""
    blocks = ((1,), (1, 1), (1, 1, 6), (1, 1, 6), (1, 1, 6, 2), (1, 1, 2, 2))
    return HRViT((32, 64, 128, 256), blocks, ratios=(4, 4, 4, 4), head_width=32, drop_path=drop_path, **settings)


def hrvit_b2(drop_path: float = 0.1, **settings: Any) -> HRViT:
    """32.5 M parameters with 1,000 classes, 20.3 M without. Arguments: `HRViT`'s."""
    blocks = ((1,), (1, 1), (1, 1, 6), (1, 1, 6), (1, 1, 6, 2), (1, 1, 6, 2))
    return HRViT((48, 96, 240, 384), blocks, ratios=(2, 3, 3, 3), head_width=24, drop_path=drop_path, **settings)


def hrvit_b3(drop_path: float = 0.15, **settings: Any) -> HRViT:
    """37.9 M parameters with 1,000 classes, 25.5 M without. Arguments: `HRViT`'s."""
    blocks = ((1,), (1, 1), (1, 1, 6), (1, 1, 6), (1, 1, 6, 3), (1, 1, 6, 3))
    return HRViT((64, 128, 256, 512), blocks, ratios=(2, 2, 2, 2), head_width=32, drop_path=drop_path, **settings)


def hrvit_nano(drop_path: float = 0.0, **settings: Any) -> HRViT:
    """0.3 M parameters as a segmenter, for two cores; not of the paper. Arguments: `HRViT`'s."""
    blocks = ((1,), (1, 1), (1, 1, 1), (1, 1, 2, 1))
    return HRViT(
        (16, 32, 64, 96), blocks, ratios=(2, 2, 2, 2), head_width=16, stem=(16, 32), drop_path=drop_path, **settings
    )
