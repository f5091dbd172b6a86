"""Small random networks in whole numbers, for comparing C with Python: `random_program`.

They hold what trained ones seldom do: kernels larger than the map, uneven padding, windows over the edge, one channel,
channels whose multiplier is 0 or above 1, biases and weights that saturate, zero points at both ends.
"""

import random
from collections.abc import Callable

import torch
from torch import Tensor

from edgetrain.models.integer import (
    Add,
    AveragePool,
    Clip,
    Convolution,
    Depthwise,
    FullyConnected,
    IntegerNetwork,
    IntegerProgram,
    MaxPool,
    Multipliers,
    Operation,
    Rescale,
    RightShift,
    Value,
    Window,
    padding_of,
)
from edgetrain.ops import int8
from edgetrain.ops.int8 import add_multipliers, quantize_multiplier

Shape = tuple[int, int, int]
Axes = tuple[int | None, int | None, int | None]
Places = dict[str, tuple[int, int]]


def random_program(seed: int, scheme: str = "int8") -> IntegerProgram:
    """A chain of two to six operations, in int8 with residual sums, that ends in a vector. scheme: int8 or q7."""
    return _Program(random.Random(f"{scheme} {seed}"), scheme).build()


def random_network(seed: int, scheme: str = "int8") -> IntegerNetwork:
    program = random_program(seed, scheme)
    return IntegerNetwork(program, input_shape(program))


def input_shape(program: IntegerProgram) -> tuple[int, ...]:
    """The network's own input, without the batch."""
    sizes = dict(zip(program.input_axes, program.values[program.input].shape, strict=True))
    return tuple(size for axis, size in sorted((axis, size) for axis, size in sizes.items() if axis is not None))


def random_inputs(program: IntegerProgram, batch: int, seed: int) -> Tensor:
    """int8 [batch, height, width, channels]; the first is -128 everywhere, the second 127, the third one or other."""
    generator = torch.Generator().manual_seed(seed)
    shape = program.values[program.input].shape
    x = torch.randint(-128, 128, (batch, *shape), dtype=torch.int8, generator=generator)
    x[:1], x[1:2], x[2:3] = -128, 127, torch.where(x[2:3] < 0, -128, 127).to(torch.int8)
    return x


