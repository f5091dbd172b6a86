/* The operations by Arm's CMSIS-NN, version 7 (Apache-2.0), whose headers the include path has to have. Ours are
 * what it lacks: q7, which is gone since version 5, a clip to any two numbers, and what is said below.
 */
#include "kernels.h"

#include <stddef.h>

#include "arm_nnfunctions.h"

#define edgetrain_convolution_scratch own_convolution_scratch
#define edgetrain_depthwise_scratch own_depthwise_scratch
#define edgetrain_fully_connected_scratch own_fully_connected_scratch
#define edgetrain_average_pool_scratch own_average_pool_scratch
#define edgetrain_convolution own_convolution
#define edgetrain_depthwise own_depthwise
#define edgetrain_fully_connected own_fully_connected
#define edgetrain_max_pool own_max_pool
#define edgetrain_average_pool own_average_pool
#define edgetrain_add(...) own_add(__VA_ARGS__) /* the struct keeps its name */
#define edgetrain_clip own_clip
#define edgetrain_softmax own_softmax
#include "kernels.c"
#undef edgetrain_convolution_scratch
#undef edgetrain_depthwise_scratch
#undef edgetrain_fully_connected_scratch
#undef edgetrain_average_pool_scratch
#undef edgetrain_convolution
#undef edgetrain_depthwise
#undef edgetrain_fully_connected
#undef edgetrain_max_pool
#undef edgetrain_average_pool
#undef edgetrain_add
#undef edgetrain_clip
#undef edgetrain_softmax

static int is_q7(const struct edgetrain_layer *layer)
{
    return layer->rescale.multiplier == NULL;
}

static cmsis_nn_dims input_of(const struct edgetrain_layer *layer)
{
    return (cmsis_nn_dims){.n = 1, .h = layer->in_height, .w = layer->in_width, .c = layer->in_channels};
}

static cmsis_nn_dims output_of(const struct edgetrain_layer *layer)
{
    return (cmsis_nn_dims){.n = 1, .h = layer->out_height, .w = layer->out_width, .c = layer->out_channels};
}

static cmsis_nn_activation limits_of(const struct edgetrain_layer *layer)
{
    return (cmsis_nn_activation){.min = layer->rescale.low, .max = layer->rescale.high};
}

static cmsis_nn_per_channel_quant_params scales_of(const struct edgetrain_layer *layer)
{
    return (cmsis_nn_per_channel_quant_params){.multiplier = (int32_t *)layer->rescale.multiplier, /* not written */
                                               .shift = (int32_t *)layer->rescale.shift};
}

static cmsis_nn_dims convolution_filter(const struct edgetrain_layer *layer)
{
    return (cmsis_nn_dims){
        .n = layer->out_channels, .h = layer->kernel_height, .w = layer->kernel_width, .c = layer->in_channels};
}

static cmsis_nn_conv_params convolution_of(const struct edgetrain_layer *layer)
{
    return (cmsis_nn_conv_params){.input_offset = layer->input_offset,
                                  .output_offset = layer->rescale.offset,
                                  .stride = {.w = layer->stride_width, .h = layer->stride_height},
                                  .padding = {.w = layer->pad_left, .h = layer->pad_top},
                                  .dilation = {.w = 1, .h = 1},
                                  .activation = limits_of(layer)};
}

/* CMSIS-NN's kernel of 3 x 3 takes the middle column of every window to lie on the map. */
static int depthwise_is_ours(const struct edgetrain_layer *layer)
{
    const int32_t last_middle = (layer->out_width - 1) * layer->stride_width - layer->pad_left + 1;
    const int is_3x3 = layer->kernel_height == 3 && layer->kernel_width == 3;
    return is_q7(layer) || (is_3x3 && last_middle >= layer->in_width);
}

static cmsis_nn_dims depthwise_filter(const struct edgetrain_layer *layer)
{
    return (cmsis_nn_dims){.n = 1, .h = layer->kernel_height, .w = layer->kernel_width, .c = layer->out_channels};
}

