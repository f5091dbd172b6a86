/* The operations for speed, in three forms of the inner loops: Helium (Cortex-M55, M85), DSP instructions (Cortex-M4,
 * M7, M33), and portable C that a compiler for another machine makes vectors of.
 *
 * A convolution gathers what a few neighbouring outputs see into columns (im2col; Lai, Suda & Chandra 2018, arXiv
 * 1801.06601, section 3), so that the products run without a look at borders and each weight read serves them all.
 */
#include <stddef.h>
#include <string.h>

#include "fixed_point.h"
#include "kernels.h"

#if defined(__ARM_FEATURE_MVE) && __ARM_FEATURE_MVE & 1
#define EDGETRAIN_HELIUM
#include <arm_mve.h>
#elif defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && !defined(__ARM_BIG_ENDIAN) && defined(__GNUC__)
#define EDGETRAIN_DSP
#endif

static inline int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline int32_t most(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* `scale`, with one test for the usual case: a shift to the right. */
static inline int32_t requantize(int32_t sum, int32_t multiplier, int32_t shift)
{
    if (shift >= 0)
        return doubling_high_product(shift_left(sum, shift), multiplier);
    int32_t product = doubling_high_product(sum, multiplier);
    return (((product + (product >> 31)) >> ~shift) + 1) >> 1; /* ~shift: one less than to the right */
}

static inline int8_t rescale(const struct edgetrain_rescale *to, int32_t sum, int32_t channel)
{
    if (to->multiplier == NULL)
        sum = (sum + (1 << to->right_shift >> 1)) >> to->right_shift;
    else
        sum = requantize(sum, to->multiplier[channel], to->shift[channel]);
    return (int8_t)clip(sum + to->offset, to->low, to->high);
}

/* Of a window's taps along one axis, [first, last) lie on the map. */
struct taps {
    int32_t first, last;
};

static inline struct taps taps_inside(int32_t start, int32_t kernel, int32_t size)
{
    int32_t first = least(kernel, most(0, -start));
    return (struct taps){first, most(first, least(kernel, size - start))};
}

static inline int32_t column_length(const struct edgetrain_layer *layer)
{
    return layer->kernel_height * layer->kernel_width * layer->in_channels;
}

int32_t edgetrain_convolution_scratch(const struct edgetrain_layer *layer)
{
    return 4 * ((column_length(layer) + 15) / 16 * 16);
}

int32_t edgetrain_depthwise_scratch(const struct edgetrain_layer *layer)
{
    return (void)layer, 0;
}

int32_t edgetrain_fully_connected_scratch(const struct edgetrain_layer *layer)
{
    return (void)layer, 0;
}

int32_t edgetrain_average_pool_scratch(const struct edgetrain_pool *pool)
{
    return (void)pool, 0;
}

#if defined(EDGETRAIN_HELIUM)
/* Columns of int8, each from a multiple of 16 bytes on; sums of the weights bring the input's offset in. */
enum { COLUMNS = 4 };

struct column {
    int8_t *to, padding;
};

static inline int32_t pitch_of(const struct edgetrain_layer *layer)
{
    return (column_length(layer) + 15) / 16 * 16;
}

static inline struct column start(const struct edgetrain_layer *layer, void *scratch, int32_t number)
{
    return (struct column){(int8_t *)scratch + number * pitch_of(layer), (int8_t)-layer->input_offset};
}

static inline void append(struct column *column, const int8_t *from, int32_t count)
{
    for (int32_t i = 0; i < count; i += 16) {
        mve_pred16_t there = vctp8q((uint32_t)(count - i));
        vstrbq_p_s8(column->to + i, from == NULL ? vdupq_n_s8(column->padding) : vldrbq_z_s8(from + i, there), there);
    }
    column->to += count;
}

static inline void finish(struct column *column)
{
    (void)column;
}

static inline int32x4_t clip4(int32x4_t x, int32_t low, int32_t high)
{
    return vminq_s32(vmaxq_s32(x, vdupq_n_s32(low)), vdupq_n_s32(high));
}

/* `requantize` of four sums. */
static inline int32x4_t requantize4(int32x4_t sums, int32_t multiplier, int32_t shift)
{
    if (shift >= 0)
        return vqrdmulhq_n_s32(vqshlq_r_s32(sums, shift), multiplier);
    sums = vqrdmulhq_n_s32(sums, multiplier);
    return vrshlq_n_s32(vaddq_s32(sums, vshrq_n_s32(sums, 31)), shift);
}

/* `rescale` of four sums of one channel. */
static inline int32x4_t rescale4(const struct edgetrain_rescale *to, int32x4_t sums, int32_t channel)
{
    if (to->multiplier == NULL)
        sums = vrshlq_n_s32(sums, -to->right_shift);
    else
        sums = requantize4(sums, to->multiplier[channel], to->shift[channel]);
    return clip4(vaddq_n_s32(sums, to->offset), to->low, to->high);
}

/* Numbers 0, 2, 4 and 6, or the first `count` of them. */
static inline int32x4_t every_other(const int32_t *from, int32_t count)
{
    const uint32x4_t places = vidupq_n_u32(0, 2);
    return count == 4 ? vldrwq_gather_shifted_offset_s32(from, places)
                      : vldrwq_gather_shifted_offset_z_s32(from, places, vctp32q((uint32_t)count));
}

/* `rescale` of sums of every other channel, four of them or the first `count`. */
static inline int32x4_t rescale_channels(const struct edgetrain_rescale *to, int32x4_t sums, int32_t channel,
                                         int32_t count)
{
    if (to->multiplier == NULL) {
        sums = vrshlq_n_s32(sums, -to->right_shift);
    } else {
        const int32x4_t shift = every_other(to->shift + channel, count), right = vminq_s32(shift, vdupq_n_s32(0));
        sums = vqshlq_s32(sums, vmaxq_s32(shift, vdupq_n_s32(0)));
        sums = vqrdmulhq_s32(sums, every_other(to->multiplier + channel, count));
        sums = vrshlq_s32(vaddq_s32(sums, vshrq_n_s32(vandq_s32(sums, right), 31)), right);
    }
    return clip4(vaddq_n_s32(sums, to->offset), to->low, to->high);
}

static void multiply_at(const struct edgetrain_layer *layer, const int8_t *columns, int32_t pitch, int8_t *out,
                        int32_t count)
{
    const int32_t length = column_length(layer), channels = layer->out_channels;
    const uint32x4_t places = vmulq_n_u32(vidupq_n_u32(0, 1), (uint32_t)channels);
    const mve_pred16_t stored = vctp32q((uint32_t)count);
    const int8_t *weight = layer->weight;
    for (int32_t channel = 0; channel < channels; channel++) {
        const int8_t *a = columns, *b = a + least(1, count - 1) * pitch, *c = a + least(2, count - 1) * pitch;
        const int8_t *d = a + (count - 1) * pitch;
        int32_t total = 0, sum_a = 0, sum_b = 0, sum_c = 0, sum_d = 0;
        for (int32_t blocks = length / 16; blocks > 0; blocks--) {
            int8x16_t w = vldrbq_s8(weight);
            total = vaddvaq_s8(total, w);
            sum_a = vmladavaq_s8(sum_a, w, vldrbq_s8(a));
            sum_b = vmladavaq_s8(sum_b, w, vldrbq_s8(b));
            sum_c = vmladavaq_s8(sum_c, w, vldrbq_s8(c));
            sum_d = vmladavaq_s8(sum_d, w, vldrbq_s8(d));
            weight += 16, a += 16, b += 16, c += 16, d += 16;
        }
        if (length % 16 > 0) { /* zeros meet what stands behind a column */
            int8x16_t w = vldrbq_z_s8(weight, vctp8q((uint32_t)length % 16));
            total = vaddvaq_s8(total, w);
            sum_a = vmladavaq_s8(sum_a, w, vldrbq_s8(a));
            sum_b = vmladavaq_s8(sum_b, w, vldrbq_s8(b));
            sum_c = vmladavaq_s8(sum_c, w, vldrbq_s8(c));
            sum_d = vmladavaq_s8(sum_d, w, vldrbq_s8(d));
            weight += length % 16;
        }
        int32x4_t sums = {sum_a, sum_b, sum_c, sum_d};
        sums = vaddq_n_s32(sums, layer->bias[channel] + total * layer->input_offset);
        vstrbq_scatter_offset_p_s32(out + channel, places, rescale4(&layer->rescale, sums, channel), stored);
    }
}

static void multiply(const struct edgetrain_layer *layer, const void *columns, int8_t *out, int32_t count)
{
    multiply_at(layer, columns, pitch_of(layer), out, count);
}

#else
/* Two columns of int16 with the offset added, and two filters at once: four sums for each four reads. */
enum { COLUMNS = 2 };

#if defined(EDGETRAIN_DSP)
static inline uint32_t word_at(const void *from)
{
    uint32_t word;
    memcpy(&word, from, 4);
    return word;
}

/* 1 to 3 bytes, then zeros. */
static inline uint32_t bytes_at(const int8_t *from, int32_t count)
{
    uint32_t word = 0;
    for (int32_t i = 0; i < count; i++)
        word |= (uint32_t)(uint8_t)from[i] << 8 * i;
    return word;
}

/* Bytes 0 and 2, or 1 and 3, as two int16, plus two int16: the shift and the sum are free. */
static inline uint32_t even(uint32_t word)
{
    uint32_t pair;
    __asm("sxtb16 %0, %1" : "=r"(pair) : "r"(word));
    return pair;
}

static inline uint32_t odd(uint32_t word)
{
    uint32_t pair;
    __asm("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(word));
    return pair;
}

static inline uint32_t even_plus(uint32_t plus, uint32_t word)
{
    uint32_t pair;
    __asm("sxtab16 %0, %1, %2" : "=r"(pair) : "r"(plus), "r"(word));
    return pair;
}

static inline uint32_t odd_plus(uint32_t plus, uint32_t word)
{
    uint32_t pair;
    __asm("sxtab16 %0, %1, %2, ror #8" : "=r"(pair) : "r"(plus), "r"(word));
    return pair;
}

static inline uint32_t both(int32_t x)
{
    return (uint32_t)(x & 0xFFFF) * 0x10001u;
}

static inline int32_t multiply_add(uint32_t a, uint32_t b, int32_t sum)
{
    return __builtin_arm_smlad((int32_t)a, (int32_t)b, sum);
}

static inline int32_t low_multiply_add(uint32_t a, uint32_t b, int32_t sum)
{
    return __builtin_arm_smlabb((int32_t)a, (int32_t)b, sum);
}

static inline int32_t high_multiply_add(uint32_t a, uint32_t b, int32_t sum)
{
    return __builtin_arm_smlatt((int32_t)a, (int32_t)b, sum);
}

/* Of each four elements, 0 and 2 of one column, of the other, then 1 and 3, as the weights come out of their words. */
struct column {
    uint32_t *to, offset, padding, pending; /* pending: bytes of a group that is not full */
    int32_t pending_count;
};

static inline struct column start(const struct edgetrain_layer *layer, void *scratch, int32_t number)
{
    const uint32_t padding = (uint32_t)(-layer->input_offset & 0xFF) * 0x01010101u;
    return (struct column){(uint32_t *)scratch + number, both(layer->input_offset), padding, 0, 0};
}

static inline void append_group(struct column *column, uint32_t word)
{
    column->to[0] = even_plus(column->offset, word);
    column->to[2] = odd_plus(column->offset, word);
    column->to += 4;
}

static inline void append(struct column *column, const int8_t *from, int32_t count)
{
    for (; count > 0 && column->pending_count > 0; count--) {
        uint32_t byte = from == NULL ? column->padding & 0xFF : (uint8_t)*from++;
        column->pending |= byte << 8 * column->pending_count++;
        if (column->pending_count == 4) {
            append_group(column, column->pending);
            column->pending = 0;
            column->pending_count = 0;
        }
    }
    for (; count >= 4; count -= 4) {
        append_group(column, from == NULL ? column->padding : word_at(from));
        from += from == NULL ? 0 : 4;
    }
    if (count > 0) {
        column->pending = from == NULL ? column->padding >> 8 * (4 - count) : bytes_at(from, count);
        column->pending_count = count;
    }
}

static inline void finish(struct column *column)
{
    if (column->pending_count > 0)
        append_group(column, column->pending);
}

/* The last length % 4 of a filter's weights, then zeros. */
static inline uint32_t last_weights(const int8_t *end, int32_t length)
{
    const int32_t count = length % 4;
    return length < 4 ? bytes_at(end - count, count) : word_at(end - 4) >> 8 * (4 - count);
}

/* Reads two words and steps over them. */
static inline void next_pair(const uint32_t **from, uint32_t *first, uint32_t *second)
{
    __asm("ldrd %0, %1, [%2], #8" : "=&r"(*first), "=&r"(*second), "+r"(*from) : "m"(**from), "m"((*from)[1]));
}

/* sums: first filter with either column, second filter with either column. */
static inline void products(const int8_t *first, const int8_t *second, const void *columns, int32_t length,
                            int32_t sums[4])
{
    const uint32_t *column = columns, *const end = column + length / 4 * 4;
    uint32_t w, v, left, right;
    int32_t a = 0, b = 0, c = 0, d = 0;
    while (column < end) {
        w = word_at(first), v = word_at(second);
        first += 4, second += 4;
        next_pair(&column, &left, &right);
        a = multiply_add(even(w), left, a), b = multiply_add(even(w), right, b);
        c = multiply_add(even(v), left, c), d = multiply_add(even(v), right, d);
        next_pair(&column, &left, &right);
        a = multiply_add(odd(w), left, a), b = multiply_add(odd(w), right, b);
        c = multiply_add(odd(v), left, c), d = multiply_add(odd(v), right, d);
    }
    if (length % 4 > 0) {
        w = last_weights(first + length % 4, length), v = last_weights(second + length % 4, length);
        a = multiply_add(even(w), column[0], a), b = multiply_add(even(w), column[1], b);
        c = multiply_add(even(v), column[0], c), d = multiply_add(even(v), column[1], d);
        a = multiply_add(odd(w), column[2], a), b = multiply_add(odd(w), column[3], b);
        c = multiply_add(odd(v), column[2], c), d = multiply_add(odd(v), column[3], d);
    }
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
}

#else
struct column {
    int16_t *to;
    int32_t offset;
};

static inline struct column start(const struct edgetrain_layer *layer, void *scratch, int32_t number)
{
    return (struct column){(int16_t *)scratch + number * column_length(layer), layer->input_offset};
}

static inline void append(struct column *column, const int8_t *from, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        column->to[i] = (int16_t)(from == NULL ? 0 : from[i] + column->offset);
    column->to += count;
}

static inline void finish(struct column *column)
{
    (void)column;
}

/* sums: first filter with either column, second filter with either column. Of int16 by int16, two products to a sum,
 * compilers make one instruction. */
static inline void products(const int8_t *first, const int8_t *second, const void *columns, int32_t length,
                            int32_t sums[4])
{
    const int16_t *left = columns, *right = left + length;
    int32_t a = 0, b = 0, c = 0, d = 0;
    for (int32_t i = 0; i < length; i++) {
        int16_t w = first[i], v = second[i];
        a += w * left[i];
        b += w * right[i];
        c += v * left[i];
        d += v * right[i];
    }
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
}
#endif

static void multiply(const struct edgetrain_layer *layer, const void *columns, int8_t *out, int32_t count)
{
    const int32_t length = column_length(layer), channels = layer->out_channels;
    for (int32_t channel = 0; channel < channels; channel += 2) {
        const int8_t *first = layer->weight + channel * length;
        const int32_t pair = least(2, channels - channel);
        int32_t sums[4];
        products(first, first + (pair - 1) * length, columns, length, sums);
        for (int32_t i = 0; i < pair; i++) {
            const int32_t bias = layer->bias[channel + i];
            out[channel + i] = rescale(&layer->rescale, bias + sums[2 * i], channel + i);
            if (count > 1)
                out[channels + channel + i] = rescale(&layer->rescale, bias + sums[2 * i + 1], channel + i);
        }
    }
}
#endif

/* What the output at row, column sees. */
static inline void gather(const struct edgetrain_layer *layer, const int8_t *in, int32_t y, int32_t x,
                          struct column column)
{
    const int32_t channels = layer->in_channels, width = layer->kernel_width;
    const int32_t top = y * layer->stride_height - layer->pad_top, left = x * layer->stride_width - layer->pad_left;
    struct taps rows = taps_inside(top, layer->kernel_height, layer->in_height);
    const struct taps columns = taps_inside(left, width, layer->in_width);
    if (columns.first == columns.last)
        rows.last = rows.first;
    append(&column, NULL, rows.first * width * channels);
    for (int32_t row = rows.first; row < rows.last; row++) {
        append(&column, NULL, columns.first * channels);
        append(&column, in + ((top + row) * layer->in_width + left + columns.first) * channels,
               (columns.last - columns.first) * channels);
        append(&column, NULL, (width - columns.last) * channels);
    }
    append(&column, NULL, (layer->kernel_height - rows.last) * width * channels);
    finish(&column);
}

void edgetrain_convolution(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch)
{
    const int32_t channels = layer->out_channels;
    int32_t count = 0;
#if defined(EDGETRAIN_HELIUM)
    const int32_t pixels = layer->out_height * layer->out_width, length = column_length(layer);
    if (layer->kernel_height * layer->kernel_width * layer->stride_height * layer->stride_width == 1 &&
        pixels == layer->in_height * layer->in_width && length % 16 == 0) { /* the map is its columns */
        for (int32_t pixel = 0; pixel < pixels; pixel += COLUMNS)
            multiply_at(layer, in + pixel * length, length, out + pixel * channels, least(COLUMNS, pixels - pixel));
        return;
    }
#endif
    for (int32_t y = 0; y < layer->out_height; y++) {
        for (int32_t x = 0; x < layer->out_width; x++) {
            gather(layer, in, y, x, start(layer, scratch, count));
            if (++count == COLUMNS) {
                multiply(layer, scratch, out, count);
                out += count * channels;
                count = 0;
            }
        }
    }
    if (count > 0)
        multiply(layer, scratch, out, count);
}

/* For a fully connected layer: products of its input with the weights of two rows. */
static inline void dot_products(const struct edgetrain_layer *layer, const int8_t *in, const int8_t *first,
                                const int8_t *second, int32_t sums[2])
{
    const int32_t length = layer->in_channels;
    int32_t a = 0, b = 0, i = 0;
#if defined(EDGETRAIN_HELIUM)
    int32_t total_a = 0, total_b = 0;
    for (; i < length; i += 16) {
        const mve_pred16_t there = vctp8q((uint32_t)(length - i));
        const int8x16_t x = vldrbq_z_s8(in + i, there), w = vldrbq_z_s8(first + i, there);
        const int8x16_t v = vldrbq_z_s8(second + i, there);
        a = vmladavaq_s8(a, x, w), total_a = vaddvaq_s8(total_a, w);
        b = vmladavaq_s8(b, x, v), total_b = vaddvaq_s8(total_b, v);
    }
    a += total_a * layer->input_offset, b += total_b * layer->input_offset;
#elif defined(EDGETRAIN_DSP)
    const uint32_t offset = both(layer->input_offset);
    for (; i + 4 <= length; i += 4) {
        const uint32_t x = word_at(in + i), w = word_at(first + i), v = word_at(second + i);
        const uint32_t x_even = even_plus(offset, x), x_odd = odd_plus(offset, x);
        a = multiply_add(odd(w), x_odd, multiply_add(even(w), x_even, a));
        b = multiply_add(odd(v), x_odd, multiply_add(even(v), x_even, b));
    }
#endif
    for (; i < length; i++) {
        int16_t x = (int16_t)(in[i] + layer->input_offset), w = first[i], v = second[i];
        a += x * w;
        b += x * v;
    }
    sums[0] = a, sums[1] = b;
}

void edgetrain_fully_connected(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch)
{
    (void)scratch;
    for (int32_t row = 0; row < layer->out_channels; row += 2) {
        const int8_t *first = layer->weight + row * layer->in_channels;
        const int32_t pair = least(2, layer->out_channels - row);
        int32_t sums[2];
        dot_products(layer, in, first, first + (pair - 1) * layer->in_channels, sums);
        for (int32_t i = 0; i < pair; i++)
            out[row + i] = rescale(&layer->rescale, layer->bias[row + i] + sums[i], row + i);
    }
}

/* A window as far as it lies on the map: its first tap there, in the map and in the window. */
struct window {
    const int8_t *from;
    int32_t row, column, height, width;
};

static inline struct window window_of(const int8_t *in, int32_t in_height, int32_t in_width, int32_t channels,
                                      int32_t top, int32_t left, int32_t kernel_height, int32_t kernel_width)
{
    const struct taps rows = taps_inside(top, kernel_height, in_height);
    const struct taps columns = taps_inside(left, kernel_width, in_width);
    const int32_t height = rows.last - rows.first, width = columns.last - columns.first;
    const int32_t first = height > 0 && width > 0 ? (top + rows.first) * in_width + left + columns.first : 0;
    return (struct window){in + first * channels, rows.first, columns.first, height, width};
}

/* Adds the products of one tap, of 4 channels or of one. */
static inline void add_tap(const int8_t *in, const int8_t *weight, int32_t offset, int32_t block, int32_t sums[4])
{
#if defined(EDGETRAIN_DSP)
    if (block == 4) {
        const uint32_t plus = both(offset), pixels = word_at(in), w = word_at(weight);
        const uint32_t pixels_even = even_plus(plus, pixels), pixels_odd = odd_plus(plus, pixels);
        sums[0] = low_multiply_add(pixels_even, even(w), sums[0]);
        sums[1] = low_multiply_add(pixels_odd, odd(w), sums[1]);
        sums[2] = high_multiply_add(pixels_even, even(w), sums[2]);
        sums[3] = high_multiply_add(pixels_odd, odd(w), sums[3]);
        return;
    }
#endif
    for (int32_t i = 0; i < block; i++)
        sums[i] += (in[i] + offset) * weight[i];
}

/* Of 4 channels from `channel` on, or of one. */
static inline void depthwise_block(const struct edgetrain_layer *layer, struct window window, int32_t channel,
                                   int32_t block, int8_t *out)
{
    const int32_t channels = layer->out_channels, offset = layer->input_offset, width = window.width;
    const int8_t *in = window.from + channel;
    const int8_t *weight = layer->weight + (window.row * layer->kernel_width + window.column) * channels + channel;
    int32_t sums[4];
    for (int32_t i = 0; i < block; i++)
        sums[i] = layer->bias[channel + i];
    for (int32_t y = window.height; y > 0; y--) {
        if (width == 3) { /* the usual row needs no counting */
            for (int32_t x = 0; x < 3; x++)
                add_tap(in + x * channels, weight + x * channels, offset, block, sums);
        } else {
            for (int32_t x = 0; x < width; x++)
                add_tap(in + x * channels, weight + x * channels, offset, block, sums);
        }
        in += layer->in_width * channels, weight += layer->kernel_width * channels;
    }
    for (int32_t i = 0; i < block; i++)
        out[i] = rescale(&layer->rescale, sums[i], channel + i);
}

#if defined(EDGETRAIN_HELIUM)
/* Adds the products of one tap, of the first `count` of 8 channels, to the sums of 0, 2, 4, 6 and of 1, 3, 5, 7. */
static inline void add_tap8(const int8_t *in, const int8_t *weight, int16_t offset, int32_t count, int32x4_t *even,
                            int32x4_t *odd)
{
    const mve_pred16_t there = vctp16q((uint32_t)count);
    const int16x8_t pixels = vaddq_n_s16(count == 8 ? vldrbq_s16(in) : vldrbq_z_s16(in, there), offset);
    const int16x8_t w = count == 8 ? vldrbq_s16(weight) : vldrbq_z_s16(weight, there);
    *even = vaddq_s32(*even, vmullbq_int_s16(pixels, w));
    *odd = vaddq_s32(*odd, vmulltq_int_s16(pixels, w));
}

/* Of `count` channels from `channel` on, at most 8; with `count` constant nothing is masked. */
static inline void depthwise_block8(const struct edgetrain_layer *layer, struct window window, int32_t channel,
                                    int32_t count, int8_t *out)
{
    const int32_t channels = layer->out_channels, width = window.width;
    const int8_t *in = window.from + channel;
    const int8_t *weight = layer->weight + (window.row * layer->kernel_width + window.column) * channels + channel;
    const mve_pred16_t there = vctp16q((uint32_t)count);
    const int32_t evens = (count + 1) / 2, odds = count / 2;
    const int16_t offset = (int16_t)layer->input_offset;
    int32x4_t even = every_other(layer->bias + channel, evens), odd = every_other(layer->bias + channel + 1, odds);
    for (int32_t y = window.height; y > 0; y--) {
        if (width == 3) { /* the usual row needs no counting */
            for (int32_t x = 0; x < 3; x++)
                add_tap8(in + x * channels, weight + x * channels, offset, count, &even, &odd);
        } else {
            for (int32_t x = 0; x < width; x++)
                add_tap8(in + x * channels, weight + x * channels, offset, count, &even, &odd);
        }
        in += layer->in_width * channels, weight += layer->kernel_width * channels;
    }
    even = rescale_channels(&layer->rescale, even, channel, evens);
    odd = rescale_channels(&layer->rescale, odd, channel + 1, odds);
    const int16x8_t both = vmovntq_s32(vreinterpretq_s16_s32(even), odd);
    if (count == 8)
        vstrbq_s16(out, both);
    else
        vstrbq_p_s16(out, both, there);
}
#endif

void edgetrain_depthwise(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch)
{
    const int32_t channels = layer->out_channels;
    (void)scratch;
    for (int32_t y = 0; y < layer->out_height; y++) {
        for (int32_t x = 0; x < layer->out_width; x++, out += channels) {
            const int32_t top = y * layer->stride_height - layer->pad_top;
            const int32_t left = x * layer->stride_width - layer->pad_left;
            const struct window window = window_of(in, layer->in_height, layer->in_width, channels, top, left,
                                                   layer->kernel_height, layer->kernel_width);
            int32_t channel = 0;
#if defined(EDGETRAIN_HELIUM)
            for (; channel + 8 <= channels; channel += 8)
                depthwise_block8(layer, window, channel, 8, out + channel);
            if (channel < channels)
                depthwise_block8(layer, window, channel, channels - channel, out + channel);
#else
            for (; channel + 4 <= channels; channel += 4)
                depthwise_block(layer, window, channel, 4, out + channel);
            for (; channel < channels; channel++)
                depthwise_block(layer, window, channel, 1, out + channel);
#endif
        }
    }
}

static inline struct window pool_window(const struct edgetrain_pool *pool, const int8_t *in, int32_t y, int32_t x)
{
    const int32_t top = y * pool->stride_height - pool->pad_top, left = x * pool->stride_width - pool->pad_left;
    return window_of(in, pool->in_height, pool->in_width, pool->channels, top, left, pool->kernel_height,
                     pool->kernel_width);
}

#if defined(EDGETRAIN_DSP)
/* The larger or the smaller of each two bytes. */
static inline uint32_t larger(uint32_t a, uint32_t b)
{
    uint32_t result;
    __asm("ssub8 %0, %1, %2\n\tsel %0, %1, %2" : "=&r"(result) : "r"(a), "r"(b) : "cc");
    return result;
}

static inline uint32_t smaller(uint32_t a, uint32_t b)
{
    uint32_t result;
    __asm("ssub8 %0, %1, %2\n\tsel %0, %2, %1" : "=&r"(result) : "r"(a), "r"(b) : "cc");
    return result;
}
#endif

/* The largest of a window, of as many channels as one step takes, clipped; returns their number. */
static inline int32_t largest(const struct edgetrain_pool *pool, struct window window, int32_t channel, int8_t *out)
{
    const int32_t channels = pool->channels, step = pool->in_width * channels;
    const int8_t *row = window.from + channel;
#if defined(EDGETRAIN_HELIUM)
    const mve_pred16_t there = vctp8q((uint32_t)(channels - channel));
    int8x16_t best = vdupq_n_s8(-128);
    for (int32_t y = 0; y < window.height; y++, row += step)
        for (int32_t x = 0; x < window.width; x++)
            best = vmaxq_s8(best, vldrbq_z_s8(row + x * channels, there));
    best = vminq_s8(vmaxq_s8(best, vdupq_n_s8((int8_t)pool->low)), vdupq_n_s8((int8_t)pool->high));
    vstrbq_p_s8(out, best, there);
    return 16;
#else
#if defined(EDGETRAIN_DSP)
    if (channels - channel >= 4) {
        uint32_t best = 0x80808080u;
        for (int32_t y = 0; y < window.height; y++, row += step) {
            const int8_t *tap = row;
            for (int32_t x = window.width; x > 0; x--, tap += channels)
                best = larger(best, word_at(tap));
        }
        best = smaller(larger(best, (uint32_t)(pool->low & 0xFF) * 0x01010101u),
                       (uint32_t)(pool->high & 0xFF) * 0x01010101u);
        memcpy(out, &best, 4);
        return 4;
    }
#endif
    int32_t best = INT8_MIN;
    for (int32_t y = 0; y < window.height; y++, row += step) {
        const int8_t *tap = row;
        for (int32_t x = window.width; x > 0; x--, tap += channels)
            best = most(best, *tap);
    }
    *out = (int8_t)clip(best, pool->low, pool->high);
    return 1;
#endif
}

void edgetrain_max_pool(const struct edgetrain_pool *pool, const int8_t *in, int8_t *out, void *scratch)
{
    (void)scratch;
    for (int32_t y = 0; y < pool->out_height; y++) {
        for (int32_t x = 0; x < pool->out_width; x++, out += pool->channels) {
            const struct window window = pool_window(pool, in, y, x);
            for (int32_t channel = 0; channel < pool->channels;)
                channel += largest(pool, window, channel, out + channel);
        }
    }
}

/* Of 4 channels from `channel` on, or of one. */
static inline void average_block(const struct edgetrain_pool *pool, struct window window, int32_t channel,
                                 int32_t block, int8_t *out)
{
    const int32_t step = (pool->in_width - window.width) * pool->channels, count = window.height * window.width;
    const int8_t *in = window.from + channel;
    int32_t sums[4] = {0};
#if defined(EDGETRAIN_HELIUM)
    if (block == 4) {
        int32x4_t total = vdupq_n_s32(0);
        for (int32_t y = window.height; y > 0; y--, in += step)
            for (int32_t x = window.width; x > 0; x--, in += pool->channels)
                total = vaddq_s32(total, vldrbq_s32(in));
        vstrwq_s32(sums, total);
        window.height = 0;
    }
#endif
    for (int32_t y = window.height; y > 0; y--, in += step)
        for (int32_t x = window.width; x > 0; x--, in += pool->channels)
            for (int32_t i = 0; i < block; i++)
                sums[i] += in[i];
    for (int32_t i = 0; i < block; i++) {
        if (pool->left_shift < 0)
            sums[i] = (sums[i] > 0 ? sums[i] + count / 2 : sums[i] - count / 2) / count;
        else
            sums[i] = sums[i] * (1 << pool->left_shift) / count;
        out[i] = (int8_t)clip(sums[i], pool->low, pool->high);
    }
}

void edgetrain_average_pool(const struct edgetrain_pool *pool, const int8_t *in, int8_t *out, void *scratch)
{
    (void)scratch;
    for (int32_t y = 0; y < pool->out_height; y++) {
        for (int32_t x = 0; x < pool->out_width; x++, out += pool->channels) {
            const struct window window = pool_window(pool, in, y, x);
            int32_t channel = 0;
            for (; channel + 4 <= pool->channels; channel += 4)
                average_block(pool, window, channel, 4, out + channel);
            for (; channel < pool->channels; channel++)
                average_block(pool, window, channel, 1, out + channel);
        }
    }
}

void edgetrain_add(const struct edgetrain_add *add, const int8_t *first, const int8_t *second, int8_t *out)
{
    int32_t i = 0;
#if defined(EDGETRAIN_HELIUM)
    for (; i < add->size; i += 4) {
        const mve_pred16_t there = vctp32q((uint32_t)(add->size - i));
        int32x4_t a = vshlq_n_s32(vaddq_n_s32(vldrbq_z_s32(first + i, there), add->first_offset), 20);
        int32x4_t b = vshlq_n_s32(vaddq_n_s32(vldrbq_z_s32(second + i, there), add->second_offset), 20);
        a = requantize4(a, add->first_multiplier, add->first_shift);
        b = requantize4(b, add->second_multiplier, add->second_shift);
        a = requantize4(vaddq_s32(a, b), add->multiplier, add->shift);
        vstrbq_p_s32(out + i, clip4(vaddq_n_s32(a, add->offset), add->low, add->high), there);
    }
#endif
    for (; i < add->size; i++) {
        const int32_t a = (first[i] + add->first_offset) * (1 << 20), b = (second[i] + add->second_offset) * (1 << 20);
        const int32_t sum = requantize(a, add->first_multiplier, add->first_shift) +
                            requantize(b, add->second_multiplier, add->second_shift);
        out[i] = (int8_t)clip(requantize(sum, add->multiplier, add->shift) + add->offset, add->low, add->high);
    }
}

void edgetrain_clip(int32_t low, int32_t high, int32_t size, const int8_t *in, int8_t *out)
{
    int32_t i = 0;
#if defined(EDGETRAIN_HELIUM)
    for (; i < size; i += 16) {
        const mve_pred16_t there = vctp8q((uint32_t)(size - i));
        const int8x16_t x = vmaxq_s8(vldrbq_z_s8(in + i, there), vdupq_n_s8((int8_t)low));
        vstrbq_p_s8(out + i, vminq_s8(x, vdupq_n_s8((int8_t)high)), there);
    }
#elif defined(EDGETRAIN_DSP)
    const uint32_t lows = (uint32_t)(low & 0xFF) * 0x01010101u, highs = (uint32_t)(high & 0xFF) * 0x01010101u;
    for (; i + 4 <= size; i += 4) {
        const uint32_t word = smaller(larger(word_at(in + i), lows), highs);
        memcpy(out + i, &word, 4);
    }
#endif
    for (; i < size; i++)
        out[i] = (int8_t)clip(in[i], low, high);
}

void edgetrain_softmax(int32_t multiplier, int32_t shift, int32_t diff_min, int32_t size, const int8_t *in,
                       int8_t *out)
{
    softmax(multiplier, shift, diff_min, size, in, out);
}
