"""The kernels in C against whole-number definitions in NumPy, published answers, and one another on every core."""

import ctypes
import os
import shutil
import subprocess
from ctypes import POINTER, c_int8, c_int32
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetrain.export.c.cortex_m import CORES, SOURCES, missing_tools
from edgetrain.ops.int8 import softmax, softmax_multiplier

HERE = Path(__file__).parent
CSRC = SOURCES.parent
KERNELS = ["kernels.c", "kernels_plain.c"]
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
GUARD, CANARY = 64, 0x5A
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="lacks cc")

Numbers = POINTER(c_int32)
Bytes = POINTER(c_int8)


class Rescale(ctypes.Structure):
    _fields_ = [("multiplier", Numbers), ("shift", Numbers)]
    _fields_ += [(name, c_int32) for name in ("right_shift", "offset", "low", "high")]


SIZES = ["in_height", "in_width", "in_channels", "out_height", "out_width", "out_channels"]
WINDOW = ["kernel_height", "kernel_width", "stride_height", "stride_width", "pad_top", "pad_left"]


class Layer(ctypes.Structure):
    _fields_ = [("weight", Bytes), ("bias", Numbers), ("rescale", Rescale), ("input_offset", c_int32)]
    _fields_ += [(name, c_int32) for name in (*SIZES, *WINDOW)]


MAPS = ["in_height", "in_width", "channels", "out_height", "out_width"]


class Pool(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in (*MAPS, *WINDOW, "left_shift", "low", "high")]


class Addition(ctypes.Structure):
    _fields_ = [("size", c_int32)]
    _fields_ += [
        (name, c_int32)
        for which in ("first_", "second_", "")
        for name in (f"{which}offset", f"{which}multiplier", f"{which}shift")
    ]
    _fields_ += [("low", c_int32), ("high", c_int32)]


