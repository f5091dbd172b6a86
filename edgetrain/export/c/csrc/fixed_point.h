/* Whole-number arithmetic of TensorFlow Lite (Jacob et al. 2018, arXiv 1712.05877) and gemmlowp, as it is defined. */
#ifndef EDGETRAIN_FIXED_POINT_H
#define EDGETRAIN_FIXED_POINT_H

#include <stdint.h>

static inline int32_t clip(int32_t x, int32_t low, int32_t high)
{
    return x < low ? low : x > high ? high : x;
}

/* round(a * b / 2^31), halves up; not for two times -2^31. */
static inline int32_t doubling_high_product(int32_t a, int32_t b)
{
    return (int32_t)(((int64_t)a * b + (1 << 30)) >> 31);
}

/* x / 2^bits, halves away from zero; bits 0 to 31. */
static inline int32_t rounding_divide(int32_t x, int32_t bits)
{
    int64_t half = (int64_t)1 << bits >> 1;
    return (int32_t)((x + half - (bits > 0 && x < 0)) >> bits);
}

/* x * 2^bits, saturated; bits 0 to 31. */
static inline int32_t shift_left(int32_t x, int32_t bits)
{
    int64_t product = (int64_t)x * ((int64_t)1 << bits);
    return product > INT32_MAX ? INT32_MAX : product < INT32_MIN ? INT32_MIN : (int32_t)product;
}

/* x * multiplier * 2^(shift - 31), rounded twice; multiplier 0 or more, shift -31 to 31. */
static inline int32_t scale(int32_t x, int32_t multiplier, int32_t shift)
{
    int32_t left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
    return rounding_divide(doubling_high_product(shift_left(x, left), multiplier), right);
}

/* e^x of x <= 0 with 26 fractional bits, to 31 fractional bits. */
static inline int32_t exponential(int32_t x)
{
    static const int32_t factors[] = {/* e^-(2^k), k = -2 to 4 */
                                      1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    const int32_t quarter = 1 << 24;
    const int32_t rest = (x & (quarter - 1)) - quarter; /* -1/4 <= rest < 0, x = rest - whole quarters */
    const int32_t y = rest * 32 + (1 << 28);            /* rest + 1/8 with 31 fractional bits; Taylor about -1/8 */
    const int32_t square = doubling_high_product(y, y), cube = doubling_high_product(square, y);
    const int32_t fourth = rounding_divide(doubling_high_product(square, square), 2);
    const int32_t third = 715827883, e_to_minus_eighth = 1895147668;
    const int32_t higher = rounding_divide(doubling_high_product(fourth + cube, third) + square, 1);
    int32_t result = e_to_minus_eighth + doubling_high_product(e_to_minus_eighth, y + higher);
    for (int32_t bit = 0; bit < 7; bit++)
        if ((rest - x) & quarter << bit)
            result = doubling_high_product(result, factors[bit]);
    return x == 0 ? INT32_MAX : result;
}

/* 1 / (1 + x) of 0 <= x < 1, 31 fractional bits, by three steps of Newton's. */
static inline int32_t one_over_one_plus(int32_t x)
{
    const int32_t half = (int32_t)(((int64_t)x + INT32_MAX + 1) >> 1); /* (1 + x) / 2 */
    int32_t result = 1515870810 + doubling_high_product(half, -1010580540); /* 48/17 - 32/17 half, 29 fractional bits */
    for (int32_t step = 0; step < 3; step++)
        result += shift_left(doubling_high_product(result, (1 << 29) - doubling_high_product(half, result)), 2);
    return shift_left(result, 1);
}

static inline void softmax(int32_t multiplier, int32_t shift, int32_t diff_min, int32_t size, const int8_t *in,
                           int8_t *out)
{
    int32_t largest = INT8_MIN, sum = 0, zeros = 0;
    for (int32_t i = 0; i < size; i++)
        largest = in[i] > largest ? in[i] : largest;
    for (int32_t i = 0; i < size; i++)
        if (in[i] - largest >= diff_min) /* with 12 integer bits, so that 2^12 terms fit */
            sum += rounding_divide(exponential(scale(in[i] - largest, multiplier, shift)), 12);
    while (!((uint32_t)sum << zeros & 0x80000000u))
        zeros++;
    const int32_t inverse = one_over_one_plus((int32_t)(((uint32_t)sum << zeros) - 0x80000000u));
    for (int32_t i = 0; i < size; i++) {
        int32_t share = 0; /* of 256 */
        if (in[i] - largest >= diff_min)
            share = rounding_divide(
                doubling_high_product(inverse, exponential(scale(in[i] - largest, multiplier, shift))), 35 - zeros);
        out[i] = (int8_t)clip(share - 128, -128, 127);
    }
}

#endif
