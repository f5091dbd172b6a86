"""Eight bits against a case worked by hand, and against integer arithmetic."""

import pytest
import torch

from edgetrain.ops.quantization import EXACT_TERMS, quantize_rows, quantized_linear


def test_rows_have_their_own_scale_and_zero_stays_zero() -> None:
    x = torch.tensor([[127.0, -63.4, 0.0, 0.6], [0.0, 2.54, -1.27, 0.01]])
    levels, scales = quantize_rows(x)
    torch.testing.assert_close(scales, torch.tensor([[1.0], [0.02]]))
    assert levels.tolist() == [[127, -63, 0, 1], [0, 127, -64, 0]]  # 1.27 / 0.02 = 63.5, rounded to the even number


def test_the_range_is_symmetric_and_errors_are_half_a_step_at_most() -> None:
    x = torch.randn(50, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4):
        levels, scales = quantize_rows(x, bits)
        assert levels.abs().amax(-1).tolist() == [2 ** (bits - 1) - 1] * 50
        assert ((levels * scales - x).abs() <= scales / 2 * (1 + 1e-12)).all()


def test_a_row_of_zeros_stays_zero() -> None:
    levels, scales = quantize_rows(torch.zeros(2, 3))
    assert not levels.any()
    assert (scales > 0).all()


@pytest.mark.parametrize("terms", [7, EXACT_TERMS])
def test_the_product_is_int32_accumulation_times_the_scales_to_the_bit(terms: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 5, terms, generator=generator), torch.randn(9, terms, generator=generator)
    x[0, 0], w[0] = 1.0, 1.0  # the largest sum that there is: terms * 127^2
    levels, scales = quantize_rows(x)
    weight, weight_scales = quantize_rows(w)
    sums = levels.int() @ weight.int().T
    assert sums[0, 0, 0] == terms * 127**2
    bias = torch.randn(9, generator=generator)
    expected = sums.float() * scales * weight_scales[:, 0] + bias
    assert torch.equal(quantized_linear(x, weight.to(torch.int8), weight_scales, bias), expected)


def test_beyond_the_exact_terms_the_product_is_rounded_only() -> None:
    x, w = torch.rand(3, 8 * EXACT_TERMS), torch.rand(4, 8 * EXACT_TERMS)
    levels, scales = quantize_rows(x)
    weight, weight_scales = quantize_rows(w)
    expected = (levels.double() @ weight.double().T * scales * weight_scales[:, 0]).float()
    torch.testing.assert_close(quantized_linear(x, weight, weight_scales), expected, rtol=1e-5, atol=0)


def test_bfloat16_is_rounded_once_at_the_end() -> None:
    x, w = torch.randn(3, 64).bfloat16(), torch.randn(4, 64)
    weight, weight_scales = quantize_rows(w)
    out = quantized_linear(x, weight, weight_scales)
    assert torch.equal(out, quantized_linear(x.float(), weight, weight_scales).bfloat16())
