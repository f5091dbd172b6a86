/* The operations as their definitions read, one loop a dimension: the reference of kernels.c, and the stated baseline
 * of its instruction counts. */
#include "fixed_point.h"
#include "kernels.h"

#include <stddef.h>

static int8_t rescale(const struct edgetrain_rescale *to, int32_t sum, int32_t channel)
{
    if (to->multiplier == NULL)
        sum = (sum + (1 << to->right_shift >> 1)) >> to->right_shift;
    else
        sum = scale(sum, to->multiplier[channel], to->shift[channel]);
    return (int8_t)clip(sum + to->offset, to->low, to->high);
}

int32_t edgetrain_convolution_scratch(const struct edgetrain_layer *layer)
{
    return (void)layer, 0;
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

void edgetrain_convolution(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch)
{
    const int32_t channels = layer->in_channels;
    (void)scratch;
    for (int32_t y = 0; y < layer->out_height; y++) {
        for (int32_t x = 0; x < layer->out_width; x++) {
            for (int32_t to = 0; to < layer->out_channels; to++) {
                const int8_t *weight = layer->weight + to * layer->kernel_height * layer->kernel_width * channels;
                int32_t sum = layer->bias[to];
                for (int32_t ky = 0; ky < layer->kernel_height; ky++) {
                    int32_t row = y * layer->stride_height - layer->pad_top + ky;
                    if (row < 0 || row >= layer->in_height)
                        continue;
                    for (int32_t kx = 0; kx < layer->kernel_width; kx++) {
                        int32_t column = x * layer->stride_width - layer->pad_left + kx;
                        if (column < 0 || column >= layer->in_width)
                            continue;
                        for (int32_t from = 0; from < channels; from++)
                            sum += (in[(row * layer->in_width + column) * channels + from] + layer->input_offset) *
                                   weight[(ky * layer->kernel_width + kx) * channels + from];
                    }
                }
                *out++ = rescale(&layer->rescale, sum, to);
            }
        }
    }
}

void edgetrain_depthwise(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch)
{
    const int32_t channels = layer->out_channels;
    (void)scratch;
    for (int32_t y = 0; y < layer->out_height; y++) {
        for (int32_t x = 0; x < layer->out_width; x++) {
            for (int32_t channel = 0; channel < channels; channel++) {
                int32_t sum = layer->bias[channel];
                for (int32_t ky = 0; ky < layer->kernel_height; ky++) {
                    int32_t row = y * layer->stride_height - layer->pad_top + ky;
                    if (row < 0 || row >= layer->in_height)
                        continue;
                    for (int32_t kx = 0; kx < layer->kernel_width; kx++) {
                        int32_t column = x * layer->stride_width - layer->pad_left + kx;
                        if (column < 0 || column >= layer->in_width)
                            continue;
                        sum += (in[(row * layer->in_width + column) * channels + channel] + layer->input_offset) *
                               layer->weight[(ky * layer->kernel_width + kx) * channels + channel];
                    }
                }
                *out++ = rescale(&layer->rescale, sum, channel);
            }
        }
    }
}

void edgetrain_fully_connected(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch)
{
    (void)scratch;
    for (int32_t to = 0; to < layer->out_channels; to++) {
        int32_t sum = layer->bias[to];
        for (int32_t from = 0; from < layer->in_channels; from++)
            sum += (in[from] + layer->input_offset) * layer->weight[to * layer->in_channels + from];
        out[to] = rescale(&layer->rescale, sum, to);
    }
}

void edgetrain_max_pool(const struct edgetrain_pool *pool, const int8_t *in, int8_t *out, void *scratch)
{
    (void)scratch;
    for (int32_t y = 0; y < pool->out_height; y++) {
        for (int32_t x = 0; x < pool->out_width; x++) {
            for (int32_t channel = 0; channel < pool->channels; channel++) {
                int32_t largest = INT8_MIN;
                for (int32_t ky = 0; ky < pool->kernel_height; ky++) {
                    for (int32_t kx = 0; kx < pool->kernel_width; kx++) {
                        int32_t row = y * pool->stride_height - pool->pad_top + ky;
                        int32_t column = x * pool->stride_width - pool->pad_left + kx;
                        if (row < 0 || row >= pool->in_height || column < 0 || column >= pool->in_width)
                            continue;
                        int32_t value = in[(row * pool->in_width + column) * pool->channels + channel];
                        largest = value > largest ? value : largest;
                    }
                }
                *out++ = (int8_t)clip(largest, pool->low, pool->high);
            }
        }
    }
}

void edgetrain_average_pool(const struct edgetrain_pool *pool, const int8_t *in, int8_t *out, void *scratch)
{
    (void)scratch;
    for (int32_t y = 0; y < pool->out_height; y++) {
        for (int32_t x = 0; x < pool->out_width; x++) {
            for (int32_t channel = 0; channel < pool->channels; channel++) {
                int32_t sum = 0, count = 0;
                for (int32_t ky = 0; ky < pool->kernel_height; ky++) {
                    for (int32_t kx = 0; kx < pool->kernel_width; kx++) {
                        int32_t row = y * pool->stride_height - pool->pad_top + ky;
                        int32_t column = x * pool->stride_width - pool->pad_left + kx;
                        if (row < 0 || row >= pool->in_height || column < 0 || column >= pool->in_width)
                            continue;
                        sum += in[(row * pool->in_width + column) * pool->channels + channel];
                        count++;
                    }
                }
                if (pool->left_shift < 0)
                    sum = (sum > 0 ? sum + count / 2 : sum - count / 2) / count;
                else
                    sum = sum * (1 << pool->left_shift) / count;
                *out++ = (int8_t)clip(sum, pool->low, pool->high);
            }
        }
    }
}

void edgetrain_add(const struct edgetrain_add *add, const int8_t *first, const int8_t *second, int8_t *out)
{
    for (int32_t i = 0; i < add->size; i++) {
        int32_t a = scale((first[i] + add->first_offset) * (1 << 20), add->first_multiplier, add->first_shift);
        int32_t b = scale((second[i] + add->second_offset) * (1 << 20), add->second_multiplier, add->second_shift);
        out[i] = (int8_t)clip(scale(a + b, add->multiplier, add->shift) + add->offset, add->low, add->high);
    }
}

void edgetrain_clip(int32_t low, int32_t high, int32_t size, const int8_t *in, int8_t *out)
{
    for (int32_t i = 0; i < size; i++)
        out[i] = (int8_t)clip(in[i], low, high);
}

void edgetrain_softmax(int32_t multiplier, int32_t shift, int32_t diff_min, int32_t size, const int8_t *in,
                       int8_t *out)
{
    softmax(multiplier, shift, diff_min, size, in, out);
}
