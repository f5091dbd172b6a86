"""PyTorch's operators that C has a kernel for, and their arguments as captured graphs hold them."""

from typing import Any

import torch
from torch.fx import Node

from edgetrain.methods.q7 import MOVES

aten = torch.ops.aten
SAME = (aten.dropout.default, aten.contiguous.default, aten.clone.default, aten.alias.default, aten.detach.default)
PADS = (aten.pad.default, aten.constant_pad_nd.default)
RESHAPES = (*MOVES, aten.squeeze.dims, aten.unflatten.int, aten.t.default)
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)
RELUS = (aten.relu.default, aten.relu_.default)
CLIPS = (*RELUS, aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default, aten.relu6.default)
MAX_POOLS = (aten.max_pool1d.default, aten.max_pool2d.default)
GLOBAL_AVERAGES = (aten.mean.dim, aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default)
AVERAGE_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default)
ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)


def operator(node: Node) -> str:
    """An operator's name as PyTorch has it, such as conv2d."""
    return getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.name)


def clip_bounds(node: Node) -> tuple[float, float]:
    if node.target in RELUS:
        return 0.0, torch.inf
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    names, usual = (("min", "max"), (-torch.inf, torch.inf))
    if node.target is not aten.clamp.default:
        names, usual = ("min_val", "max_val"), (-1.0, 1.0)
    given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    low, high = (given.get(name, value) for name, value in zip(names, usual, strict=True))
    return (-torch.inf if low is None else float(low)), (torch.inf if high is None else float(high))


def convolution_arguments(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """stride, padding, dilation, each a number for each axis, and groups."""
    axes = 1 if node.target is aten.conv1d.default else 2
    given = dict(zip(("stride", "padding", "dilation", "groups"), node.args[3:], strict=False)) | node.kwargs
    stride, padding, dilation = (
        every_axis(given.get(name, usual), axes) for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    return stride, padding, dilation, given.get("groups", 1)


def pool_arguments(node: Node) -> tuple[Any, ...]:
    """kernel, stride, padding, each a number for each axis; of a maximum dilation and ceil_mode, of an average
    ceil_mode, count_include_pad and divisor_override."""
    axes = 1 if node.target in (aten.max_pool1d.default, aten.avg_pool1d.default) else 2
    maximum = node.target in MAX_POOLS
    names = ("dilation", "ceil_mode") if maximum else ("ceil_mode", "count_include_pad", "divisor_override")
    usual = (1, False) if maximum else (False, True, None)
    names, usual = ("kernel_size", "stride", "padding", *names), (None, None, 0, *usual)
    given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    kernel, stride, padding, *rest = (given.get(name, value) for name, value in zip(names, usual, strict=True))
    kernel = every_axis(kernel, axes)
    if maximum:
        rest[0] = every_axis(rest[0], axes)
    return (kernel, every_axis(stride, axes) if stride else kernel, every_axis(padding, axes), *rest)


def every_axis(numbers: int | list[int], axes: int) -> tuple[int, ...]:
    numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    return numbers * axes if len(numbers) == 1 else numbers


def padding_arguments(node: Node) -> tuple[list[int], float | None]:
    """Zeros at both ends of the axes, as F.pad takes them, and what they are; None for what is no constant."""
    names = ("pad", "mode", "value") if node.target is aten.pad.default else ("pad", "value")
    given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    constant = given.get("mode", "constant") == "constant"
    return given["pad"], (given.get("value") or 0.0) if constant else None