static cmsis_nn_dw_conv_params depthwise_of(const struct edgetrain_layer *layer)
{
    return (cmsis_nn_dw_conv_params){.input_offset = layer->input_offset,
                                     .output_offset = layer->rescale.offset,
                                     .ch_mult = 1,
                                     .stride = {.w = layer->stride_width, .h = layer->stride_height},
                                     .padding = {.w = layer->pad_left, .h = layer->pad_top},
                                     .dilation = {.w = 1, .h = 1},
                                     .activation = limits_of(layer)};
}

static cmsis_nn_dims fully_connected_filter(const struct edgetrain_layer *layer)
{
    return (cmsis_nn_dims){.n = layer->in_channels, .h = 1, .w = 1, .c = layer->out_channels};
}

int32_t edgetrain_convolution_scratch(const struct edgetrain_layer *layer)
{
    const cmsis_nn_dims input = input_of(layer), filter = convolution_filter(layer), output = output_of(layer);
    const cmsis_nn_conv_params params = convolution_of(layer);
    const int32_t own = own_convolution_scratch(layer);
    if (is_q7(layer))
        return own;
    const int32_t theirs = arm_convolve_wrapper_s8_get_buffer_size(&params, &input, &filter, &output);
    return layer->kernel_height * layer->kernel_width > 1 && own > theirs ? own : theirs; /* either may run */
}

int32_t edgetrain_depthwise_scratch(const struct edgetrain_layer *layer)
{
    const cmsis_nn_dims input = input_of(layer), filter = depthwise_filter(layer), output = output_of(layer);
    const cmsis_nn_dw_conv_params params = depthwise_of(layer);
    return depthwise_is_ours(layer) ? own_depthwise_scratch(layer)
                        : arm_depthwise_conv_wrapper_s8_get_buffer_size(&params, &input, &filter, &output);
}

int32_t edgetrain_fully_connected_scratch(const struct edgetrain_layer *layer)
{
    const cmsis_nn_dims filter = fully_connected_filter(layer);
    return is_q7(layer) ? own_fully_connected_scratch(layer) : arm_fully_connected_s8_get_buffer_size(&filter);
}

int32_t edgetrain_average_pool_scratch(const struct edgetrain_pool *pool)
{
    return pool->left_shift < 0 ? arm_avgpool_s8_get_buffer_size(pool->out_width, pool->channels)
                                : own_average_pool_scratch(pool);
}

void edgetrain_convolution(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch)
{
    const cmsis_nn_context context = {scratch, edgetrain_convolution_scratch(layer)};
    const cmsis_nn_dims input = input_of(layer), filter = convolution_filter(layer), output = output_of(layer);
    const cmsis_nn_dims bias = {.n = 1, .h = 1, .w = 1, .c = layer->out_channels};
    const cmsis_nn_conv_params params = convolution_of(layer);
    const cmsis_nn_per_channel_quant_params scales = scales_of(layer);
    /* On Helium it refuses a single row that is padded more on one side than on the other. */
    if (is_q7(layer) ||
        arm_convolve_wrapper_s8(&context, &params, &scales, &input, in, &filter, layer->weight, &bias, layer->bias,
                                &output, out) != ARM_CMSIS_NN_SUCCESS)
        own_convolution(layer, in, out, scratch);
}

void edgetrain_depthwise(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch)
{
    const cmsis_nn_context context = {scratch, edgetrain_depthwise_scratch(layer)};
    const cmsis_nn_dims input = input_of(layer), filter = depthwise_filter(layer), output = output_of(layer);
    const cmsis_nn_dims bias = {.n = 1, .h = 1, .w = 1, .c = layer->out_channels};
    const cmsis_nn_dw_conv_params params = depthwise_of(layer);
    const cmsis_nn_per_channel_quant_params scales = scales_of(layer);
    if (depthwise_is_ours(layer))
        own_depthwise(layer, in, out, scratch);
    else
        arm_depthwise_conv_wrapper_s8(&context, &params, &scales, &input, in, &filter, layer->weight, &bias,
                                      layer->bias, &output, out);
}

