"""The transformer block of HRViT: cross-shaped stripe attention, a diversity-enhanced shortcut, a mixed-scale network.

Gu et al. 2022 (arXiv 2111.01236), section 3.2. Maps are [batch, height, width, channels] throughout, which is what
linear layers and norms want; a depthwise convolution sees the same memory as channels last, so nothing is copied.

Where the paper's formulas and its published results differ, this follows the results: GELU inside the shortcut, and
Hardswish before the output projection.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.errors import UserError


class StripeAttention(nn.Module):
    """Attention within stripes: over rows for one half of the channels, over columns for the other.

    dim: channels; head_width: channels of a head, at most dim / 2; window: rows (columns) of a stripe, which spans the
    whole width (height). A side that is no multiple of the window has a last, narrower stripe: it is padded and what
    was added is masked. shared_kv: keys are the values; parallel_conv: add a 3x3 of each channel of the values.
    """

    def __init__(
        self,
        dim: int,
        head_width: int,
        window: int,
        dropout: float = 0.0,
        shared_kv: bool = True,
        parallel_conv: bool = True,
    ) -> None:
        super().__init__()
        half = dim // 2
        self.head_width, self.window, self.shared_kv = min(head_width, half), window, shared_kv
        if dim % 2 or half % self.head_width:
            raise UserError(
                f"{dim} channels cannot be cut into two halves of heads with {head_width} channels each; choose "
                "channels that are a multiple of twice the head width"
            )
        self.to_qkv = nn.Linear(dim, (2 if shared_kv else 3) * dim)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.attn_bn = nn.BatchNorm1d(dim)
        self.parallel_conv = nn.Sequential(nn.Hardswish(), depthwise(dim, 3)) if parallel_conv else None
        for parameter in self.attn_bn.parameters():
            nn.init.zeros_(parameter)  # attention adds nothing at first

    def forward(self, x: Tensor) -> Tensor:
        """[batch, height, width, dim] to the same."""
        parts = self.to_qkv(x).chunk(2 if self.shared_kv else 3, -1)
        query, key, value = parts[0], parts[-2 if not self.shared_kv else -1], parts[-1]
        halves = [each.chunk(2, -1) for each in (query, key, value)]
        rows = self.stripes(*(half[0] for half in halves))
        columns = self.stripes(*(half[1].transpose(1, 2) for half in halves)).transpose(1, 2)
        y = torch.cat((rows, columns), -1)
        if self.parallel_conv is not None:
            y = y + channels_first(self.parallel_conv, value)
        y = self.to_out(F.hardswish(y))
        return self.attn_bn(y.flatten(0, 2)).view_as(y)

    def stripes(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(head width)) v within stripes of `window` rows; all [batch, rows, columns, channels].

        The rows beyond the last whole stripe are a narrower one, by themselves. Where the number of rows is free, as it
        can be in an exported graph, they are padded to a whole one and what was added is masked: the same numbers.
        """
        rows, inputs = query.shape[1], (query, key, value)
        if not isinstance(rows, int):
            count = (rows + self.window - 1) // self.window
            padded = [F.pad(each, (0, 0, 0, 0, 0, count * self.window - rows)) for each in inputs]
            return first(self.attend(padded, self.window, real=rows), 1, rows)
        whole = rows - rows % self.window
        parts = [(slice(0, whole), self.window), (slice(whole, rows), rows - whole)]
        outs = [
            self.attend([each[:, part] for each in inputs], height) for part, height in parts if part.start < part.stop
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)

    def attend(self, inputs: Sequence[Tensor], height: int, real: int | None = None) -> Tensor:
        """The same of rows that are a multiple of a stripe's height; of those from `real` on the keys are masked."""
        batch, rows, columns, channels = inputs[0].shape
        count = rows // height

        def heads(each: Tensor) -> Tensor:
            tokens = each.reshape(batch * count, height * columns, -1, self.head_width)
            return tokens.transpose(1, 2)  # [stripes, heads, tokens, head width]

        mask = None
        if real is not None:
            keys = torch.arange(rows, device=inputs[0].device) < real
            mask = keys.view(count, 1, 1, height, 1).expand(-1, -1, -1, -1, columns).flatten(-2).repeat(batch, 1, 1, 1)
        y = F.scaled_dot_product_attention(*map(heads, inputs), attn_mask=mask).transpose(1, 2)
        if torch.compiler.is_exporting():  # what a graph is lowered to may lay the products out otherwise
            y = y.clone(memory_format=torch.contiguous_format)
        return y.reshape(batch, rows, columns, channels)


