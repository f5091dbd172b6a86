"""Int8 networks against TensorFlow Lite's reference kernels (LiteRT) and TensorFlow Lite Micro, to the bit.

LiteRT 2.3 rounds the sums of a fully connected layer once, and everything else twice; Micro rounds all twice, as this
package does. So only Micro judges that layer.

Needs `pip install ai-edge-litert tflite-micro`, in an environment of their own or beside this package's.
"""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from edgetrain.models.integer import (
    Add,
    AveragePool,
    Convolution,
    Depthwise,
    FullyConnected,
    IntegerNetwork,
    IntegerProgram,
    MaxPool,
    Multipliers,
    Operation,
    Value,
)
from edgetrain.ops import int8

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
KINDS = ["convolution", "depthwise", "max_pool", "average_pool", "add"]


def single(x: float) -> float:
    """As a file holds a scale."""
    return torch.tensor(x, dtype=torch.float32).item()


def bytes_of(x: torch.Tensor) -> list[int]:
    return x.contiguous().view(torch.uint8).flatten().tolist() if x.numel() else []


class Twins:
    """A random network grown at once as a .tflite file and as an IntegerProgram."""

    def __init__(self, seed: int, shape: tuple[int, int, int]) -> None:
        self.draw = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self.values: dict[str, Value] = {}
        self.operations: list[Operation] = []
        self.buffers, self.tensors, self.codes, self.operators = [schema.BufferT()], [], [], []
        self.place: dict[str, int] = {}
        self.value = self.append(shape, *self.format())

    def format(self) -> tuple[float, int]:
        zero_point = self.draw.choice([-128, 127, 0, self.draw.randint(-128, 127)])
        return single(2 ** self.draw.uniform(-8, 0)), zero_point

    def append(self, shape: tuple[int, int, int], scale: float, zero_point: int) -> Value:
        value = Value(f"value{len(self.values)}", shape, scale, zero_point)
        self.values[value.name] = value
        self.place[value.name] = self.tensor((1, *shape), schema.TensorType.INT8, [scale], [zero_point])
        return value

    def tensor(
        self,
        shape: tuple[int, ...],
        kind: int,
        scale: list[float],
        zero_point: list[int],
        axis: int = 0,
        data: Any = None,
    ) -> int:
        tensor, buffer = schema.TensorT(), schema.BufferT()
        tensor.shape, tensor.type, tensor.name = list(shape), kind, f"tensor{len(self.tensors)}".encode()
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = scale, zero_point
        tensor.quantization.quantizedDimension = axis
        if data is not None:
            buffer.data = bytes_of(data)
            self.buffers.append(buffer)
            tensor.buffer = len(self.buffers) - 1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operator(self, code: int, version: int, options: Any, inputs: list[int], output: Value) -> None:
        operator, entry = schema.OperatorT(), schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, code, version
        self.codes.append(entry)
        operator.opcodeIndex, operator.inputs, operator.outputs = len(self.codes) - 1, inputs, [self.place[output.name]]
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        self.operators.append(operator)

    def activation(self, options: Any, output: Value) -> dict[str, int]:
        """A fused ReLU or ReLU6, or none, and what it clips to."""
        kind = self.draw.choice(["NONE", "RELU", "RELU6"])
        options.fusedActivationFunction = getattr(schema.ActivationFunctionType, kind)
        six = output.zero_point + int((torch.tensor(6.0) / output.scale).round())
        low = -128 if kind == "NONE" else output.zero_point
        return {"low": low, "high": min(127, six) if kind == "RELU6" else 127}

    def window(self, options: Any, kernel: tuple[int, int]) -> tuple[dict[str, tuple[int, int]], tuple[int, int]]:
        height, width = self.value.shape[:2]
        stride = self.draw.randint(1, 3), self.draw.randint(1, 3)
        same = kernel[0] > height or kernel[1] > width or self.draw.random() < 0.6
        options.strideH, options.strideW = stride
        options.padding = schema.Padding.SAME if same else schema.Padding.VALID
        sizes = [
            -(-size // step) if same else (size - reach) // step + 1
            for size, step, reach in zip((height, width), stride, kernel, strict=True)
        ]
        before = [
            max((count - 1) * step + reach - size, 0) // 2 if same else 0
            for size, step, reach, count in zip((height, width), stride, kernel, sizes, strict=True)
        ]
        return {"kernel": kernel, "stride": stride, "padding": tuple(before)}, tuple(sizes)

    def weights(self, shape: tuple[int, ...], axis: int, outputs: int, one_scale: bool = False) -> tuple[Any, ...]:
        """weight, bias, scales of the weight, and the places of both in the file."""
        weight = torch.randint(-127, 128, shape, dtype=torch.int8, generator=self.torch)
        bias = torch.randint(-20_000, 20_000, (outputs,), generator=self.torch, dtype=torch.int32)
        scales = [single(2 ** self.draw.uniform(-9, -4)) for _ in range(1 if one_scale else outputs)]
        zeros = [0] * len(scales)
        place = self.tensor(shape, schema.TensorType.INT8, scales, zeros, axis, weight)
        steps = [single(self.value.scale * scale) for scale in scales]
        bias_place = self.tensor((outputs,), schema.TensorType.INT32, steps, zeros, 0, bias)
        return weight, bias, scales, [place, bias_place]

    def rescale(self, scales: list[float], output: Value, outputs: int) -> Multipliers:
        pairs = [int8.quantize_multiplier(self.value.scale * scale / output.scale) for scale in scales]
        pairs = pairs * (outputs // len(pairs))
        return Multipliers(*torch.tensor(pairs, dtype=torch.int32).T)

    def grow(self, kind: str) -> None:
        self.value = getattr(self, kind)()

    def convolution(self) -> Value:
        options, kernel = schema.Conv2DOptionsT(), (self.draw.randint(1, 4), self.draw.randint(1, 4))
        outputs, channels = self.draw.randint(1, 9), self.value.shape[2]
        window, sizes = self.window(options, kernel)
        weight, bias, scales, places = self.weights((outputs, *kernel, channels), 0, outputs)
        output = self.append((*sizes, outputs), *self.format())
        facts = {"weight": weight, "bias": bias, "rescale": self.rescale(scales, output, outputs)}
        code = schema.BuiltinOperator.CONV_2D
        return self.add_layer(Convolution, (code, 3, options), places, output, **window, **facts)

    def depthwise(self) -> Value:
        options, kernel = schema.DepthwiseConv2DOptionsT(), (self.draw.randint(1, 4), self.draw.randint(1, 4))
        options.depthMultiplier, channels = 1, self.value.shape[2]
        window, sizes = self.window(options, kernel)
        window["stride"] = (options.strideH, options.strideW)
        weight, bias, scales, places = self.weights((1, *kernel, channels), 3, channels)
        output = self.append((*sizes, channels), *self.format())
        facts = {"weight": weight[0], "bias": bias, "rescale": self.rescale(scales, output, channels)}
        code = schema.BuiltinOperator.DEPTHWISE_CONV_2D
        return self.add_layer(Depthwise, (code, 3, options), places, output, **window, **facts)

    def fully_connected(self) -> Value:
        options, outputs = schema.FullyConnectedOptionsT(), self.draw.randint(1, 9)
        weight, bias, scales, places = self.weights((outputs, self.value.bytes), 0, outputs, one_scale=True)
        output = self.append((1, 1, outputs), *self.format())
        self.tensors[self.place[output.name]].shape = [1, outputs]
        facts = {"weight": weight, "bias": bias, "rescale": self.rescale(scales, output, outputs)}
        code = schema.BuiltinOperator.FULLY_CONNECTED
        return self.add_layer(FullyConnected, (code, 4, options), places, output, **facts)

    def max_pool(self) -> Value:
        return self.pool(MaxPool, schema.BuiltinOperator.MAX_POOL_2D)

    def average_pool(self) -> Value:
        return self.pool(AveragePool, schema.BuiltinOperator.AVERAGE_POOL_2D)

    def pool(self, kind: type[Operation], code: int) -> Value:
        options, kernel = schema.Pool2DOptionsT(), (self.draw.randint(1, 4), self.draw.randint(1, 4))
        options.filterHeight, options.filterWidth = kernel
        window, sizes = self.window(options, kernel)
        output = self.append((*sizes, self.value.shape[2]), self.value.scale, self.value.zero_point)
        return self.add_layer(kind, (code, 2, options), [], output, **window)

    def add(self) -> Value:
        """With an earlier value of the same shape, or with itself."""
        other = self.draw.choice([value for value in self.values.values() if value.shape == self.value.shape])
        output = self.append(self.value.shape, *self.format())
        pairs = int8.add_multipliers(self.value.scale, other.scale, output.scale)
        facts = dict(zip(("first", "second", "result"), pairs, strict=True))
        operator = schema.BuiltinOperator.ADD, 2, schema.AddOptionsT()
        return self.add_layer(Add, operator, [self.place[other.name]], output, (other.name,), **facts)

    def add_layer(
        self,
        kind: type[Operation],
        operator: tuple[int, int, Any],
        places: list[int],
        output: Value,
        others: tuple[str, ...] = (),
        **facts: Any,
    ) -> Value:
        code, version, options = operator
        names = (self.value.name, *others)
        facts |= self.activation(options, output)
        self.operations.append(kind(name=output.name, inputs=names, output=output.name, **facts))
        self.operator(code, version, options, [self.place[self.value.name], *places], output)
        return output

    def softmax(self) -> None:
        options, output = schema.SoftmaxOptionsT(), self.append(self.value.shape, 1 / 256, -128)
        options.beta = 1.0
        self.operator(schema.BuiltinOperator.SOFTMAX, 2, options, [self.place[self.value.name]], output)
        self.value = output

    def network(self) -> IntegerNetwork:
        shape = self.values["value0"].shape
        program = IntegerProgram("int8", self.values, tuple(self.operations), "value0", self.value.name, (0, 1, 2))
        return IntegerNetwork(program, shape)

    def file(self) -> bytes:
        import flatbuffers

        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = [self.place["value0"]], [self.place[self.value.name]]
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], self.buffers, self.codes
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def litert(file: bytes, inputs: torch.Tensor) -> torch.Tensor:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(model_content=file, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    outputs = []
    for x in inputs:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x[None].numpy())
        interpreter.invoke()
        outputs.append(torch.from_numpy(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy()))
    return torch.cat(outputs)


def micro(file: bytes, inputs: torch.Tensor) -> torch.Tensor:
    runtime = pytest.importorskip("tflite_micro").runtime
    interpreter = runtime.Interpreter.from_bytes(file)
    outputs = []
    for x in inputs:
        interpreter.set_input(x[None].numpy(), 0)
        interpreter.invoke()
        outputs.append(torch.from_numpy(interpreter.get_output(0).copy()))
    return torch.cat(outputs)


Runtime = Callable[[bytes, torch.Tensor], torch.Tensor]


def shape(seed: int) -> tuple[int, int, int]:
    draw = random.Random(seed)
    return draw.randint(1, 8), draw.randint(1, 8), draw.choice([1, 2, 3, 4, 8, 11])


def inputs(twins: Twins, count: int) -> torch.Tensor:
    sizes = count, *twins.values["value0"].shape
    x = torch.randint(-128, 128, sizes, dtype=torch.int8, generator=twins.torch)
    x[:1], x[1:2] = -128, 127
    return x


@pytest.mark.parametrize(("kind", "runtime"), [*itertools.product(KINDS, [litert, micro]), ("fully_connected", micro)])
def test_an_operator_is_tensorflow_lites(kind: str, runtime: Runtime) -> None:
    for seed in range(60):
        twins = Twins(seed, shape(seed))
        twins.grow(kind)
        x = inputs(twins, 6)
        out = twins.network().run(x)[twins.value.name]
        assert torch.equal(out.flatten(1), runtime(twins.file(), x).flatten(1)), seed


@pytest.mark.parametrize("runtime", [litert, micro])
def test_a_network_is_tensorflow_lites(runtime: Runtime) -> None:
    for seed in range(60):
        twins = Twins(seed, shape(seed))
        for kind in (*twins.draw.choices(KINDS, k=5), *(["fully_connected"] if runtime is micro else [])):
            twins.grow(kind)
        x = inputs(twins, 6)
        out = twins.network().run(x)[twins.value.name]
        assert torch.equal(out.flatten(1), runtime(twins.file(), x).flatten(1)), seed


@pytest.mark.parametrize("runtime", [litert, micro])
def test_a_softmax_is_tensorflow_lites(runtime: Runtime) -> None:
    for seed, exponent in itertools.product(range(10), range(-8, 3)):
        twins = Twins(seed, (1, 1, 2 + seed))
        scale = single(1.37 * 2**exponent)
        twins.tensors[0].quantization.scale = [scale]
        twins.softmax()
        x = inputs(twins, 6)
        out = int8.softmax(x, *int8.softmax_multiplier(scale))
        assert torch.equal(out.flatten(1), runtime(twins.file(), x).flatten(1)), (seed, exponent)
