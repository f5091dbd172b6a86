"""Bit flips on the wires that feed an array of multipliers, from a layer's integer operands.

Energy of a data path grows with the bits that flip between one operand and the next, so it depends on the values and on
the order in which they come ("Improving efficiency in neural network accelerator using operands Hamming distance
optimization", arXiv 2002.05293; the method of reordering is patented, US 11507814). This measures; it changes no order.

A layer is a product W^T A of W [C, K] and A [C, P], C the terms of a sum (input channels innermost, so that neighbours
in time are neighbouring channels of one kernel position), K output channels, P output positions. On an array of R rows
and S columns:

  output stationary   W and A both stream along C, S columns of W and R of A at once; W once for each tile of A, and
                      the other way round
  input stationary    A stands, W streams along K, R terms at once, once for each of ceil(P / S) tiles
  weight stationary   W stands, A streams along P, R terms at once, once for each of ceil(K / S) tiles

What stands still flips nothing. Flips are no energy: `joules` wants coefficients of a user's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgetrain.errors import UserError, listing, nearest
from edgetrain.hardware.workload import Layer, Operands, Workload

Dataflow = Literal["output_stationary", "input_stationary", "weight_stationary"]
Encoding = Literal["twos_complement", "sign_magnitude"]
Codes = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Array:
    """rows, columns: of multipliers; boundaries: flips from one tile to the next count too, an idle lane keeping its
    last value; hops: every register that an operand is handed through counts, not only the first."""

    rows: int
    columns: int
    dataflow: Dataflow = "output_stationary"
    encoding: Encoding = "twos_complement"
    boundaries: bool = False
    hops: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            if getattr(self, name) < 1:
                raise UserError(f"array of multipliers: {name}={getattr(self, name)} must be at least 1")
        for name, known in (("dataflow", get_args(Dataflow)), ("encoding", get_args(Encoding))):
            value = getattr(self, name)
            if value not in known:
                raise UserError(
                    f"array of multipliers: {name}={value} is none of {listing(known)}{nearest(str(value), known)}"
                )


@dataclass(frozen=True)
class Flips:
    """Bit flips of one layer, and NHD: the share of the bits of its codes that flip from one step to the next.

    NHD is that of the whole operand in stream order, without tiles; 0 for what stands still.
    """

    name: str
    macs: int
    weights: int = 0
    inputs: int = 0
    weights_nhd: float = 0.0
    inputs_nhd: float = 0.0
    uncovered: str = ""

    @property
    def total(self) -> int:
        return self.weights + self.inputs


def encode(values: NDArray[np.integer], bits: int, encoding: Encoding = "twos_complement") -> Codes:
    """Codes on `bits` wires. Two's complement takes signed or, without negative numbers, unsigned values.

    Raises UserError for values that do not fit.
    """
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"codes are made of integers, not {values.dtype}")
    if not 1 <= bits <= 32:
        raise UserError(f"bits={bits}: codes of 1 to 32 bits are compared")
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    half = 2 ** (bits - 1)
    if encoding == "sign_magnitude":
        least, most = -(half - 1), half - 1
    else:
        least, most = (-half, half - 1) if low < 0 else (0, 2 * half - 1)
    if low < least or high > most:
        raise UserError(f"values from {low} to {high} do not fit {bits} bits in {encoding.replace('_', ' ')}")
    wide = values.astype(np.int64)
    if encoding == "sign_magnitude":
        wide = np.where(wide < 0, half | -wide, wide)
    else:
        wide &= 2 * half - 1
    return wide.astype(np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)


def hamming_distance(codes: Codes) -> int:
    """HD(Q) of codes [time, lanes]: bits that differ between one step and the next, over all lanes."""
    return _bits(codes[1:], codes[:-1])


def normalised(codes: Codes, bits: int) -> float:
    """NHD = HD / ((T - 1) L B); 0 where nothing follows anything."""
    return hamming_distance(codes) / (codes[1:].size * bits) if codes[1:].size else 0.0


def _bits(before: Codes, after: Codes) -> int:
    return int(np.bitwise_count(before ^ after).sum(dtype=np.int64))


def distances(codes: Codes) -> NDArray[np.int64]:
    """D[i, j]: bits that flip when row j of the codes [rows, lanes] comes after row i."""
    return np.stack([np.bitwise_count(codes ^ row).sum(1, dtype=np.int64) for row in codes])


def product_flips(weights: Codes, inputs: Codes, array: Array) -> tuple[int, int]:
    """Flips of W [C, K] and A [C, P] on the array."""
    rows, columns = array.rows, array.columns
    (_, outputs), (_, positions) = weights.shape, inputs.shape
    if array.dataflow == "output_stationary":
        once = _streamed(weights, columns, -(-positions // rows), array, tiles_inside=True)
        other = _streamed(inputs, rows, -(-outputs // columns), array, tiles_inside=False)
        return (once * rows, other * columns) if array.hops else (once, other)
    if array.dataflow == "input_stationary":
        stream, times = weights.T, -(-positions // columns)
    else:
        stream, times = inputs.T, -(-outputs // columns)
    flips = _streamed(stream, rows, times, array, tiles_inside=True) * (columns if array.hops else 1)
    return (flips, 0) if array.dataflow == "input_stationary" else (0, flips)


def _streamed(stream: Codes, lanes: int, times: int, array: Array, tiles_inside: bool) -> int:
    """Flips of a stream [time, width] cut into tiles of `lanes`, all of it `times` over.

    tiles_inside: every round goes through all tiles; else each tile comes `times` over before the next.
    """
    flips = times * hamming_distance(stream)
    if not array.boundaries:
        return flips
    first, last = _ends(stream, lanes)
    onward = _bits(last[:-1], first[1:])
    if tiles_inside:
        return flips + times * onward + (times - 1) * _bits(last[-1], first[0])
    return flips + (times - 1) * _bits(last, first) + onward


def _ends(stream: Codes, lanes: int) -> tuple[Codes, Codes]:
    """First and last step of every tile, [tiles, lanes]; an idle lane holds what it had."""
    width = stream.shape[1]
    lanes = min(lanes, width)
    tiles = -(-width // lanes)
    first, last = np.zeros((2, tiles * lanes), stream.dtype)
    first[:width], last[:width] = stream[0], stream[-1]
    first, last = first.reshape(tiles, lanes), last.reshape(tiles, lanes)
    idle = tiles * lanes - width
    if idle:
        first[-1, -idle:] = last[-1, -idle:] = last[-2, -idle:]
    return first, last


def products(layer: Layer, operands: Operands, encoding: Encoding) -> Iterator[tuple[Codes, Codes]]:
    """W [C, K] and A [C, P] of each group, as codes. Raises UserError where operands and loops disagree."""
    loops = layer.loops
    weights, inputs = np.asarray(operands.weights), np.asarray(operands.inputs)
    inner, outer = loops.in_channels // loops.groups, loops.out_channels // loops.groups
    wanted = (loops.out_channels, inner, loops.kernel_height, loops.kernel_width)
    image = (loops.batch, loops.in_channels, loops.in_height, loops.in_width)
    large_enough = inputs.shape[:2] == image[:2] and all(a >= b for a, b in zip(inputs.shape, image, strict=False))
    if weights.shape != wanted or inputs.ndim != 4 or not large_enough:
        raise UserError(
            f"layer '{layer.name}': its operands are {list(weights.shape)} and {list(inputs.shape)}, its loops want "
            f"weights {list(wanted)} and inputs {list(image)}"
        )
    try:
        weights = encode(weights, layer.weight_format.bits, encoding)
        inputs = encode(inputs, layer.input_format.bits, encoding)
    except UserError as error:
        raise UserError(f"layer '{layer.name}': {error}") from error
    windows = sliding_window_view(inputs, (loops.kernel_height, loops.kernel_width), axis=(2, 3))
    windows = windows[:, :, :: loops.stride_height, :: loops.stride_width]
    windows = windows[:, :, : loops.out_height, : loops.out_width]  # [batch, channel, y, x, r, s]
    for group in range(loops.groups):
        w = weights[group * outer : (group + 1) * outer].transpose(2, 3, 1, 0).reshape(-1, outer)
        own = windows[:, group * inner : (group + 1) * inner]
        yield w, own.transpose(4, 5, 1, 0, 2, 3).reshape(len(w), -1)


def layer_flips(layer: Layer, array: Array) -> Flips:
    """Bit flips of a layer, its groups one after the other. Raises UserError for operands that cannot be encoded."""
    flips = Flips(layer.name, layer.macs)
    if layer.operands is None:
        return replace(flips, uncovered="it has no integer operands; a module gives them in layer_facts()")
    counted, once, most = [0, 0], [0, 0], [0, 0]  # of weights and of inputs
    for codes in products(layer, layer.operands, array.encoding):
        for side, count in enumerate(product_flips(*codes, array)):
            counted[side] += count
        for side, (stream, format) in enumerate(zip(_streams(*codes, array), layer.factor_formats[::-1], strict=True)):
            once[side] += hamming_distance(stream)
            most[side] += stream[1:].size * format.bits
    weights_nhd, inputs_nhd = (flips / bits if bits else 0.0 for flips, bits in zip(once, most, strict=True))
    return replace(flips, weights=counted[0], inputs=counted[1], weights_nhd=weights_nhd, inputs_nhd=inputs_nhd)


def _streams(weights: Codes, inputs: Codes, array: Array) -> tuple[Codes, Codes]:
    """W and A as they stream, [time, lanes]; one step of what stands still."""
    if array.dataflow == "output_stationary":
        return weights, inputs
    return (weights.T, inputs[:1]) if array.dataflow == "input_stationary" else (weights[:1], inputs.T)


def workload_flips(workload: Workload, array: Array) -> tuple[Flips, ...]:
    """A row for every layer that has MACs; those without operands are `uncovered`."""
    return tuple(layer_flips(layer, array) for layer in workload if layer.macs)


def joules(flips: Flips, per_mac: float, per_weight_flip: float, per_input_flip: float) -> float:
    """E = a MACs + b flips_W + c flips_A. Coefficients are fitted to a layout of a user's own; none are published."""
    return per_mac * flips.macs + per_weight_flip * flips.weights + per_input_flip * flips.inputs