class DiversityShortcut(nn.Module):
    """A projection of the block's input, Kronecker-factored: p x p and C/p x C/p instead of C x C (section 3.2).

    Training multiplies by the two C x C matrices that the factors stand for: more products, but large ones, and no
    transposed copies. They are the same function.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        exponent = math.floor(math.log2(dim))
        right = 2 ** (exponent - exponent // 2)
        if dim % right:
            raise UserError(f"{dim} channels have no factor {right}, which the shortcut needs; choose a multiple of it")
        self.factors = (dim // right, right)
        self.proj_right = nn.Linear(right, right)
        self.proj_left = nn.Linear(dim // right, dim // right)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same."""
        if self.training:
            left, right = self.factors
            widened = torch.kron(torch.eye(left, dtype=x.dtype, device=x.device), self.proj_right.weight)
            y = F.gelu(F.linear(x, widened, self.proj_right.bias.repeat(left)))
            widened = torch.kron(self.proj_left.weight, torch.eye(right, dtype=x.dtype, device=x.device))
            return F.linear(y, widened, self.proj_left.bias.repeat_interleave(right))
        y = F.gelu(self.proj_right(x.unflatten(-1, self.factors)))
        return self.proj_left(y.transpose(-1, -2)).transpose(-1, -2).flatten(-2)


class MixConv(nn.Module):
    """A 3x3 of each channel of the first half, a 5x5 of each channel of the second."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_3 = depthwise(dim // 2, 3)
        self.conv_5 = depthwise(dim // 2, 5)


class MixCFN(nn.Module):
    """Linear, depthwise convolutions of two sizes, GELU, linear (section 3.2); `mixed` false: without convolutions.

    The two halves never meet in one tensor: each has its rows of the first matrix and its columns of the second.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, mixed: bool = True) -> None:
        super().__init__()
        if hidden % 2:
            raise UserError(f"{hidden} hidden channels have no two halves; choose another ratio for {dim} channels")
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = MixConv(hidden) if mixed else None
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """[batch, height, width, dim] to the same."""
        if self.conv is None:
            y = self.fc2(F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training))
        else:
            weights, biases = self.fc1.weight.chunk(2), self.fc1.bias.chunk(2)
            outs, convolutions = self.fc2.weight.chunk(2, 1), (self.conv.conv_3, self.conv.conv_5)
            y = self.fc2.bias
            for weight, bias, convolution, out in zip(weights, biases, convolutions, outs, strict=True):
                hidden = F.gelu(channels_first(convolution, F.linear(x, weight, bias)))
                y = y + F.linear(F.dropout(hidden, self.dropout, self.training), out)
        return F.dropout(y, self.dropout, self.training)


class HRViTBlock(nn.Module):
    """x + attention(norm(x)) + shortcut(x), then x + MixCFN(norm(x)), either left out for a sample by drop path.

    dim, head_width, window: of StripeAttention; ratio: hidden channels of MixCFN, times dim. The four switches are the
    paper's ablations (section 4.3). drop_path: share of training samples that pass a branch by.
    """

    def __init__(
        self,
        dim: int,
        head_width: int,
        window: int,
        ratio: float,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        shared_kv: bool = True,
        parallel_conv: bool = True,
        shortcut: bool = True,
        mixed: bool = True,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = StripeAttention(dim, head_width, window, dropout, shared_kv, parallel_conv)
        self.des = DiversityShortcut(dim) if shortcut else None
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = MixCFN(dim, int(dim * ratio), dropout, mixed)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, height, width, dim] to the same."""
        y = self.attn(self.attn_norm(x))
        if self.des is not None:
            y = y + self.des(x)
        x = x + self.dropped(y)
        return x + self.dropped(self.ffn(self.ffn_norm(x)))

    def dropped(self, branch: Tensor) -> Tensor:
        """Zero for a share drop_path of the samples in training, the others scaled up (Huang et al. 2016)."""
        if not (self.training and self.drop_path):
            return branch
        kept = torch.empty(len(branch), 1, 1, 1, dtype=branch.dtype, device=branch.device).bernoulli_(
            1 - self.drop_path
        )
        return branch * (kept / (1 - self.drop_path))


def depthwise(channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)


def channels_first(module: nn.Module, x: Tensor) -> Tensor:
    """A module for [batch, channels, height, width] on [batch, height, width, channels], through views."""
    return module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as what it is, a linear layer: on channels last nothing is copied."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def first(x: Tensor, axis: int, length: int | torch.SymInt) -> Tensor:
    """The first `length` along an axis.

    Where the length is free in an exported graph they are picked by index: that of a slice is min(length, what there
    is), and torch.export does not find out that this is `length` for every side.
    """
    if isinstance(length, int):
        return x.narrow(axis, 0, length)
    return x.index_select(axis, torch.arange(length, device=x.device))


def per_branch(value: Sequence[int | float], branches: int, key: str) -> None:
    """Raises UserError when there are not as many values as branches."""
    if len(value) != branches:
        raise UserError(f"{key}={list(value)} has {len(value)} values for {branches} branches; give one for each")
