/* The real DFT of 2n points is a complex one of n: even samples as real parts, odd ones as imaginary parts
 * (Cooley and Tukey 1965 for the transform, Sorensen et al. 1987 for the split; both unverified). */
#include "frontend.h"

#include <math.h>
#include <string.h>

#define N (EDGETRAIN_POINTS / 2)

struct cplx {
    float re, im;
};

static struct cplx z[N];

static struct cplx times(struct cplx a, struct cplx b)
{
    struct cplx product = {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
    return product;
}

/* exp(-2 pi i k / EDGETRAIN_POINTS), k up to three quarters of them. */
static struct cplx root(int32_t k)
{
    struct cplx w = {edgetrain_sine[k + EDGETRAIN_POINTS / 4], -edgetrain_sine[k]};
    return w;
}

/* n with its bits in reverse order, to that of n + 1. */
static int32_t next_reversed(int32_t reversed)
{
    int32_t bit = N / 2;
    while (reversed & bit) {
        reversed ^= bit;
        bit >>= 1;
    }
    return reversed | bit;
}

/* The periodic Hann window times 1/2, stored up to its middle, about which it is symmetric. */
static float window(int32_t n)
{
    return edgetrain_window[2 * n <= EDGETRAIN_WINDOW ? n : EDGETRAIN_WINDOW - n];
}

/* Four transforms of `quarter` points, in bit-reversed order one behind the other, become one of four times as many. */
static void combine(struct cplx *x, int32_t quarter, struct cplx w1, struct cplx w2, struct cplx w3)
{
    struct cplx a = x[0], b = times(x[2 * quarter], w1), c = times(x[quarter], w2), d = times(x[3 * quarter], w3);
    struct cplx sum = {a.re + c.re, a.im + c.im}, difference = {a.re - c.re, a.im - c.im};
    struct cplx odd_sum = {b.re + d.re, b.im + d.im}, odd_difference = {b.re - d.re, b.im - d.im};
    x[0].re = sum.re + odd_sum.re;
    x[0].im = sum.im + odd_sum.im;
    x[quarter].re = difference.re + odd_difference.im;
    x[quarter].im = difference.im - odd_difference.re;
    x[2 * quarter].re = sum.re - odd_sum.re;
    x[2 * quarter].im = sum.im - odd_sum.im;
    x[3 * quarter].re = difference.re - odd_difference.im;
    x[3 * quarter].im = difference.im + odd_difference.re;
}

/* In place, from bit-reversed order: four at a time, once two at a time where N is no power of four. */
static void fft(void)
{
    int32_t quarter = 1;
    if (!(N & 0x55555555)) {
        for (int32_t i = 0; i < N; i += 2) {
            struct cplx a = z[i], b = z[i + 1];
            z[i].re = a.re + b.re;
            z[i].im = a.im + b.im;
            z[i + 1].re = a.re - b.re;
            z[i + 1].im = a.im - b.im;
        }
        quarter = 2;
    }
    for (; quarter < N; quarter *= 4) {
        for (int32_t k = 0; k < quarter; k++) {
            int32_t step = EDGETRAIN_POINTS / (4 * quarter) * k;
            struct cplx w1 = root(step), w2 = root(2 * step), w3 = root(3 * step);
            for (int32_t i = k; i < N; i += 4 * quarter) {
                combine(z + i, quarter, w1, w2, w3);
            }
        }
    }
}

/* Of bin k of the real DFT; the window has the factor of a half that the split needs. */
static float magnitude(int32_t k)
{
    struct cplx a = z[k & (N - 1)], b = z[(N - k) & (N - 1)], w = root(k);
    struct cplx even = {a.re + b.re, a.im - b.im}, odd = {a.im + b.im, b.re - a.re};
    odd = times(odd, w);
    even.re += odd.re;
    even.im += odd.im;
    return sqrtf(even.re * even.re + even.im * even.im);
}

/* From windowed samples in z, in units of `unit`, a power of two. Bins between the centres of two triangles count in
 * both, with weights that add to 1. */
static void transform(float unit, float *features)
{
    const float *weight = edgetrain_mel_weight, *cosine = edgetrain_dct;
    float rising = 0;
    fft();
    for (int32_t i = 0; i < EDGETRAIN_COEFFICIENTS; i++) {
        features[i] = 0;
    }
    for (int32_t channel = -1, k = EDGETRAIN_FIRST_BIN; channel < EDGETRAIN_MEL_BINS; channel++) {
        float next = 0, falling = 0;
        for (; k < edgetrain_mel_end[channel + 1]; k++) {
            float size = magnitude(k), part = *weight++ * size;
            next += part;
            falling += size - part;
        }
        if (channel >= 0) {
            float heard = (rising + falling) * unit, level = logf(heard > EDGETRAIN_FLOOR ? heard : EDGETRAIN_FLOOR);
            for (int32_t i = 0; i < EDGETRAIN_COEFFICIENTS; i++) {
                features[i] += level * *cosine++;
            }
        }
        rising = next;
    }
}

void edgetrain_frame(const float *samples, float *features)
{
    memset(z, 0, sizeof z);
    for (int32_t n = 0, at = 0; n < EDGETRAIN_WINDOW; n += 2, at = next_reversed(at)) {
        z[at].re = samples[n] * window(n);
        z[at].im = n + 1 < EDGETRAIN_WINDOW ? samples[n + 1] * window(n + 1) : 0;
    }
    transform(1, features);
}

void edgetrain_frame_int16(const int16_t *samples, float *features)
{
    memset(z, 0, sizeof z);
    for (int32_t n = 0, at = 0; n < EDGETRAIN_WINDOW; n += 2, at = next_reversed(at)) {
        z[at].re = samples[n] * window(n);
        z[at].im = n + 1 < EDGETRAIN_WINDOW ? samples[n + 1] * window(n + 1) : 0;
    }
    transform(1.0f / 32768, features);
}
