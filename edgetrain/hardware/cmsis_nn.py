"""Scratch memory of CMSIS-NN's int8 kernels (Lai, Suda and Chandra 2018, arXiv 1801.06601), version 7.

The sizes are those of the library's `arm_*_wrapper_s8_get_buffer_size`: im2col holds two columns of int16 on cores with
DSP instructions and four of int8 on cores with Helium. Padding and dilation are taken as the fast kernels want them. A
one-dimensional convolution needs less on Helium, an average pool 4 bytes a channel more with DSP instructions. Scratch
of recurrent and matmul kernels is not known here and not counted.
"""

from edgetrain.hardware.activation_memory import Scratch
from edgetrain.hardware.workload import Layer

HELIUM_CHANNELS = 124  # depthwise channels that a Helium kernel takes at once (CH_IN_BLOCK_MVE)


def dsp_scratch(layer: Layer) -> int:
    """Bytes on Cortex-M4, M7 and M33."""
    loops = layer.loops
    taps = loops.kernel_height * loops.kernel_width
    if layer.kind == "depthwise":
        plain = loops.in_channels != loops.out_channels or loops.batch > 1
        return 0 if plain or (loops.kernel_height, loops.kernel_width) == (3, 3) else 2 * taps * loops.in_channels
    if layer.kind in ("conv", "grouped") and taps > 1:
        return 2 * 2 * _up(taps * loops.in_channels, 4)
    return 0


def helium_scratch(layer: Layer) -> int:
    """Bytes on Cortex-M55 and M85."""
    loops = layer.loops
    taps = loops.kernel_height * loops.kernel_width
    if layer.kind == "depthwise":
        return 0 if loops.in_channels != loops.out_channels or loops.batch > 1 else 4 * taps * HELIUM_CHANNELS
    if layer.kind in ("conv", "grouped") and taps > 1:
        return 4 * _up(taps * loops.in_channels, 16)
    return 4 * loops.out_channels if layer.kind == "linear" else 0


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


SCRATCH: dict[str, Scratch] = {"dsp": dsp_scratch, "helium": helium_scratch}
