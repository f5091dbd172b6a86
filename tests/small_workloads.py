"""Small workloads whose costs are published or can be counted by hand."""

from itertools import pairwise

from edgetrain.hardware.formats import INT8, Format
from edgetrain.hardware.workload import Activation, Kind, Layer, Loops, Workload


def layer(name: str, kind: Kind, loops: Loops, inputs: list[Activation], output: Activation, **facts) -> Layer:
    """A layer whose MACs and weights are those of its loops, at one byte a number."""
    counts = {}
    if kind in ("conv", "depthwise", "grouped", "linear"):
        weights = loops.out_channels * loops.in_channels // loops.groups * loops.kernel_height * loops.kernel_width
        counts = {"macs": loops.macs, "weights": weights, "biases": loops.out_channels, "weight_format": INT8}
    return Layer(name, kind, loops, tuple(inputs), (output,), **counts | facts)


def tensor(name: str, *shape: int, format: Format = INT8, state: bool = False) -> Activation:
    return Activation(name, shape, format, state)


def cifar10(relu: bool = False) -> Workload:
    """CMSIS-NN's CIFAR-10 network (arXiv 1801.06601, table 1): three convolutions, each with a pool, and a classifier.

    relu: the activations as layers of their own.
    """
    x = tensor("image", 1, 3, 32, 32)
    layers: list[Layer] = []

    def add(name: str, kind: Kind, loops: Loops, shape: tuple[int, ...]) -> None:
        nonlocal x
        y = tensor(name, *shape)
        layers.append(layer(name, kind, loops, [x], y))
        x = y

    for number, (channels, outputs, size) in enumerate([(3, 32, 32), (32, 32, 16), (32, 64, 8)], 1):
        same = (1, outputs, size, size)
        add(f"conv{number}", "conv", Loops(1, 1, outputs, channels, size, size, 5, 5), same)
        if relu:
            add(f"relu{number}", "elementwise", Loops(), same)
        half = size // 2
        pool = Loops(1, outputs, outputs, outputs, half, half, 3, 3, 2, 2)
        add(f"pool{number}", "pool", pool, (1, outputs, half, half))
    add("fc", "linear", Loops(1, 1, 10, 1024), (1, 10))
    return Workload("cifar10", tuple(layers), ("image",), ("fc",))


def chain(sizes: list[int], kind: Kind = "conv") -> Workload:
    """Layers of one byte an element, tensor after tensor."""
    tensors = [tensor(f"t{place}", size) for place, size in enumerate(sizes)]
    layers = [
        Layer(f"l{place}", kind, Loops(), (before,), (after,))
        for place, (before, after) in enumerate(pairwise(tensors))
    ]
    return Workload("chain", tuple(layers), (tensors[0].name,), (tensors[-1].name,))