@pytest.fixture(scope="module", params=KERNELS)
def library(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    command = ["cc", *STRICT, "-O3", "-shared", "-fPIC", str(CSRC / request.param), "-o", str(path)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(path))


def bytes_of(array):
    return array.ctypes.data_as(Bytes)


def numbers_of(array):
    return array.ctypes.data_as(Numbers)


def requantize(x, multiplier, shift):
    """The definition, on Python's own whole numbers: a saturated shift to the left, a product rounded half up, a
    division rounded half away from zero."""
    x = max(-(2**31), min(2**31 - 1, x << max(shift, 0)))
    product = (x * multiplier + 2**30) // 2**31
    right = max(-shift, 0)
    magnitude = (abs(product) + (1 << right >> 1)) >> right
    return magnitude if product >= 0 else -magnitude


class RandomLayer:
    """Weights, biases, rescaling, and an input; q7 or int8."""

    def __init__(self, draw, depthwise=False, whole=False):
        self.q7 = bool(draw.random() < 0.3)
        outside = bool(draw.random() < 0.2)
        self.kernel = (1, 1) if whole else tuple(map(int, draw.integers(1, 6, 2)))
        self.stride = (1, 1) if whole else tuple(map(int, draw.integers(1, 4, 2)))
        self.pad = (0, 0) if whole else tuple(int(draw.integers(0, 9 if outside else each)) for each in self.kernel)
        channels = int(draw.choice([1, 2, 3, 4, 5, 8, 13, 16, 20]))
        if whole:
            channels = int(draw.integers(1, 200))
        height, width = (1, 1) if whole else draw.integers(1, 7, 2)
        made = channels if depthwise else int(draw.choice([1, 2, 3, 4, 7, 16]))
        self.input = self.int8(draw, (int(height), int(width), channels))
        reach = [(size + 2 * pad - kernel) // stride + 1 for size, pad, kernel, stride in
                 zip((height, width), self.pad, self.kernel, self.stride, strict=True)]  # fmt: skip
        self.shape = (*(max(1, int(size)) for size in reach), made)
        taps = (*self.kernel, channels)
        self.depthwise = depthwise
        self.weight = self.int8(draw, taps if depthwise else (made, *taps))
        self.bias = draw.integers(-20000, 20000, made).astype(np.int32)
        self.multiplier = draw.integers(2**30, 2**31, made).astype(np.int32)
        self.multiplier[draw.random(made) < 0.1] = 0
        self.shift = draw.integers(-31, 8, made).astype(np.int32)
        usual = draw.random(made) < 0.8
        self.shift[usual] = draw.integers(-13, -5, int(usual.sum()))
        self.right_shift = int(draw.integers(0, 13))
        self.input_offset = 0 if self.q7 else int(draw.integers(-127, 129))
        self.output_offset = 0 if self.q7 else int(draw.integers(-128, 128))
        self.low, self.high = (-128, 127) if draw.random() < 0.6 else sorted(map(int, draw.integers(-128, 128, 2)))

    @staticmethod
    def int8(draw, shape):
        numbers = draw.integers(-128, 128, shape)
        return (np.where(numbers < 0, -128, 127) if draw.random() < 0.2 else numbers).astype(np.int8)

    def struct(self):
        channels = None if self.q7 else numbers_of(self.multiplier)
        shifts = None if self.q7 else numbers_of(self.shift)
        rescale = Rescale(channels, shifts, self.right_shift, self.output_offset, self.low, self.high)
        sizes = (*self.input.shape, *self.shape, *self.kernel, *self.stride, *self.pad)
        return Layer(bytes_of(self.weight), numbers_of(self.bias), rescale, self.input_offset, *sizes)

    def expected(self):
        """From the definition: taps outside the map add nothing."""
        height, width, _ = self.input.shape
        made = np.empty(self.shape, np.int8)
        weight = self.weight.astype(np.int64)
        for y, x, channel in np.ndindex(*self.shape):
            total = int(self.bias[channel])
            for ky, kx in np.ndindex(*self.kernel):
                row, column = y * self.stride[0] - self.pad[0] + ky, x * self.stride[1] - self.pad[1] + kx
                if 0 <= row < height and 0 <= column < width:
                    seen = self.input[row, column].astype(np.int64) + self.input_offset
                    if self.depthwise:
                        total += int(seen[channel] * weight[ky, kx, channel])
                    else:
                        total += int(seen @ weight[channel, ky, kx])
            if self.q7:
                total = (total + (1 << self.right_shift >> 1)) >> self.right_shift
            else:
                total = requantize(total, int(self.multiplier[channel]), int(self.shift[channel]))
            made[y, x, channel] = min(self.high, max(self.low, total + self.output_offset))
        return made


def run_layer(library, function, layer):
    """The output, after a look at the guards around it and around the scratch memory."""
    struct = layer.struct()
    size = int(np.prod(layer.shape))
    needed = getattr(library, f"{function}_scratch")(ctypes.byref(struct))
    out, scratch = guarded(size), guarded(needed)
    getattr(library, function)(ctypes.byref(struct), bytes_of(layer.input), inner(out), inner(scratch))
    for area, used in ((out, size), (scratch, needed)):
        assert np.all(area[:GUARD] == CANARY) and np.all(area[GUARD + used :] == CANARY)
    return out[GUARD : GUARD + size].reshape(layer.shape)


def guarded(size):
    """Memory between guards, aligned as a static arena is."""
    area = np.full(size + 2 * GUARD + 16, CANARY, np.int8)
    return area[-area.ctypes.data % 16 :]


def inner(area):
    return bytes_of(area[GUARD:])


@pytest.mark.parametrize(("function", "options"), [
    ("edgetrain_convolution", {}),
    ("edgetrain_depthwise", {"depthwise": True}),
    ("edgetrain_fully_connected", {"whole": True}),
])  # fmt: skip
def test_layers_equal_their_definition(library, function, options):
    draw = np.random.default_rng(0)
    for number in range(150):
        layer = RandomLayer(draw, **options)
        found = run_layer(library, function, layer)
        assert np.array_equal(found, layer.expected()), f"layer {number}: {layer.__dict__}"


def rescaled(library, sums, multiplier, shift):
    """Sums as the biases of a fully connected layer without weights, rescaled."""
    layer = RandomLayer(np.random.default_rng(0), whole=True)
    count = len(sums)
    layer.q7, layer.low, layer.high, layer.output_offset, layer.shape = False, -128, 127, 0, (1, 1, count)
    layer.input = layer.input[..., :1]
    layer.weight = np.zeros((count, 1), np.int8)
    layer.bias = np.array(sums, np.int32)
    layer.multiplier, layer.shift = np.full(count, multiplier, np.int32), np.full(count, shift, np.int32)
    return run_layer(library, "edgetrain_fully_connected", layer).flatten().tolist()


def test_rescaling_rounds_twice_as_published(library):
    """CMSIS-NN's and TensorFlow Lite's answers for scales of 0.25 and 0.00724742734; halves are not symmetric."""
    sums = [1, -1, 2, -2, 3, -3, 6, -6, 69, -69]
    assert rescaled(library, sums, 2**30, -1) == [1, 0, 1, -1, 1, -1, 2, -2, 18, -17]
    sums = [68, 69, -69, 12345, 2**31 - 1, -(2**31)]
    assert rescaled(library, sums, 1992157658, -7) == [0, 1, -1, 89, 127, -128]


def test_rescaling_to_the_left_saturates(library):
    """A scale of 1.7: 69 * 1.7 = 117.3; of 0.5 * 2^3, whose shift leaves 32 bits."""
    assert rescaled(library, [69, -69, 2**30, -(2**30)], 1825361101, 1) == [117, -117, 127, -128]
    assert rescaled(library, [2**29, -(2**29), 2**31 - 1], 2**30, 3) == [127, -128, 127]


def test_rescaling_by_two_to_the_minus_31(library):
    """Nearly 1 and -1 stay, a quarter is nothing; a half goes up at the first rounding already, so only one is left."""
    assert rescaled(library, [2**31 - 1, -(2**31), 2**29, -(2**29)], 2**31 - 1, -31) == [1, -1, 0, 0]
    assert rescaled(library, [2**30, -(2**30)], 2**31 - 1, -31) == [1, 0]


def run_pool(library, function, pool, given, over=False):
    shape = (pool.out_height, pool.out_width, pool.channels)
    out = given.copy().flatten() if over else np.full(int(np.prod(shape)), CANARY, np.int8)
    source = out if over else given
    getattr(library, function)(ctypes.byref(pool), bytes_of(source), bytes_of(out), None)
    return out[: int(np.prod(shape))].reshape(shape)


def test_average_pool_gives_the_published_answer(library):
    """CMSIS-NN's arm_avgpool_s8 for int8(37 i - 100), 2 x 5 x 4, windows of 2 x 2 two apart."""
    given = (np.arange(40) * 37 - 100).astype(np.int8).reshape(2, 5, 4)
    pool = Pool(2, 5, 4, 1, 2, 2, 2, 2, 2, 0, 0, -1, -128, 127)
    found = run_pool(library, "edgetrain_average_pool", pool, given)
    assert found.flatten().tolist() == [-40, -3, 34, -57, 0, 37, -54, -17]


@pytest.mark.parametrize("kind", ["max", "average"])
def test_pools_equal_their_definition_also_in_place(library, kind):
    draw = np.random.default_rng(1)
    in_place = 0
    for number in range(200):
        height, width, channels = (int(draw.integers(1, 9)), int(draw.integers(1, 9)), int(draw.integers(1, 22)))
        kernel = [int(draw.integers(1, 5)) for _ in range(2)]
        stride = [int(draw.integers(1, 4)) for _ in range(2)]
        pad = [int(draw.integers(0, size // 2 + 1)) if size > 1 else 0 for size in kernel]
        made = [int(draw.integers(1, (size - 1 + before) // step + 2)) for size, before, step in
                zip((height, width), pad, stride, strict=True)]  # fmt: skip
        left = int(draw.integers(-1, 4))
        low, high = (-128, 127) if number % 2 else (-20, 50)
        pool = Pool(height, width, channels, *made, *kernel, *stride, *pad, left, low, high)
        given = RandomLayer.int8(draw, (height, width, channels))
        wanted = np.empty((*made, channels), np.int8)
        for y, x, channel in np.ndindex(*made, channels):
            top, start = y * stride[0] - pad[0], x * stride[1] - pad[1]
            seen = given[max(0, top) : top + kernel[0], max(0, start) : start + kernel[1], channel].flatten().tolist()
            if kind == "max":
                value = max(seen)
            elif left < 0:  # halves away from zero
                magnitude = (2 * abs(sum(seen)) + len(seen)) // (2 * len(seen))
                value = magnitude if sum(seen) > 0 else -magnitude
            else:  # toward zero
                magnitude = (abs(sum(seen)) << left) // len(seen)
                value = magnitude if sum(seen) > 0 else -magnitude
            wanted[y, x, channel] = min(high, max(low, value))
        function = f"edgetrain_{kind}_pool"
        assert np.array_equal(run_pool(library, function, pool, given), wanted), f"pool {number}"
        if all(size == 1 or step - 1 >= each // 2 for size, step, each in zip(made, stride, kernel, strict=True)):
            in_place += 1
            assert np.array_equal(run_pool(library, function, pool, given, True), wanted), f"in place, pool {number}"
    assert in_place > 20


def test_addition_equals_its_definition(library):
    draw = np.random.default_rng(2)
    for number in range(100):
        size = int(draw.integers(1, 40))
        first, second = (RandomLayer.int8(draw, size) for _ in range(2))
        offsets = [int(draw.integers(-127, 129)), int(draw.integers(-127, 129)), int(draw.integers(-128, 128))]
        multipliers = [int(draw.integers(2**30, 2**31)) for _ in range(3)]
        shifts = [int(draw.integers(-6, 1)), int(draw.integers(-6, 1)), int(draw.integers(-22, -14))]
        low, high = (-128, 127) if number % 2 else (offsets[2], 127)
        parts = [each for group in zip(offsets, multipliers, shifts, strict=True) for each in group]
        struct = Addition(size, *parts, low, high)
        out = np.empty(size, np.int8)
        library.edgetrain_add(ctypes.byref(struct), bytes_of(first), bytes_of(second), bytes_of(out))
        for a, b, found in zip(first.tolist(), second.tolist(), out.tolist(), strict=True):
            a, b = (a + offsets[0]) << 20, (b + offsets[1]) << 20
            total = requantize(a, multipliers[0], shifts[0]) + requantize(b, multipliers[1], shifts[1])
            total = requantize(total, multipliers[2], shifts[2]) + offsets[2]
            assert found == min(high, max(low, total)), f"addition {number}"


def test_clip_clips(library):
    given = np.arange(-128, 128).astype(np.int8)[:255]
    out = np.empty_like(given)
    for low, high in [(-128, 127), (-3, 100), (5, 5), (-128, -128)]:
        library.edgetrain_clip(low, high, given.size, bytes_of(given), bytes_of(out))
        assert np.array_equal(out, given.clip(low, high))


def run_softmax(library, parameters, given):
    out = np.empty_like(given)
    library.edgetrain_softmax(*parameters, given.size, bytes_of(given), bytes_of(out))
    return out


def test_softmax_gives_the_published_answer(library):
    given = np.array([101, 49, 6, -34, -75, -79, -38, 120, -55, 115], np.int8)
    found = run_softmax(library, (1077952640, 23, -248), given)
    assert found.tolist() == [-90, -127, -128, -128, -128, -128, -128, -3, -128, -37]


def test_softmax_is_within_a_step_of_the_real_one(library):
    """A logit's step of 1/16: with 26 fractional bits, 1/16 is 2^22 = 2^30 2^(23 - 31)."""
    draw = np.random.default_rng(3)
    for size in (1, 2, 7, 100):
        given = RandomLayer.int8(draw, size)
        real = np.exp((given.astype(float) - given.max()) / 16)
        found = run_softmax(library, (2**30, 23, -248), given)
        assert np.abs((found.astype(int) + 128) - 256 * real / real.sum()).max() <= 1.01


@pytest.mark.parametrize("scale", [0.003, 0.0625, 0.17, 1.3])
def test_softmax_equals_the_one_in_pytorch(library, scale):
    draw = np.random.default_rng(5)
    parameters = softmax_multiplier(scale)
    for size in (2, 3, 10, 12, 100):
        for given in RandomLayer.int8(draw, (100, size)):
            wanted = softmax(torch.from_numpy(given), *parameters).numpy()
            assert np.array_equal(run_softmax(library, parameters, given), wanted)


def test_own_scratch_is_what_the_interface_promises(library):
    draw = np.random.default_rng(4)
    for _ in range(50):
        struct = RandomLayer(draw).struct()
        columns = 4 * -(-struct.kernel_height * struct.kernel_width * struct.in_channels // 16) * 16
        assert library.edgetrain_convolution_scratch(ctypes.byref(struct)) in (0, columns)
        assert library.edgetrain_depthwise_scratch(ctypes.byref(struct)) == 0
        assert library.edgetrain_fully_connected_scratch(ctypes.byref(struct)) == 0


def test_fast_kernels_equal_plain_ones_under_sanitizers(tmp_path):
    program = tmp_path / "check"
    sources = [str(HERE / "check_kernels.c"), str(CSRC / "kernels.c")]
    subprocess.run(["cc", *STRICT, "-O1", *SANITIZED, "-I", str(CSRC), *sources, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, env={**os.environ, "ASAN_OPTIONS": ""})
    assert (done.returncode, done.stdout, done.stderr) == (0, "2100 operations agree\n", "")


@pytest.mark.skipif(bool(missing_tools()), reason=f"lacks {missing_tools()}")
@pytest.mark.parametrize("core", CORES)
def test_fast_kernels_equal_plain_ones_on_every_core(tmp_path, core):
    """The forms for DSP instructions and Helium, which this machine has not."""
    board, program = CORES[core], tmp_path / "check.elf"
    flags = [*board.flags, "-mthumb", "-O3", "-ffunction-sections", *STRICT, "-I", str(CSRC)]
    link = ["-L", str(SOURCES), "-T", board.memory, "-nostartfiles", "--specs=nosys.specs"]
    sources = [str(HERE / "check_kernels.c"), str(CSRC / "kernels.c")]
    subprocess.run(["arm-none-eabi-gcc", *flags, *sources, *link, "-o", str(program)], check=True)
    emulator = ["qemu-system-arm", "-M", board.machine, "-nographic", "-monitor", "none", "-serial", "none"]
    emulator += ["-semihosting-config", "enable=on,target=native", "-kernel", str(program)]
    done = subprocess.run(emulator, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert (done.returncode, done.stdout + done.stderr) == (0, "2100 operations agree\n")
