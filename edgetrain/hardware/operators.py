"""What torch's operators cost: for each a row or more of the table, from the shapes of its tensors.

Convention for `operations`: a MAC is two, and takes in the bias, where its sum begins; a function of one number (exp,
GELU, sigmoid) is one look-up; copies are none. Softmax: maximum, difference, exp, sum, quotient, five an element.
Layer and group norm: sum, difference, square, its sum, product, five an element; RMS norm three; scale and shift one
each. A batch norm is folded into a scale and a shift of each channel.
"""

from collections.abc import Callable, Iterable
from math import ceil, prod
from typing import Any

from edgetrain.hardware.operator_rows import Call, Operand, Row, product_rows, sizes
from edgetrain.hardware.products import (
    attention,
    einsum,
    int8_matmul,
    linear,
    matmul,
    recurrent,
    recurrent_cell,
)
from edgetrain.hardware.workload import Kind, Loops

Handler = Callable[[Call], list[Row] | None]  # None: this form of the operator is not known


def convolution(call: Call) -> list[Row]:
    """A transposed one is the product of each input pixel with the whole kernel, overlaps summed: a 1x1 convolution to
    kernel-size times the channels. Of a 1-d one the length is the height; of a 3-d one depth joins batch and inputs."""
    x, weight, out = call["input"], call["weight"], call.output
    groups = call["groups"] or 1
    spatial = len(weight.shape) - 2
    transposed = call["transposed"] or "transpose" in call.name
    kernel, stride = weight.shape[2:], _each(call["stride"], spatial)
    batch, pixels = (x if transposed else out).shape[: -spatial - 1], (x if transposed else out).shape[-spatial:]
    in_channels, out_channels = x.shape[-spatial - 1], out.shape[-spatial - 1]
    kind: Kind = "conv" if groups == 1 else "depthwise" if groups == in_channels else "grouped"
    if transposed:
        out_channels, kernel, stride = out_channels * prod(kernel), (1,) * spatial, (1,) * spatial
    depth, (height, width) = pixels[:-2], (*pixels, 1)[:2] if spatial == 1 else pixels[-2:]
    loops = Loops(
        prod(batch) * prod(depth),
        groups,
        out_channels,
        in_channels * prod(kernel[:-2]),
        height,
        width,
        *((*kernel, 1)[:2] if spatial == 1 else kernel[-2:]),
        *((*stride, 1)[:2] if spatial == 1 else stride[-2:]),
    )
    return product_rows(kind, loops, call, (x, weight), biases=(call["bias"],))


