/* The operations of a network in whole numbers. A tensor is int8_t [height][width][channels].
 *
 * Three files implement them, with the same bytes as a result, and one of them is compiled: kernels.c (portable, faster
 * on cores with DSP instructions or Helium), kernels_plain.c (written to be read), kernels_cmsis_nn.c (calls Arm's
 * CMSIS-NN).
 */
#ifndef EDGETRAIN_KERNELS_H
#define EDGETRAIN_KERNELS_H

#include <stdint.h>

/* From sums of 32 bits to 8 bits, then clipped to low and high.
 * int8: offset + sum * multiplier[c] * 2^(shift[c] - 31), rounded twice as TensorFlow Lite does by default.
 * q7: multiplier is NULL; (sum + half) >> right_shift with half = 1 << right_shift >> 1; offset is 0.
 */
struct edgetrain_rescale {
    const int32_t *multiplier, *shift; /* [out channels]; a positive shift goes left */
    int32_t right_shift;
    int32_t offset; /* the output's zero point */
    int32_t low, high;
};

/* Also a depthwise convolution, with weight [kernel height][kernel width][channels], and a fully connected layer, with
 * kernel and sizes 1 and in_channels the whole input. */
struct edgetrain_layer {
    const int8_t *weight; /* [out channels][kernel height][kernel width][in channels] */
    const int32_t *bias;  /* [out channels] */
    struct edgetrain_rescale rescale;
    int32_t input_offset; /* minus the input's zero point */
    int32_t in_height, in_width, in_channels;
    int32_t out_height, out_width, out_channels;
    int32_t kernel_height, kernel_width, stride_height, stride_width;
    int32_t pad_top, pad_left; /* padding adds nothing to a sum */
};

struct edgetrain_pool {
    int32_t in_height, in_width, channels, out_height, out_width;
    int32_t kernel_height, kernel_width, stride_height, stride_width;
    int32_t pad_top, pad_left; /* windows hold only what is there */
    int32_t left_shift;        /* average: -1 in int8 (halves away from zero); in q7 (sum << left_shift) / count, cut */
    int32_t low, high;
};

/* Both inputs, less their zero points, << 20, scaled, added, scaled; each scaling as in edgetrain_rescale. */
struct edgetrain_add {
    int32_t size;
    int32_t first_offset, first_multiplier, first_shift; /* offsets are minus the zero points */
    int32_t second_offset, second_multiplier, second_shift;
    int32_t offset, multiplier, shift; /* offset is the output's zero point */
    int32_t low, high;
};

/* Bytes of scratch memory that these kernels ask for; the other operations need none. Ours: at most
 * 4 * roundup(kernel_height * kernel_width * in_channels, 16) for a convolution, else 0. */
int32_t edgetrain_convolution_scratch(const struct edgetrain_layer *layer);
int32_t edgetrain_depthwise_scratch(const struct edgetrain_layer *layer);
int32_t edgetrain_fully_connected_scratch(const struct edgetrain_layer *layer);
int32_t edgetrain_average_pool_scratch(const struct edgetrain_pool *pool);

/* scratch: 16-byte aligned, of so many bytes, NULL for none. out may be in where the plan says so: pools whose windows
 * never read what was overwritten, add and clip; elsewhere they do not overlap. */
void edgetrain_convolution(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch);
void edgetrain_depthwise(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch);
void edgetrain_fully_connected(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch);
void edgetrain_max_pool(const struct edgetrain_pool *pool, const int8_t *in, int8_t *out, void *scratch);
void edgetrain_average_pool(const struct edgetrain_pool *pool, const int8_t *in, int8_t *out, void *scratch);
void edgetrain_add(const struct edgetrain_add *add, const int8_t *first, const int8_t *second, int8_t *out);
void edgetrain_clip(int32_t low, int32_t high, int32_t size, const int8_t *in, int8_t *out);
/* Scale of the output 1/256, zero point -128; multiplier, shift and diff_min as TensorFlow Lite prepares them. */
void edgetrain_softmax(int32_t multiplier, int32_t shift, int32_t diff_min, int32_t size, const int8_t *in,
                       int8_t *out);

#endif
