"""Integer arithmetic of CMSIS-NN's q7 kernels against loops of Python's own integers and cases worked by hand."""

import math

import pytest
import torch

from edgetrain.ops import q7


def scaled(total: int, bias: int, bias_shift: int, out_shift: int) -> int:
    """One output number, as arXiv 1801.06601's kernels compute it."""
    half = 2 ** (out_shift - 1) if out_shift else 0
    return max(-128, min(127, math.floor((bias * 2**bias_shift + half + total) / 2**out_shift)))


def whole(*shape: int, low: int = -128) -> torch.Tensor:
    return torch.randint(low, 128, shape, dtype=torch.int8)


def test_rounding_is_half_up_before_the_shift() -> None:
    sums = torch.tensor([3, 2, 1, 0, -1, -2, -3, -5, -6, -7], dtype=torch.int32)
    zero = torch.zeros(1, dtype=torch.int32)
    # quarters: 0.75 0.5 0.25 0 -0.25 -0.5 -0.75 -1.25 -1.5 -1.75
    assert q7.requantize(sums, zero, 0, 2).tolist() == [1, 1, 0, 0, 0, 0, -1, -1, -1, -2]


def test_the_bias_is_shifted_to_the_format_of_the_sums() -> None:
    """3 with 5 fractional bits is 3 * 2^2 with 7; plus 20 is 32, which is 2 with 3 fractional bits."""
    assert q7.requantize(torch.tensor([20]), torch.tensor([3]), 2, 4).tolist() == [2]


def test_sums_saturate_at_both_ends() -> None:
    sums = torch.tensor([127 * 4, 128 * 4, 10**6, -128 * 4, -129 * 4, -(10**6)], dtype=torch.int32)
    zero = torch.zeros(1, dtype=torch.int32)
    assert q7.requantize(sums, zero, 0, 2).tolist() == [127, 127, 127, -128, -128, -128]


def test_without_a_shift_nothing_is_rounded() -> None:
    assert q7.requantize(torch.tensor([-3, 5]), torch.tensor([1]), 0, 0).tolist() == [-2, 6]


@pytest.mark.parametrize(
    ("groups", "stride", "padding"),
    [(1, (1, 1), (0, 0, 0, 0)), (1, (2, 1), (1, 2, 0, 1)), (4, (1, 2), (1, 1, 1, 1))],
    ids=["plain", "strided", "depthwise"],
)
def test_convolution_is_the_loop_over_its_definition(
    groups: int, stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    x, weight, bias = (
        whole(2, 4, 6, 5),
        whole(8 if groups == 1 else 4, 4 // groups, 3, 2),
        whole(8 if groups == 1 else 4),
    )
    out = q7.convolution(x, weight, bias, 3, 9, stride, padding, groups)
    left, right, above, below = padding
    shape = (6 + above + below - 3) // stride[0] + 1, (5 + left + right - 2) // stride[1] + 1
    assert out.shape == (2, len(weight), *shape) and out.dtype == torch.int8
    for image, channel, row, column in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
        total = 0
        for depth in range(weight.shape[1]):
            source = depth if groups == 1 else channel
            for down in range(3):
                for along in range(2):
                    y, z = row * stride[0] + down - above, column * stride[1] + along - left
                    if 0 <= y < 6 and 0 <= z < 5:
                        total += int(x[image, source, y, z]) * int(weight[channel, depth, down, along])
        assert int(out[image, channel, row, column]) == scaled(total, int(bias[channel]), 3, 9)


@pytest.mark.parametrize("inputs", [7, q7.EXACT_TERMS, 2 * q7.EXACT_TERMS])
def test_fully_connected_is_exact_however_many_inputs(inputs: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = whole(3, inputs), whole(5, inputs), whole(5)
    out = q7.fully_connected(x, weight, bias, 1, 13)
    for row, numbers in enumerate(x.tolist()):
        for column, factors in enumerate(weight.tolist()):
            total = sum(a * b for a, b in zip(numbers, factors, strict=True))
            assert int(out[row, column]) == scaled(total, int(bias[column]), 1, 13)


def test_a_sum_that_float32_cannot_hold_is_exact() -> None:
    """1,288 products 2^14 and one 1 are 161 * 2^17 + 1; the bias takes the 1 away, and 2^17 more make 81 * 2^18."""
    x = torch.full((1, 1289), -128, dtype=torch.int8)
    x[0, -1] = 1
    bias = torch.tensor([-1], dtype=torch.int8)
    assert q7.fully_connected(x, x, bias, 0, 18).item() == 81


def test_relu_keeps_what_is_positive() -> None:
    assert q7.relu(torch.tensor([-128, -1, 0, 1, 127], dtype=torch.int8)).tolist() == [0, 0, 0, 1, 127]


def test_the_average_is_shifted_before_it_is_rounded_toward_zero() -> None:
    """Means 7/4 and -7/4: with two more fractional bits 7 and -7, with one more 3.5 and -3.5, and C cuts off."""
    maps = torch.tensor([[[1, 2], [2, 2]], [[-1, -2], [-2, -2]]], dtype=torch.int8)[None]
    assert q7.average_pool(maps, 2).tolist() == [[7, -7]]
    assert q7.average_pool(maps, 1).tolist() == [[3, -3]]
    assert q7.average_pool(maps, 0).tolist() == [[1, -1]]
    assert q7.average_pool(maps, 7).tolist() == [[127, -128]]


@pytest.mark.parametrize(
    ("largest", "bits"), [(0.9, 7), (1.0, 7), (1.1, 6), (0.5, 8), (0.26, 8), (0.2, 9), (31.9, 2), (100.0, 0), (0.0, 7)]
)
def test_fraction_bits_leave_room_for_the_largest_number(largest: float, bits: int) -> None:
    """The guide's int_bits = ceil(log2 largest) and 7 - int_bits; Q5.2 holds 31.75."""
    assert q7.fraction_bits(largest) == bits
    assert largest * 2.0**bits <= 128


def test_quantised_numbers_are_within_half_a_step() -> None:
    x = torch.linspace(-0.99, 0.99, 1001)
    numbers = q7.quantize(x, q7.fraction_bits(0.99))
    assert numbers.dtype == torch.int8
    assert ((numbers.double() / 2**7 - x.double()).abs() <= 0.5 / 2**7 + 1e-9).all()
    assert q7.quantize(torch.tensor([2.0, -2.0]), 7).tolist() == [127, -128]