def _each(value: Any, count: int) -> tuple[int, ...]:
    """An option of a convolution or pool, which may be one number for all dimensions or left out."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value or 1,)
    return values * count if len(values) == 1 else values


def pool(call: Call) -> list[Row]:
    x, out = call.tensors[0], call.output
    spatial = int(call.name.removesuffix("_with_indices")[-2])
    before, after = x.shape[-spatial:], out.shape[-spatial:]
    if call.name.startswith("adaptive"):
        windows = [[ceil((i + 1) * n / m) - i * n // m for i in range(m)] for n, m in zip(before, after, strict=True)]
        kernel, stride = tuple(map(max, windows)), tuple(n // m for n, m in zip(before, after, strict=True))
        operations = prod(out.shape[:-spatial]) * prod(map(sum, windows))
    else:
        kernel = _each(call["kernel_size"], spatial)
        stride = _each(call["stride"], spatial) if call["stride"] else kernel
        operations = out.elements * prod(kernel)
    return [_pool_row(call, x, out.shape[:-spatial], after, kernel, stride, operations)]


def _pool_row(
    call: Call,
    x: Operand,
    maps: tuple[int, ...],
    after: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    operations: int,
) -> Row:
    if len(after) == 1:
        after, kernel, stride = (*after, 1), (*kernel, 1), (*stride, 1)
    channels, batch = maps[-1], prod(maps[:-1]) * prod(after[:-2])
    loops = Loops(batch, channels, channels, channels, *after[-2:], prod(kernel[:-1]), kernel[-1], *stride[-2:])
    return Row("pool", loops, (x,), call.outputs, operations)


def batch_norm(call: Call) -> list[Row]:
    x = call["input"]
    channels = x.shape[1]
    reads = (x, call["weight"] or call["running_mean"])
    return [Row("norm", sizes(x.shape), reads, call.outputs[:1], 2 * x.elements, weights=2 * channels)]


def norm(call: Call) -> list[Row]:
    x = call.tensors[0]
    scale, shift = call["weight"], call["bias"]
    steps = (3 if "rms" in call.name else 5) + (scale is not None) + (shift is not None)
    return [Row("norm", sizes(x.shape), (x, scale), call.outputs[:1], steps * x.elements, biases=(shift,))]


def softmax(call: Call) -> list[Row]:
    return [Row("softmax", sizes(call.output.shape), call.tensors, call.outputs, 5 * call.output.elements)]


def embedding(call: Call) -> list[Row]:
    """Reads as many rows of the table as it is asked for; stores all."""
    table, indices, out = call["weight"], call["indices"], call.output
    return [Row("embedding", sizes(out.shape), (indices, table), call.outputs, indices.elements)]


def embedding_bag(call: Call) -> list[Row]:
    """The sum or mean of the rows that each bag asks for."""
    table, indices, offsets = (call[key] for key in ("weight", "indices", "offsets"))
    operations = indices.elements * (1 + table.shape[1])
    return [Row("embedding", sizes(call.output.shape), (indices, offsets, table), call.outputs[:1], operations)]


def elementwise(call: Call) -> list[Row]:
    steps = STEPS.get(call.name, 1)
    operations = steps * prod(call.output.shape)
    return [Row("elementwise", sizes(call.output.shape), call.tensors, call.outputs, operations)]


def reduction(call: Call) -> list[Row]:
    """Over maps or tokens it is a pool with a window as large as they are; else only its additions are known."""
    x, out = call.tensors[0], call.output
    dims = call["dim"]
    dims = [dims] if isinstance(dims, int) else dims
    dims = sorted(dim % len(x.shape) for dim in dims or range(len(x.shape)))
    spatial = [*range(2, len(x.shape))] if len(x.shape) > 3 else [1]
    if len(x.shape) > 2 and dims == spatial:
        window = tuple(x.shape[dim] for dim in dims)
        maps = tuple(n for dim, n in enumerate(x.shape) if dim not in dims)
        return [
            _pool_row(call, x, maps, (1,) * max(2, len(dims)), (1, *window)[-max(2, len(dims)) :], (1, 1), x.elements)
        ]
    return [Row("elementwise", sizes(out.shape), call.tensors, call.outputs, x.elements)]


def move(call: Call) -> list[Row]:
    carried = [(call.tensors[0], call.output)] if call.name == "cat" else []  # what was before comes first
    return [Row("move", sizes(call.output.shape), call.tensors, call.outputs, 0, carried=carried)]


# Operations an element, where there are more than one

STEPS = {
    "addcmul": 2,
    "addcdiv": 2,
    "lerp": 3,
    "glu": 2,
    "upsample_linear1d": 3,
    "upsample_bilinear2d": 7,  # four products, three sums
    "upsample_bicubic2d": 31,
    "grid_sampler": 7,
    "grid_sampler_2d": 7,
}


def _table(handlers: Iterable[tuple[Handler, str]]) -> dict[str, Handler]:
    return {name: handler for handler, names in handlers for name in names.split()}


# By torch's name, without overload and without the underscore of the in-place form.
OPERATORS = _table(
    [
        (convolution, "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d"),
        (pool, "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices"),
        (pool, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d"),
        (linear, "linear"),
        (matmul, "mm bmm matmul addmm baddbmm mv dot _int_mm"),
        (int8_matmul, "_weight_int8pack_mm"),
        (attention, "scaled_dot_product_attention"),
        (einsum, "einsum"),
        (recurrent, "lstm gru rnn_tanh rnn_relu"),
        (recurrent_cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
        (batch_norm, "batch_norm"),
        (norm, "layer_norm rms_norm group_norm instance_norm native_layer_norm native_group_norm"),
        (softmax, "softmax _softmax log_softmax _log_softmax"),
        (embedding, "embedding"),
        (embedding_bag, "embedding_bag"),
        (reduction, "mean sum amax amin max min prod var std var_mean std_mean any all argmax argmin logsumexp norm"),
        (reduction, "linalg_vector_norm"),
        (elementwise, "add sub rsub mul div pow neg abs reciprocal sqrt rsqrt square exp log log1p expm1 sin cos erf"),
        (elementwise, "relu relu6 hardtanh clamp clamp_min clamp_max leaky_relu elu selu celu gelu silu mish sigmoid"),
        (elementwise, "tanh hardswish hardsigmoid softplus log_sigmoid prelu glu maximum minimum lerp addcmul addcdiv"),
        (elementwise, "eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or where"),
        (elementwise, "bitwise_not masked_fill to _to_copy type_as floor ceil round trunc sign floor_divide remainder"),
        (elementwise, "fmod isnan isinf nan_to_num cumsum triu tril atan2 tan"),
        (elementwise, "upsample_linear1d upsample_bilinear2d upsample_bicubic2d grid_sampler grid_sampler_2d"),
        (move, "cat stack pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"),
        (move, "clone contiguous copy reshape flatten view_copy unflatten index index_select gather take_along_dim"),
        (move, "index_put index_copy scatter slice_scatter select_scatter repeat repeat_interleave tile roll flip"),
        (move, "pixel_shuffle pixel_unshuffle channel_shuffle im2col upsample_nearest1d upsample_nearest2d fill zero"),
    ]
)