void edgetrain_fully_connected(const struct edgetrain_layer *layer, const int8_t *in, int8_t *out, void *scratch)
{
    const cmsis_nn_context context = {scratch, edgetrain_fully_connected_scratch(layer)};
    const cmsis_nn_dims input = input_of(layer), filter = fully_connected_filter(layer), output = output_of(layer);
    const cmsis_nn_dims bias = {.n = 1, .h = 1, .w = 1, .c = layer->out_channels};
    const cmsis_nn_fc_params params = {
        .input_offset = layer->input_offset, .output_offset = layer->rescale.offset, .activation = limits_of(layer)};
    const cmsis_nn_per_channel_quant_params scales = scales_of(layer);
    if (is_q7(layer)) {
        own_fully_connected(layer, in, out, scratch);
        return;
    }
    if (context.size > 0) /* on Helium the kernel reads sums of the weights, with the biases, from there */
        arm_vector_sum_s8(scratch, layer->in_channels, layer->out_channels, layer->weight, layer->input_offset, 0,
                          layer->bias);
    arm_fully_connected_per_channel_s8(&context, &params, &scales, &input, in, &filter, layer->weight, &bias,
                                       layer->bias, &output, out);
}

static cmsis_nn_dims pool_input(const struct edgetrain_pool *pool)
{
    return (cmsis_nn_dims){.n = 1, .h = pool->in_height, .w = pool->in_width, .c = pool->channels};
}

static cmsis_nn_dims pool_output(const struct edgetrain_pool *pool)
{
    return (cmsis_nn_dims){.n = 1, .h = pool->out_height, .w = pool->out_width, .c = pool->channels};
}

static cmsis_nn_dims pool_filter(const struct edgetrain_pool *pool)
{
    return (cmsis_nn_dims){.n = 1, .h = pool->kernel_height, .w = pool->kernel_width, .c = 1};
}

static cmsis_nn_pool_params pool_of(const struct edgetrain_pool *pool)
{
    return (cmsis_nn_pool_params){.stride = {.w = pool->stride_width, .h = pool->stride_height},
                                  .padding = {.w = pool->pad_left, .h = pool->pad_top},
                                  .activation = {.min = pool->low, .max = pool->high}};
}

void edgetrain_max_pool(const struct edgetrain_pool *pool, const int8_t *in, int8_t *out, void *scratch)
{
    const cmsis_nn_context context = {scratch, 0};
    const cmsis_nn_dims input = pool_input(pool), window = pool_filter(pool), output = pool_output(pool);
    const cmsis_nn_pool_params params = pool_of(pool);
    arm_max_pool_s8(&context, &params, &input, in, &window, &output, out);
}

void edgetrain_average_pool(const struct edgetrain_pool *pool, const int8_t *in, int8_t *out, void *scratch)
{
    const cmsis_nn_context context = {scratch, edgetrain_average_pool_scratch(pool)};
    const cmsis_nn_dims input = pool_input(pool), window = pool_filter(pool), output = pool_output(pool);
    const cmsis_nn_pool_params params = pool_of(pool);
    if (pool->left_shift < 0)
        arm_avgpool_s8(&context, &params, &input, in, &window, &output, out);
    else
        own_average_pool(pool, in, out, scratch);
}

void edgetrain_add(const struct edgetrain_add *add, const int8_t *first, const int8_t *second, int8_t *out)
{
    arm_elementwise_add_s8(first, second, add->first_offset, add->first_multiplier, add->first_shift,
                           add->second_offset, add->second_multiplier, add->second_shift, 20, out, add->offset,
                           add->multiplier, add->shift, add->low, add->high, add->size);
}

void edgetrain_clip(int32_t low, int32_t high, int32_t size, const int8_t *in, int8_t *out)
{
    own_clip(low, high, size, in, out);
}

void edgetrain_softmax(int32_t multiplier, int32_t shift, int32_t diff_min, int32_t size, const int8_t *in,
                       int8_t *out)
{
    arm_softmax_s8(in, 1, size, multiplier, shift, diff_min, out);
}
