"""The eight networks of the Bit Fusion paper as tables of layers, with the widths of their operands.

Shapes and bits are those of the simulator's benchmarks.py: AlexNet and ResNet-18 of twice the usual width (WRPN), the
others as quantised by QNN (SVHN, CIFAR10) and TWN (LeNet-5, VGG-7). "RESNET-18" is four stages of two pairs of 1x1 and
3x3 convolutions, RNN and LSTM are one product each. Only products are listed: what stands between them (pooling,
concatenation, addition) is free, and a tensor keeps its producer's name across it.

AlexNet stands here twice, with the 27- and 13-pixel maps that all published results follow, and with maps rounded up to
28 and 14. Behind 192 bits a cycle the two cost the same: the best tiles of 27 pixels are billed as 28.
"""

from itertools import chain
from typing import NamedTuple

from edgetrain.errors import UserError, listing, nearest
from edgetrain.hardware.formats import Format
from edgetrain.hardware.workload import Activation, Layer, Loops, Workload

IMAGE = "image"
SUM = Format(32)  # what leaves the last layer


class Product(NamedTuple):
    """side: of the square map of outputs; kernel 0 is a fully connected layer."""

    name: str
    reads: str
    inputs: int
    outputs: int
    input_bits: int
    weight_bits: int
    side: int = 1
    kernel: int = 0
    stride: int = 1

    def layer(self, batch: int, output: Format) -> Layer:
        kernel = self.kernel or 1
        loops = Loops(
            batch, 1, self.outputs, self.inputs, self.side, self.side, kernel, kernel, self.stride, self.stride
        )
        maps = [loops.in_height, loops.in_width] if self.kernel else []
        return Layer(
            self.name,
            "conv" if self.kernel else "linear",
            loops,
            (Activation(self.reads, (batch, self.inputs, *maps), Format(self.input_bits)),),
            (Activation(self.name, (batch, self.outputs, *([self.side] * len(maps))), output),),
            macs=loops.macs,
            operations=2 * loops.macs,
            weights=self.outputs * self.inputs * kernel * kernel,
            weight_name=self.name,
            weight_format=Format(self.weight_bits),
        )


def branch(letter: str, *products: Product) -> list[Product]:
    """Products one after another from the image on, their names ending in a letter."""
    named = [product._replace(name=f"{product.name}_{letter}") for product in products]
    return [
        now._replace(reads=before.name) if before else now for before, now in zip([None, *named], named, strict=False)
    ]


def alexnet(second: int, third: int) -> list[Product]:
    """Maps of `second` and `third` pixels; both branches meet before conv3 and before fc1."""
    branches = [
        branch(
            letter,
            Product("conv1", IMAGE, 3, 96, 8, 8, 55, 11, 4),
            Product("conv2", "", 96, 256, 4, 4, second, 5),
            Product("conv3", "", 512, 384, 4, 4, third, 3),
            Product("conv4", "", 384, 384, 4, 4, third, 3),
            Product("conv5", "", 384, 256, 4, 4, third, 3),
        )
        for letter in "ab"
    ]
    return [
        *chain(*branches),
        Product("fc1", "conv5_a", 512 * 6 * 6, 8192, 4, 4),
        Product("fc2", "fc1", 8192, 8192, 4, 4),
        Product("fc3", "fc2", 8192, 1000, 8, 8),
    ]


def quantised(width: int, bits: int, first_weight_bits: int) -> list[Product]:
    """Six convolutions of width, width, 2 width and so on in pairs, pooled after each pair, and three full layers."""
    sizes = [(3, width), (width, width), (width, 2 * width), (2 * width, 2 * width), (2 * width, 4 * width)]
    sizes.append((4 * width, 4 * width))
    convolutions = [
        Product(f"conv{n}", f"conv{n - 1}", inputs, outputs, bits, bits, (32, 32, 16, 16, 8, 8)[n], 3)
        for n, (inputs, outputs) in enumerate(sizes)
    ]
    convolutions[0] = convolutions[0]._replace(reads=IMAGE, input_bits=8, weight_bits=first_weight_bits)
    return [
        *convolutions,
        Product("fc6", "conv5", 4 * width * 4 * 4, 1024, bits, bits),
        Product("fc7", "fc6", 1024, 1024, bits, bits),
        Product("fc8", "fc7", 1024, 10, bits, bits),
    ]


def vgg7() -> list[Product]:
    branches = [
        branch(
            letter,
            Product("conv1", IMAGE, 3, 128, 2, 2, 32, 3),
            Product("conv2", "", 128, 256, 2, 2, 16, 3),
            Product("conv3", "", 256, 512, 2, 2, 8, 3),
        )
        for letter in "ab"
    ]
    return [*chain(*branches), Product("fc1", "conv3_a", 512 * 4 * 4, 1024, 2, 2)]


def resnet18() -> list[Product]:
    products = [Product("conv1_a", IMAGE, 3, 128, 8, 8, 112, 7, 2)]
    for stage, (width, side) in enumerate([(128, 56), (256, 28), (512, 14), (1024, 7)], start=2):
        for pair in (1, 2):
            before = products[-1]
            stride = 2 if pair == 1 and stage > 2 else 1
            pointwise = Product(f"conv{stage}_{pair}_a", before.name, before.outputs, width, 4, 4, side, 1, stride)
            products += [pointwise, Product(f"conv{stage}_{pair}_b", pointwise.name, width, width, 4, 4, side, 3)]
    return products


NETWORKS = {
    "AlexNet 27/13": alexnet(27, 13),
    "SVHN": quantised(64, 1, 1),
    "CIFAR10": quantised(128, 2, 8),
    "LeNet-5": [
        Product("conv0", IMAGE, 1, 32, 2, 2, 32, 5),
        Product("conv1", "conv0", 32, 64, 2, 2, 16, 5),
        Product("fc1", "conv1", 64 * 8 * 8, 512, 2, 2),
        Product("fc2", "fc1", 512, 10, 2, 2),
    ],
    "VGG-7": vgg7(),
    "RESNET-18": resnet18(),
    "RNN": [Product("matmul", IMAGE, 4096, 4096, 4, 4)],
    "LSTM": [Product("matmul", IMAGE, 3600, 3600, 4, 4)],
    "AlexNet 28/14": alexnet(28, 14),
}


def network(name: str, batch: int) -> Workload:
    """One of NETWORKS. Raises UserError for another name."""
    if name not in NETWORKS:
        raise UserError(
            f"'{name}' is none of the paper's networks{nearest(name, NETWORKS)}; they are {listing(NETWORKS)}"
        )
    products = NETWORKS[name]
    read_as = {product.reads: Format(product.input_bits) for product in products}
    layers = tuple(product.layer(batch, read_as.get(product.name, SUM)) for product in products)
    return Workload(name, layers, (IMAGE,), (products[-1].name,))
