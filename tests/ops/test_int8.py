"""TensorFlow Lite's int8 arithmetic against known answers and, number by number, Python's own integers."""

import itertools
import math

import pytest
import torch
from integer_reference import INT32, clip, divide, divide_by_power, high_product, multiply

from edgetrain.ops import int8

NONE = (0, 0, 0, 0)


def whole(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


@pytest.mark.parametrize(
    ("scale", "pair"),
    [
        (0.5, (1073741824, 0)),
        (0.25, (1073741824, -1)),
        (1.0, (1073741824, 1)),
        (1.7, (1825361101, 1)),
        (0.0072474273418460, (1992157658, -7)),
        (2.0**-15, (1073741824, -14)),
        (1 - 2.0**-33, (2**30, 1)),  # rounds to 2^31, which is not a multiplier
        (0.5 + 2.0**-32, (2**30 + 1, 0)),  # a half goes up
        (0.5 + 2.0**-32 - 2.0**-50, (2**30, 0)),
        (2.0**-32, (2**30, -31)),
        (2.0**-32 - 2.0**-60, (0, 0)),
        (0.0, (0, 0)),
    ],
)
def test_a_scale_has_the_known_multiplier(scale: float, pair: tuple[int, int]) -> None:
    assert int8.quantize_multiplier(scale) == pair


def test_known_sums_times_a_quarter_are_rounded_twice() -> None:
    """12345 / 4 = 3086.25 is 3087, for 12345 / 2 goes up first; one rounding gives 0 for 1, and 1 for 2."""
    sums = torch.tensor([1, -1, 2, -2, 3, -3, 6, -6, 69, -69, 12345, -12345])
    assert int8.requantize(sums, 2**30, -1).tolist() == [1, 0, 1, -1, 1, -1, 2, -2, 18, -17, 3087, -3086]


def test_known_sums_are_rescaled_to_both_ends_of_32_bits() -> None:
    sums = torch.tensor([68, 69, -69, 12345, 10**6, *reversed(INT32)])
    wanted = [0, 1, -1, 89, 7247, 15563732, -15563732]
    assert int8.requantize(sums, *int8.quantize_multiplier(0.0072474273418460)).tolist() == wanted


def test_rescaling_is_the_definition_for_every_shift_and_channel() -> None:
    torch.manual_seed(0)
    shift = torch.arange(-31, 32, dtype=torch.int32)
    multiplier = torch.randint(2**30, 2**31, shift.shape).int()
    multiplier[::9] = 0
    multiplier[1::9] = 2**31 - 1
    small = [sign * number for number in (0, 1, 2, 3, 5, 8, 1000) for sign in (-1, 1)]
    sums = torch.cat([torch.randint(*INT32, (200,)), torch.randint(-(2**20), 2**20, (200,)), torch.tensor(small)])
    sums = torch.cat([sums, torch.tensor([INT32[0], INT32[0] + 1, INT32[1], INT32[1] - 1])])
    out = int8.requantize(sums[:, None], multiplier, shift)
    pairs = list(zip(multiplier.tolist(), shift.tolist(), strict=True))
    assert out.tolist() == [[multiply(x, *pair) for pair in pairs] for x in sums.tolist()]


def test_rescaling_is_within_one_step_of_the_real_product() -> None:
    """Half a step for each of the two roundings; the multiplier itself is within 2^-31 of its scale."""
    torch.manual_seed(0)
    scales = 2 ** (torch.rand(1000, dtype=torch.float64) * 20 - 18)
    sums = torch.randint(-(2**20), 2**20, (1000,))
    pairs = torch.tensor([int8.quantize_multiplier(scale) for scale in scales.tolist()])
    error = int8.requantize(sums, *pairs.T).double() - sums * scales
    assert error.abs().max() <= 1 + 2**20 * scales.max() * 2**-31


def test_what_goes_left_over_32_bits_saturates() -> None:
    sums = torch.tensor([2**29, 2**30, -(2**30), -(2**30) - 1, INT32[0]])
    assert int8.requantize(sums, 2**30, 1).tolist() == [2**29, 2**30, -(2**30), -(2**30), -(2**30)]


def test_saturation_is_of_the_sum_with_the_zero_point() -> None:
    x = torch.tensor([-300, -30, -29, 0, 226, 227, 2**31 - 1])
    assert int8.saturate(x, -99).tolist() == [-128, -128, -128, -99, 127, 127, 127]
    assert int8.saturate(x, -99, low=-99, high=100).tolist() == [-99, -99, -99, -99, 100, 100, 100]


@pytest.mark.parametrize("zero_point", [-128, 127, 11])
@pytest.mark.parametrize(
    ("stride", "padding"), [((1, 1), NONE), ((2, 1), (1, 2, 0, 1)), ((3, 2), (0, -1, 3, 2)), ((1, 4), (4, 4, 4, 4))]
)
def test_convolutions_are_the_loop_over_their_definition(
    stride: tuple[int, int], padding: tuple[int, int, int, int], zero_point: int
) -> None:
    torch.manual_seed(0)
    x, weight, bias = whole(2, 6, 5, 3), whole(4, 3, 2, 3), torch.randint(-(2**20), 2**20, (4,)).int()
    sums = int8.convolution(x, weight, bias, zero_point, stride, padding)
    each = int8.depthwise(x, weight[0], bias[:3], zero_point, stride, padding)
    above, below, left, right = padding
    rows, columns = (6 + above + below - 3) // stride[0] + 1, (5 + left + right - 2) // stride[1] + 1
    assert sums.shape == (2, rows, columns, 4) and each.shape == (2, rows, columns, 3)
    for image, row, column in itertools.product(range(2), range(rows), range(columns)):
        total, single = bias.tolist(), bias[:3].tolist()
        for down, along, channel in itertools.product(range(3), range(2), range(3)):
            y, z = row * stride[0] + down - above, column * stride[1] + along - left
            if 0 <= y < 6 and 0 <= z < 5:
                number = int(x[image, y, z, channel]) - zero_point
                total = [t + number * int(weight[to, down, along, channel]) for to, t in enumerate(total)]
                single[channel] += number * int(weight[0, down, along, channel])
        assert sums[image, row, column].tolist() == total
        assert each[image, row, column].tolist() == single


def test_one_channel_whose_last_columns_no_window_reads_is_exact() -> None:
    """Where its strides left the order of axes open, oneDNN gave other numbers at each call."""
    torch.manual_seed(0)
    for order in ((0, 1, 2, 3), (0, 3, 1, 2)):
        x, weight = whole(4, 4, 5, 1), whole(7, 3, 5, 1)
        x = x.permute(order).contiguous().permute([order.index(axis) for axis in range(4)])
        sums = int8.convolution(x, weight, torch.zeros(7).int(), 0, (1, 2), NONE)
        wanted = torch.einsum("bhwc,ohwc->bo", x[:, :3].double(), weight.double())
        assert sums[:, 0, 0].tolist() == wanted.tolist()


@pytest.mark.parametrize("inputs", [7, 700, 5000])
def test_fully_connected_is_exact_however_many_inputs(inputs: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = whole(2, inputs), whole(3, inputs), torch.tensor([5, -(2**24), 2**24], dtype=torch.int32)
    wanted = [
        [
            b + sum((k + 128) * w for k, w in zip(numbers, factors, strict=True))
            for factors, b in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        for numbers in x.tolist()
    ]
    assert int8.fully_connected(x, weight, bias, -128).tolist() == wanted


def test_sums_that_float32_cannot_hold_are_exact() -> None:
    """600 products of 255 and 127, and one of 1 and 1: odd, and beyond 2^24."""
    x, weight = torch.full((1, 601), 127, dtype=torch.int8), torch.full((1, 601), 127, dtype=torch.int8)
    weight[0, -1] = 1
    x[0, -1] = -127
    bias = torch.zeros(1, dtype=torch.int32)
    total = 600 * 255 * 127 + 1
    assert total > 2**24 and total % 2 == 1
    assert int8.fully_connected(x, weight, bias, -128).item() == total
    assert int8.convolution(x[:, None, None], weight[:, None, None], bias, -128, (1, 1), NONE).item() == total


@pytest.mark.parametrize("zero_point", [-128, -1, 127])
def test_the_largest_sum_is_reached_and_not_passed(zero_point: int) -> None:
    torch.manual_seed(0)
    far = 127 if zero_point < 0 else -128
    positive = torch.randint(0, 128, (9,))
    weight = torch.stack([positive, -positive]).to(torch.int8)
    bias = torch.tensor([700, -700], dtype=torch.int32) * (1 if far > zero_point else -1)
    bound = int8.largest_sum(weight, bias, zero_point)
    reached = int8.fully_connected(torch.full((1, 9), far, dtype=torch.int8), weight, bias, zero_point)
    assert reached.abs().tolist() == [bound.tolist()]
    mixed, bias = whole(50, 9), torch.randint(-1000, 1000, (50,)).int()
    bound = int8.largest_sum(mixed, bias, zero_point)
    assert (int8.fully_connected(whole(500, 9), mixed, bias, zero_point).abs().amax(0) <= bound).all()


def test_the_known_average_pool() -> None:
    x = torch.tensor([(number * 37 - 100 + 128) % 256 - 128 for number in range(40)], dtype=torch.int8)
    out = int8.average_pool(x.view(1, 2, 5, 4), (2, 2), (2, 2), NONE)
    assert out.shape == (1, 1, 2, 4) and out.flatten().tolist() == [-40, -3, 34, -57, 0, 37, -54, -17]


def test_averages_round_halves_away_from_zero() -> None:
    x = torch.tensor([[1, 2], [-1, -2], [1, 0], [-1, 0], [127, 127], [-128, -127]], dtype=torch.int8)
    assert int8.average_pool(x[:, :, None, None], (2, 1), (1, 1), NONE).flatten().tolist() == [2, -2, 1, -1, 127, -128]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((3, 3), (2, 2), (0, 1, 0, 1)),
        ((2, 3), (1, 2), (1, 0, 1, 1)),
        ((6, 5), (1, 1), NONE),
        ((1, 2), (3, 3), (0, -2, 0, -1)),
    ],
    ids=["ceil", "uneven", "whole", "left over"],
)
def test_pools_are_of_what_is_there(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    x = whole(2, 6, 5, 3)
    largest, mean = int8.max_pool(x, kernel, stride, padding), int8.average_pool(x, kernel, stride, padding)
    sums, counts = int8.window_sums(x, kernel, stride, padding)
    for image, row, column, channel in itertools.product(*map(range, largest.shape)):
        rows = range(max(row * stride[0] - padding[0], 0), min(row * stride[0] - padding[0] + kernel[0], 6))
        columns = range(max(column * stride[1] - padding[2], 0), min(column * stride[1] - padding[2] + kernel[1], 5))
        there = [int(x[image, y, z, channel]) for y in rows for z in columns]
        total, count = sum(there), len(there)
        place = image, row, column, channel
        assert largest[place] == max(there)
        assert (sums[place], counts[row, column, 0]) == (total, count)
        assert mean[place] == divide(total + (count // 2 if total > 0 else -(count // 2)), count)
    rows, columns = ((6, 5)[axis] + sum(padding[2 * axis : 2 * axis + 2]) - kernel[axis] for axis in (0, 1))
    assert largest.shape == mean.shape == (2, rows // stride[0] + 1, columns // stride[1] + 1, 3)


def test_multipliers_of_an_addition_are_tensorflow_lites() -> None:
    """Both inputs to twice the larger scale: 0.5 and 0.25 / 0.5 of a half; the sum back by 2^20."""
    first, second, result = int8.add_multipliers(0.5, 0.25, 1.0)
    assert (first, second) == ((2**30, 0), (2**30, -1))
    assert result == (2**30, -19)  # 1 / 2^20


@pytest.mark.parametrize("scales", [(0.1, 0.1, 0.1), (0.013, 0.4, 0.21), (3.0, 0.002, 1.1), (0.7, 0.6, 0.05)])
def test_addition_is_the_definition_for_every_pair(scales: tuple[float, float, float]) -> None:
    first, second = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(-255, 256)] * 2, indexing="ij"))
    pairs = int8.add_multipliers(*scales)
    out = int8.add(first, second, *pairs)
    assert (out - (first * scales[0] + second * scales[1]) / scales[2]).abs().max() <= 0.5 + 0.01
    for place in range(0, out.numel(), 97):
        terms = (
            multiply(int(number[place]) << 20, *pair) for number, pair in zip((first, second), pairs[:2], strict=True)
        )
        assert int(out[place]) == multiply(sum(terms), *pairs[2])


def test_the_known_softmax() -> None:
    logits = torch.tensor([101, 49, 6, -34, -75, -79, -38, 120, -55, 115], dtype=torch.int8)
    wanted = [-90, -127, -128, -128, -128, -128, -128, -3, -128, -37]
    assert int8.softmax(logits, 1077952640, 23, -248).tolist() == wanted


def test_a_softmax_has_the_known_parameters() -> None:
    scale = torch.tensor(16 / 255, dtype=torch.float32).item()  # as a file of TensorFlow Lite holds it
    assert int8.softmax_multiplier(scale) == (1077952640, 23, -248)


@pytest.mark.parametrize("scale", [0.003, 16 / 255, 0.11, 0.9, 7.0])
def test_softmax_is_gemmlowps_and_within_a_step_of_the_real_one(scale: float) -> None:
    torch.manual_seed(0)
    multiplier, shift, lowest = int8.softmax_multiplier(scale)
    x = torch.cat(
        [whole(60, 11), torch.full((1, 11), 3, dtype=torch.int8), whole(20, 1).repeat(1, 11) // 7 + whole(20, 11) // 32]
    )
    out = int8.softmax(x, multiplier, shift, lowest)
    assert out.tolist() == [softmax(row, multiplier, shift, lowest) for row in x.tolist()]
    real = (x.double() * scale).softmax(-1) * 256 - 128
    assert (out - real.clamp(max=127)).abs().max() < 1


def softmax(x: list[int], multiplier: int, shift: int, lowest: int) -> list[int]:
    """TensorFlow Lite's reference, gemmlowp's fixed point written out."""

    def product(*factors: int) -> int:
        out = factors[0]
        for factor in factors[1:]:
            out = high_product(out, factor)
        return out

    def exponential(a: int) -> int:
        remainder_quarter = (a & (2**24 - 1)) - 2**24
        y = (remainder_quarter << 5) + 2**28
        square = product(y, y)
        inner = product(divide_by_power(product(square, square), 2) + product(square, y), round(2**31 / 3)) + square
        at_eighth = math.floor(math.exp(-1 / 8) * 2**31)
        result = at_eighth + product(at_eighth, y + divide_by_power(inner, 1))
        for power in range(-2, 5):
            if (remainder_quarter - a) & 2 ** (26 + power):
                result = product(result, EXPONENTIALS[power])
        return INT32[1] if a == 0 else result

    largest = max(x)
    terms = {}
    for number in set(x):
        if number - largest >= lowest:
            terms[number] = exponential(high_product(clip((number - largest) << shift, *INT32), multiplier))
    total = sum(divide_by_power(terms[number], 12) for number in x if number in terms)
    zeros = 32 - total.bit_length()
    fraction = (total << zeros) - 2**31
    half = divide(fraction + INT32[1] + 1, 2)
    y = 1515870810 + product(half, -1010580540)
    for _ in range(3):
        y += clip(product(y, 2**29 - product(half, y)) << 2, *INT32)
    inverse = clip(y << 1, *INT32)
    bits = 12 - zeros + 31 - 8
    return [
        clip(divide_by_power(product(inverse, terms[number]), bits) - 128, -128, 127) if number in terms else -128
        for number in x
    ]


# exp(-2^power) as gemmlowp's fixedpoint.h has it, each within a step of 31 bits
EXPONENTIALS = {
    -2: 1672461947,
    -1: 1302514674,
    0: 790015084,
    1: 290630308,
    2: 39332535,
    3: 720401,
    4: 242,
}


def test_the_exponentials_are_those_of_e() -> None:
    for power, number in EXPONENTIALS.items():
        assert abs(number - math.exp(-(2.0**power)) * 2**31) < 1


def test_inverses_are_right_to_28_bits() -> None:
    """Newton's third step leaves an error of (1/17)^8, less than the roundings of 31 bits; the second (1/17)^4."""
    x = torch.cat([torch.arange(0, 2**31, 2**19), torch.tensor([1, 2**31 - 1])])
    assert (int8._inverse_of_one_plus(x) - 2**31 / (1 + x.double() / 2**31)).abs().max() <= 2**3


def test_sixteenfold_probabilities_of_equal_logits_are_equal() -> None:
    multiplier = int8.softmax_multiplier(0.5)
    assert int8.softmax(torch.zeros(16, dtype=torch.int8), *multiplier).tolist() == [16 - 128] * 16
    assert int8.softmax(torch.tensor([5], dtype=torch.int8), *multiplier).tolist() == [127]
