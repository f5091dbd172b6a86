"""HRViT the slow way: maps padded to a multiple of the largest stride, what is no image masked at every step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.models.hrvit import HRViT, Stage
from edgetrain.models.hrvit_block import HRViTBlock, StripeAttention


def golden(model: nn.Module) -> nn.Module:
    """Parameters and inputs without random numbers, as the published values were computed (vision.md, 1.4)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            values = 0.05 * torch.sin(0.37 * count + sum(name.encode()) % 97)
            values += parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(values.view_as(parameter))
    return model.double().eval()


def golden_images(height: int, width: int) -> Tensor:
    return torch.sin(0.013 * torch.arange(3 * height * width, dtype=torch.float64)).view(1, 3, height, width)


class Masked:
    """The four maps of a model for images [1, 3, height, width]; everything is computed on sides of `side`."""

    def __init__(self, model: HRViT, size: tuple[int, int], side: int) -> None:
        self.model, self.size, self.side = model, size, side

    def real(self, stride: int) -> tuple[int, int]:
        return tuple(-(-length // stride) for length in self.size)

    def keep(self, x: Tensor, stride: int) -> Tensor:
        """[batch, channels, side / stride, side / stride] with zeros where no image is."""
        rows, columns = self.real(stride)
        kept = torch.zeros_like(x)
        kept[:, :, :rows, :columns] = x[:, :, :rows, :columns]
        return kept

    def __call__(self, images: Tensor) -> list[Tensor]:
        height, width = self.size
        stem = self.model.stem
        x = F.pad(images, (0, self.side - width, 0, self.side - height))
        x = self.keep(F.relu(stem.bn1(stem.conv1(x))), 2)
        maps = [self.keep(F.relu(stem.bn2(stem.conv2(x))), 4)]
        for fusion, stage in zip(self.model.features[::2], self.model.features[1::2], strict=True):
            maps = self.stage(stage, self.fuse(fusion, maps))
        cuts = [self.real(stride) for stride in HRViT.strides]
        return [x[:, :, :rows, :columns] for x, (rows, columns) in zip(maps, cuts, strict=True)]

    def fuse(self, fusion: nn.Module, maps: list[Tensor]) -> list[Tensor]:
        outs = []
        for i, row in enumerate(fusion.blocks):
            stride = HRViT.strides[i]
            parts = [block(x) for block, x in zip(row, maps, strict=True)]
            for j in range(i + 1, len(parts)):
                parts[j] = parts[j].repeat_interleave(2 ** (j - i), 2).repeat_interleave(2 ** (j - i), 3)
            outs.append(F.gelu(sum(self.keep(part, stride) for part in parts)))
        return outs

    def stage(self, stage: Stage, maps: list[Tensor]) -> list[Tensor]:
        outs = []
        for i, x in enumerate(maps):
            stride = HRViT.strides[i]
            narrow, depthwise = stage.patch_embed[i].proj
            x = stage.patch_embed[i].norm(depthwise(self.keep(narrow(x), stride)).permute(0, 2, 3, 1))
            for block in stage.branches[i]:
                x = self.block(block, x, stride)
            outs.append(self.keep(stage.norm[i](x).permute(0, 3, 1, 2), stride))
        return outs

    def block(self, block: HRViTBlock, x: Tensor, stride: int) -> Tensor:
        x = x + self.attention(block.attn, block.attn_norm(x), stride) + block.des(x)
        hidden = self.keep(block.ffn.fc1(block.ffn_norm(x)).permute(0, 3, 1, 2), stride)
        half = hidden.shape[1] // 2
        mixed = torch.cat((block.ffn.conv.conv_3(hidden[:, :half]), block.ffn.conv.conv_5(hidden[:, half:])), 1)
        return x + block.ffn.fc2(F.gelu(mixed).permute(0, 2, 3, 1))

    def attention(self, attention: StripeAttention, x: Tensor, stride: int) -> Tensor:
        query, value = attention.to_qkv(x).chunk(2, -1)
        half = x.shape[-1] // 2
        rows, columns = self.real(stride)
        over_rows = stripes(query[..., :half], value[..., :half], attention.window, attention.head_width, rows, columns)
        turned = [each[..., half:].transpose(1, 2) for each in (query, value)]
        over_columns = stripes(*turned, attention.window, attention.head_width, columns, rows).transpose(1, 2)
        y = torch.cat((over_rows, over_columns), -1)
        local = attention.parallel_conv[1](self.keep(F.hardswish(value).permute(0, 3, 1, 2), stride))
        y = attention.to_out(F.hardswish(y + local.permute(0, 2, 3, 1)))
        return attention.attn_bn(y.flatten(0, 2)).view_as(y)


def stripes(query: Tensor, value: Tensor, window: int, head_width: int, rows: int, columns: int) -> Tensor:
    """Stripe by stripe, head by head; keys outside of rows x columns are masked, and so is what they would add to."""
    batch, height, width, channels = query.shape
    y = torch.zeros_like(query)
    for start in range(0, rows, window):
        for first in range(0, channels, head_width):
            part = (
                slice(None),
                slice(start, min(start + window, height)),
                slice(None),
                slice(first, first + head_width),
            )
            q, v = (each[part].flatten(1, 2) for each in (query, value))
            scores = q @ v.transpose(1, 2) / head_width**0.5
            real = torch.zeros(part[1].stop - start, width, dtype=torch.bool)
            real[: max(0, rows - start), :columns] = True
            scores = scores.masked_fill(~real.flatten(), -torch.inf)
            y[part] = (scores.softmax(-1) @ v).view(batch, -1, width, head_width)
    return y