class _Program:
    def __init__(self, draw: random.Random, scheme: str) -> None:
        self.draw, self.scheme = draw, scheme
        self.torch = torch.Generator().manual_seed(draw.getrandbits(32))
        self.values: dict[str, Value] = {}
        self.samples: dict[str, Tensor] = {}  # of every value, by which layers get biases and scales that fit
        self.operations: list[Operation] = []

    def build(self) -> IntegerProgram:
        shape, axes = self.draw.choice([self.image, self.features, self.signal, self.vector])()
        value = self.value("input", shape, *self.format())
        self.samples["input"] = torch.randint(-128, 128, (8, *shape), dtype=torch.int8, generator=self.torch)
        kinds: list[Callable[[Value], Value]] = [self.convolution, self.convolution, self.depthwise]
        kinds += [self.max_pool, self.average_pool, self.clip]
        kinds += [self.residual] if self.scheme == "int8" else []
        for _ in range(self.draw.randint(1, 4)):
            value = self.draw.choice(kinds)(value)
        if value.shape[:2] != (1, 1) or self.draw.random() < 0.7:
            value = self.average_pool(value, whole=True) if self.draw.random() < 0.3 else self.fully_connected(value)
        return self.program(value, axes)

    def program(self, output: Value, axes: Axes) -> IntegerProgram:
        return IntegerProgram(self.scheme, self.values, tuple(self.operations), "input", output.name, axes)

    # Inputs: a shape, and the axes of the network's own input that are its height, width and channels.

    def image(self) -> tuple[Shape, Axes]:
        return (self.draw.randint(2, 11), self.draw.randint(2, 11), self.channels()), (1, 2, 0)

    def features(self) -> tuple[Shape, Axes]:
        return (self.draw.randint(2, 13), self.draw.randint(2, 10), 1), (0, 1, None)

    def signal(self) -> tuple[Shape, Axes]:
        return (1, self.draw.randint(2, 40), self.channels()), (None, 1, 0)

    def vector(self) -> tuple[Shape, Axes]:
        return (1, 1, self.draw.randint(1, 70)), (None, None, 0)

    def channels(self) -> int:
        return self.draw.choice([1, 1, 2, 3, 3, 4, 5, 7, 8, 9, 12, 16, 17, 20])

    def format(self) -> tuple[float, int]:
        """scale and zero point of a tensor."""
        if self.scheme == "q7":
            return 2.0 ** -self.draw.randint(0, 9), 0
        return 2.0 ** self.draw.uniform(-8, 2), self.draw.choice([-128, -128, 127, 0, self.draw.randint(-128, 127)])

    def value(self, name: str, shape: Shape, scale: float, zero_point: int) -> Value:
        self.values[name] = Value(name, shape, scale, zero_point)
        return self.values[name]

    def append(self, kind: type[Operation], inputs: tuple[Value, ...], output: Value, **facts: object) -> Value:
        relu = output.zero_point if output.zero_point < 60 or self.draw.random() < 0.1 else 0
        low, high = self.draw.choice([(-128, 127), (-128, 127), (relu, 127), self.ends()])
        names = tuple(value.name for value in inputs)
        operation = kind(name=output.name, inputs=names, output=output.name, low=low, high=high, **facts)
        self.operations.append(operation)
        network = IntegerNetwork(self.program(output, (None, None, None)), ())
        self.samples[output.name] = network.apply(operation, *(self.samples[name] for name in names))
        return output

    def ends(self) -> tuple[int, int]:
        """low and high, as a ReLU6 has them."""
        return self.draw.randint(-128, -30), self.draw.randint(30, 127)

    def name(self, kind: str) -> str:
        return f"blocks.{len(self.operations)}.{kind}"

    # Operations: each takes a value and gives the next.

    def convolution(self, x: Value, same: bool = False) -> Value:
        window, (rows, columns) = self.window(x, most=3, same=same)
        outputs = x.shape[2] if same else self.channels()
        weight = self.weight(outputs, *window["kernel"], x.shape[2])
        output = self.value(self.name("convolution"), (rows, columns, outputs), *self.format())
        sums = self.sums(int8.convolution, weight, outputs, x, output, window)
        return self.append(Convolution, (x,), output, **window, weight=weight, **self.rescaled(sums, output))

    def depthwise(self, x: Value) -> Value:
        window, (rows, columns) = self.window(x, most=4)
        weight = self.weight(x.shape[2], *window["kernel"]).permute(1, 2, 0).contiguous()
        output = self.value(self.name("depthwise"), (rows, columns, x.shape[2]), *self.format())
        sums = self.sums(int8.depthwise, weight, x.shape[2], x, output, window)
        return self.append(Depthwise, (x,), output, **window, weight=weight, **self.rescaled(sums, output))

    def fully_connected(self, x: Value) -> Value:
        outputs = self.draw.randint(1, 13)
        weight = self.weight(outputs, x.bytes)
        output = self.value(self.name("linear"), (1, 1, outputs), *self.format())
        bias = torch.zeros(outputs, dtype=torch.int32)
        sums = int8.fully_connected(self.samples[x.name].flatten(1), weight, bias, x.zero_point)
        return self.append(FullyConnected, (x,), output, weight=weight, **self.rescaled(sums, output))

    def max_pool(self, x: Value) -> Value:
        window, (rows, columns) = self.window(x, most=3, pool=True)
        output = self.value(self.name("max_pool"), (rows, columns, x.shape[2]), x.scale, x.zero_point)
        return self.append(MaxPool, (x,), output, **window)

    def average_pool(self, x: Value, whole: bool = False) -> Value:
        window, (rows, columns) = self.window(x, most=3, pool=True)
        if whole:
            window, (rows, columns) = {"kernel": x.shape[:2], "stride": (1, 1)}, (1, 1)
        left_shift = self.draw.randint(0, 4) if self.scheme == "q7" else None
        scale = x.scale * 2.0 ** -(left_shift or 0)
        output = self.value(self.name("average_pool"), (rows, columns, x.shape[2]), scale, x.zero_point)
        return self.append(AveragePool, (x,), output, **window, left_shift=left_shift)

    def clip(self, x: Value) -> Value:
        return self.append(Clip, (x,), self.value(self.name("clip"), x.shape, x.scale, x.zero_point))

    def residual(self, x: Value) -> Value:
        """x and a convolution of it, or twice x, in either order."""
        branch = x if self.draw.random() < 0.1 else self.convolution(x, same=True)
        first, second = self.draw.sample([x, branch], 2)
        reals = sum((self.samples[each.name].double() - each.zero_point) * each.scale for each in (first, second))
        scale = max(reals.std().item() / 40, max(x.scale, branch.scale) / 8) * 2.0 ** self.draw.uniform(-1.5, 1)
        middle = round(-reals.mean().item() / scale)
        zero_point = self.draw.choice([max(-128, min(127, middle)), self.format()[1]])
        output = self.value(self.name("add"), x.shape, scale, zero_point)
        multipliers = add_multipliers(first.scale, second.scale, scale)
        names = dict(zip(("first", "second", "result"), multipliers, strict=True))
        return self.append(Add, (first, second), output, **names)

    def window(self, x: Value, most: int, pool: bool = False, same: bool = False) -> tuple[Places, tuple[int, int]]:
        """kernel, stride and padding, and the height and width that come out. most: of a stride."""
        axes = [self.along(size, most, pool, same) for size in x.shape[:2]]
        kernel, stride, padding, output = (tuple(axis[place] for axis in axes) for place in range(4))
        return {"kernel": kernel, "stride": stride, "padding": padding}, output

    def along(self, size: int, most: int, pool: bool, same: bool) -> tuple[int, int, int, int]:
        """kernel, stride, padding and output along one axis; the padding below or right follows from them."""
        kernel = self.draw.choice([1, 2, 3, 3, 5])
        if same:
            return kernel, 1, (kernel - 1) // 2, size
        stride = self.draw.randint(1, most)
        before, after = (self.draw.randint(0, kernel // 2 if pool else kernel - 1) for _ in range(2))
        before, after = self.draw.choice([(0, 0), (before, after), (before, after)])
        if kernel > size + before + after:
            before, after = kernel // 2, kernel - 1 - kernel // 2  # always enough for one window
        output = (size + before + after - kernel) // stride + 1
        if pool:  # no window may be empty, one may stand over the edge
            output = (size + before - kernel + self.draw.choice([0, stride - 1])) // stride + 1
            output = max(1, min(output, (size + before - 1) // stride + 1))
        return kernel, stride, before, output

    # Numbers.

    def weight(self, *shape: int) -> Tensor:
        """int8 [out channels, ...]: of any size, of few bits, or saturated; some channels almost empty."""
        weight = torch.randint(-128, 128, shape, dtype=torch.int8, generator=self.torch)
        kind = self.draw.choice(["any", "any", "few bits", "saturated"])
        if kind == "few bits":
            weight = (weight.float() / 2 ** self.draw.randint(2, 6)).to(torch.int8)
        if kind == "saturated":
            weight = torch.where(weight < 0, -128, 127).to(torch.int8)
        if self.draw.random() < 0.3:
            channel = self.draw.randrange(shape[0])
            chosen = torch.rand(shape[1:], generator=self.torch) < 2 / weight[0].numel()
            weight[channel] = chosen * self.draw.choice([-1, 1])
        return weight

    def sums(
        self, kernel: Callable[..., Tensor], weight: Tensor, outputs: int, x: Value, output: Value, window: Places
    ) -> Tensor:
        padding = padding_of(Window(name="", inputs=(), output="", **window), x, output)
        bias = torch.zeros(outputs, dtype=torch.int32)
        return kernel(self.samples[x.name], weight, bias, x.zero_point, window["stride"], padding)

    def rescaled(self, sums: Tensor, output: Value) -> dict[str, Tensor | Rescale]:
        """A bias and a rescaling with which most outputs are neither constant nor saturated."""
        sums = sums.double().flatten(0, -2)
        mean, spread = sums.mean(0), sums.std(0).clamp_min(1)
        outputs = len(mean)
        bits = torch.tensor([self.draw.uniform(-1.5, 1) for _ in range(outputs)], dtype=torch.float64)
        scales = 2**bits * 40 / spread
        middle = self.draw.choice([0, output.zero_point]) / scales  # around 0, or around the zero point as for a ReLU
        bias = torch.randn(outputs, generator=self.torch, dtype=torch.float64) * spread / 2 - mean - middle
        if self.draw.random() < 0.2:
            bias[self.draw.randrange(outputs)] = self.draw.choice([-(2**23), 2**23])
        bias = bias.round().to(torch.int32)
        if self.scheme == "q7":
            shift = max(0, round(-scales.log2().mean().item()) + self.draw.randint(-1, 1))
            return {"bias": bias, "rescale": RightShift(shift)}
        if self.draw.random() < 0.3:
            scales[self.draw.randrange(outputs)] = self.draw.choice([0.0, 1e-12, 2.0**-32, 1e-7, 0.5, 1.0, 1.7, 6.0])
        pairs = torch.tensor([quantize_multiplier(scale) for scale in scales.tolist()], dtype=torch.int32)
        return {"bias": bias, "rescale": Multipliers(*(column.contiguous() for column in pairs.T))}
