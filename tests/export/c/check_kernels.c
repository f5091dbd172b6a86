/* kernels.c against kernels_plain.c on random operations, every byte; also that nothing around the outputs and the
 * scratch memory is written. On a machine with an operating system, memory is malloc's, so that a sanitizer sees every
 * byte read outside; on a core, semihosting prints. Ends with 0 and the line "N operations agree", or with 1.
 */
#include "kernels.h"

#define edgetrain_convolution_scratch plain_convolution_scratch
#define edgetrain_depthwise_scratch plain_depthwise_scratch
#define edgetrain_fully_connected_scratch plain_fully_connected_scratch
#define edgetrain_average_pool_scratch plain_average_pool_scratch
#define edgetrain_convolution plain_convolution
#define edgetrain_depthwise plain_depthwise
#define edgetrain_fully_connected plain_fully_connected
#define edgetrain_max_pool plain_max_pool
#define edgetrain_average_pool plain_average_pool
#define edgetrain_add(...) plain_add(__VA_ARGS__)
#define edgetrain_clip plain_clip
#define edgetrain_softmax plain_softmax
#include "kernels_plain.c"
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

#ifndef TRIALS
#define TRIALS 300
#endif
enum { GUARD = 32, CANARY = 0x5A };

static uint32_t state = 1;

static int32_t draw(int32_t low, int32_t high) /* low to high, both included */
{
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return (int32_t)((uint32_t)low + state % ((uint32_t)high - (uint32_t)low + 1));
}

static int32_t least_of(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

#ifdef __arm__
static int8_t pool_memory[1 << 19] __attribute__((aligned(16)));
static int32_t taken;

static void *fresh(int32_t size)
{
    void *memory = pool_memory + taken;
    taken += (size + 15) / 16 * 16 + 16 * draw(0, 1);
    return memory;
}

static void free_all(void)
{
    taken = 0;
}

static void say(const char *text)
{
    register int r0 __asm("r0") = 4;
    register const char *r1 __asm("r1") = text;
    __asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void leave(int code)
{
    const uint32_t block[2] = {0x20026, (uint32_t)code};
    register int r0 __asm("r0") = 0x20;
    register const void *r1 __asm("r1") = block;
    __asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    for (;;)
        ;
}
#else
#include <stdio.h>
#include <stdlib.h>

static void *blocks[64];
static int32_t taken;

static void *fresh(int32_t size)
{
    return blocks[taken++] = malloc((size_t)size);
}

static void free_all(void)
{
    while (taken > 0)
        free(blocks[--taken]);
}

static void say(const char *text)
{
    fputs(text, stdout);
}

static void leave(int code)
{
    exit(code);
}
#endif

/* So many random numbers, at any address. */
static int8_t *tensor(int32_t size)
{
    const int32_t shift = draw(0, 3), extremes = draw(0, 3) == 0;
    int8_t *numbers = (int8_t *)fresh(size + shift) + shift;
    for (int32_t i = 0; i < size; i++)
        numbers[i] = (int8_t)(extremes ? draw(0, 1) * 255 - 128 : draw(-128, 127));
    return numbers;
}

static int32_t *numbers_from(int32_t low, int32_t high, int32_t count)
{
    int32_t *numbers = fresh(4 * count);
    for (int32_t i = 0; i < count; i++)
        numbers[i] = draw(low, high);
    return numbers;
}

/* Memory to write to, with a guard on either side. */
struct guarded {
    int8_t *memory;
    int32_t size;
};

static struct guarded guarded(int32_t size)
{
    struct guarded area = {(int8_t *)fresh(size + 2 * GUARD) + GUARD, size};
    for (int32_t i = -GUARD; i < size + GUARD; i++)
        area.memory[i] = CANARY;
    return area;
}

static int intact(struct guarded area)
{
    for (int32_t i = 1; i <= GUARD; i++)
        if (area.memory[-i] != CANARY || area.memory[area.size + i - 1] != CANARY)
            return 0;
    return 1;
}

static int same(struct guarded mine, struct guarded plain)
{
    for (int32_t i = 0; i < mine.size; i++)
        if (mine.memory[i] != plain.memory[i])
            return 0;
    return intact(mine) && intact(plain);
}

static int32_t channel_count(void)
{
    const int32_t usual[] = {1, 2, 3, 4, 8, 12, 16, 17, 32, 33};
    return draw(0, 1) ? draw(1, 40) : usual[draw(0, 9)];
}

static struct edgetrain_rescale rescaling(int32_t channels, int q7)
{
    struct edgetrain_rescale to = {NULL, NULL, 0, 0, -128, 127};
    if (q7) {
        to.right_shift = draw(0, 12);
    } else {
        int32_t *multiplier = numbers_from(1 << 30, INT32_MAX, channels);
        if (draw(0, 3) == 0)
            multiplier[draw(0, channels - 1)] = 0;
        to.multiplier = multiplier;
        to.shift = draw(0, 3) == 0 ? numbers_from(-31, 8, channels) : numbers_from(-12, -5, channels);
        to.offset = draw(-128, 127);
    }
    if (draw(0, 2) == 0)
        to.low = q7 ? 0 : to.offset, to.high = draw(to.low, 127);
    return to;
}

/* Of an output: as padding on the other side of 0 or more gives it. Windows lie outside the map only when `outside`. */
static int32_t output_size(int32_t in, int32_t kernel, int32_t stride, int32_t pad, int outside)
{
    const int32_t last = outside ? in + kernel : in - 1 + pad; /* where the last window may begin, from the first on */
    const int32_t first = in + pad - kernel > 0 ? in + pad - kernel : 0;
    return draw(first / stride, last / stride > first / stride ? last / stride : first / stride) + 1;
}

static struct edgetrain_layer layer_of(int depthwise)
{
    const int q7 = draw(0, 2) == 0, outside = draw(0, 5) == 0;
    struct edgetrain_layer layer = {0};
    layer.in_height = draw(1, 8), layer.in_width = draw(1, 8), layer.in_channels = channel_count();
    layer.out_channels = depthwise ? layer.in_channels : channel_count();
    layer.kernel_height = draw(0, 3) ? draw(1, 5) : 1, layer.kernel_width = layer.kernel_height;
    if (draw(0, 2) == 0)
        layer.kernel_width = draw(1, 5);
    layer.stride_height = draw(1, 3), layer.stride_width = draw(1, 3);
    layer.pad_top = draw(0, outside ? 12 : layer.kernel_height - 1);
    layer.pad_left = draw(0, outside ? 12 : layer.kernel_width - 1);
    layer.out_height =
        output_size(layer.in_height, layer.kernel_height, layer.stride_height, layer.pad_top, outside);
    layer.out_width = output_size(layer.in_width, layer.kernel_width, layer.stride_width, layer.pad_left, outside);
    if (draw(0, 5) == 0) { /* a map that is its columns */
        layer.kernel_height = layer.kernel_width = layer.stride_height = layer.stride_width = 1;
        layer.pad_top = layer.pad_left = 0;
        layer.out_height = layer.in_height, layer.out_width = layer.in_width;
        if (outside) /* one that only looks so */
            layer.stride_height = layer.stride_width = 2, layer.pad_top = layer.pad_left = 1;
    }
    const int32_t taps = layer.kernel_height * layer.kernel_width * layer.in_channels;
    layer.weight = tensor(depthwise ? taps : taps * layer.out_channels);
    layer.bias = draw(0, 7) ? numbers_from(-5000, 5000, layer.out_channels)
                            : numbers_from(-(1 << 30), 1 << 30, layer.out_channels);
    layer.rescale = rescaling(layer.out_channels, q7);
    layer.input_offset = q7 ? 0 : draw(-127, 128);
    return layer;
}

static int convolution_agrees(void)
{
    const struct edgetrain_layer layer = layer_of(0);
    const int8_t *in = tensor(layer.in_height * layer.in_width * layer.in_channels);
    const int32_t size = layer.out_height * layer.out_width * layer.out_channels;
    const struct guarded mine = guarded(size), plain = guarded(size);
    const struct guarded scratch = guarded(edgetrain_convolution_scratch(&layer));
    edgetrain_convolution(&layer, in, mine.memory, scratch.memory);
    plain_convolution(&layer, in, plain.memory, NULL);
    return same(mine, plain) && intact(scratch);
}

static int depthwise_agrees(void)
{
    const struct edgetrain_layer layer = layer_of(1);
    const int8_t *in = tensor(layer.in_height * layer.in_width * layer.in_channels);
    const int32_t size = layer.out_height * layer.out_width * layer.out_channels;
    const struct guarded mine = guarded(size), plain = guarded(size);
    const struct guarded scratch = guarded(edgetrain_depthwise_scratch(&layer));
    edgetrain_depthwise(&layer, in, mine.memory, scratch.memory);
    plain_depthwise(&layer, in, plain.memory, NULL);
    return same(mine, plain) && intact(scratch);
}

static int fully_connected_agrees(void)
{
    const int q7 = draw(0, 2) == 0;
    struct edgetrain_layer layer = {.in_height = 1, .in_width = 1, .out_height = 1, .out_width = 1, .kernel_height = 1,
                                    .kernel_width = 1, .stride_height = 1, .stride_width = 1};
    layer.in_channels = draw(1, 300), layer.out_channels = draw(1, 20);
    layer.weight = tensor(layer.in_channels * layer.out_channels);
    layer.bias = numbers_from(-5000, 5000, layer.out_channels);
    layer.rescale = rescaling(layer.out_channels, q7);
    layer.input_offset = q7 ? 0 : draw(-127, 128);
    const int8_t *in = tensor(layer.in_channels);
    const struct guarded mine = guarded(layer.out_channels), plain = guarded(layer.out_channels);
    const struct guarded scratch = guarded(edgetrain_fully_connected_scratch(&layer));
    edgetrain_fully_connected(&layer, in, mine.memory, scratch.memory);
    plain_fully_connected(&layer, in, plain.memory, NULL);
    return same(mine, plain) && intact(scratch);
}

/* Also written over its input, where the planner would have it so. */
static int pool_agrees(void)
{
    const int average = draw(0, 1), q7 = draw(0, 2) == 0;
    struct edgetrain_pool pool = {0};
    pool.in_height = draw(1, 9), pool.in_width = draw(1, 9), pool.channels = channel_count();
    pool.kernel_height = draw(1, 9), pool.kernel_width = draw(1, 9);
    pool.stride_height = draw(1, 4), pool.stride_width = draw(1, 4);
    pool.pad_top = draw(0, pool.kernel_height / 2), pool.pad_left = draw(0, pool.kernel_width / 2);
    pool.pad_top = least_of(pool.pad_top, pool.kernel_height - 1);
    pool.pad_left = least_of(pool.pad_left, pool.kernel_width - 1);
    pool.out_height = output_size(pool.in_height, pool.kernel_height, pool.stride_height, pool.pad_top, 0);
    pool.out_width = output_size(pool.in_width, pool.kernel_width, pool.stride_width, pool.pad_left, 0);
    pool.left_shift = q7 ? draw(0, 4) : -1;
    pool.low = draw(0, 1) ? -128 : draw(-128, 0), pool.high = draw(0, 1) ? 127 : draw(0, 127);
    const int32_t in_size = pool.in_height * pool.in_width * pool.channels;
    const int32_t size = pool.out_height * pool.out_width * pool.channels;
    const int8_t *in = tensor(in_size);
    const struct guarded mine = guarded(size), plain = guarded(size), over = guarded(in_size > size ? in_size : size);
    const struct guarded scratch = guarded(average ? edgetrain_average_pool_scratch(&pool) : 0);
    for (int32_t i = 0; i < in_size; i++)
        over.memory[i] = in[i];
    (average ? edgetrain_average_pool : edgetrain_max_pool)(&pool, in, mine.memory, scratch.memory);
    (average ? plain_average_pool : plain_max_pool)(&pool, in, plain.memory, NULL);
    const int rows_stay = pool.out_height == 1 || pool.stride_height - 1 >= pool.kernel_height / 2;
    const int columns_stay = pool.out_width == 1 || pool.stride_width - 1 >= pool.kernel_width / 2;
    if (!rows_stay || !columns_stay || size > in_size)
        return same(mine, plain) && intact(scratch);
    (average ? edgetrain_average_pool : edgetrain_max_pool)(&pool, over.memory, over.memory, scratch.memory);
    return same(mine, plain) && same(mine, over) && intact(scratch);
}

static int add_agrees(void)
{
    const int32_t size = draw(1, 100);
    const struct edgetrain_add add = {.size = size,
                                      .first_offset = draw(-127, 128),
                                      .first_multiplier = draw(1 << 30, INT32_MAX),
                                      .first_shift = draw(-6, 0),
                                      .second_offset = draw(-127, 128),
                                      .second_multiplier = draw(1 << 30, INT32_MAX),
                                      .second_shift = draw(-6, 0),
                                      .offset = draw(-128, 127),
                                      .multiplier = draw(1 << 30, INT32_MAX),
                                      .shift = draw(-22, -12),
                                      .low = draw(-128, 0),
                                      .high = draw(0, 127)};
    const int8_t *first = tensor(size), *second = tensor(size);
    const struct guarded mine = guarded(size), plain = guarded(size), over = guarded(size);
    for (int32_t i = 0; i < size; i++)
        over.memory[i] = second[i];
    edgetrain_add(&add, first, second, mine.memory);
    plain_add(&add, first, second, plain.memory);
    edgetrain_add(&add, first, over.memory, over.memory);
    return same(mine, plain) && same(mine, over);
}

static int clip_agrees(void)
{
    const int32_t size = draw(1, 100), low = draw(-128, 127), high = draw(low, 127);
    const int8_t *in = tensor(size);
    const struct guarded mine = guarded(size), plain = guarded(size), over = guarded(size);
    for (int32_t i = 0; i < size; i++)
        over.memory[i] = in[i];
    edgetrain_clip(low, high, size, in, mine.memory);
    plain_clip(low, high, size, in, plain.memory);
    edgetrain_clip(low, high, size, over.memory, over.memory);
    return same(mine, plain) && same(mine, over);
}

static int softmax_agrees(void)
{
    const int32_t size = draw(1, 20), multiplier = draw(1 << 30, INT32_MAX), shift = draw(18, 24);
    const int8_t *in = tensor(size);
    const struct guarded mine = guarded(size), plain = guarded(size);
    const int32_t diff_min = -((31 << 26) >> shift); /* as TensorFlow Lite has it */
    edgetrain_softmax(multiplier, shift, diff_min, size, in, mine.memory);
    plain_softmax(multiplier, shift, diff_min, size, in, plain.memory);
    return same(mine, plain);
}

static void say_number(int32_t number)
{
    char digits[12];
    int32_t place = sizeof digits - 1;
    digits[place] = 0;
    do
        digits[--place] = (char)('0' + number % 10);
    while (number /= 10);
    say(digits + place);
}

static const struct {
    const char *name;
    int (*agrees)(void);
} checks[] = {{"convolution", convolution_agrees},
              {"depthwise", depthwise_agrees},
              {"fully connected", fully_connected_agrees},
              {"pool", pool_agrees},
              {"add", add_agrees},
              {"clip", clip_agrees},
              {"softmax", softmax_agrees}};
enum { CHECKS = sizeof checks / sizeof *checks };

static void check_all(void)
{
    for (int32_t trial = 0; trial < TRIALS; trial++) {
        for (int32_t kind = 0; kind < CHECKS; kind++) {
            const int agree = checks[kind].agrees();
            free_all();
            if (!agree) {
                say(checks[kind].name);
                say(" differs in trial ");
                say_number(trial);
                say("\n");
                leave(1);
            }
        }
    }
    say_number(TRIALS * CHECKS);
    say(" operations agree\n");
    leave(0);
}

#ifdef __arm__
extern uint32_t stack_top, bss_start, bss_end;
void reset(void);
__attribute__((section(".vectors"), used)) static void *const vectors[] = {&stack_top, (void *)reset};

__attribute__((used)) static void begin(void)
{
    for (uint32_t *word = &bss_start; word < &bss_end; word++)
        *word = 0;
    check_all();
}

__attribute__((naked)) void reset(void) /* floating point and Helium come on first */
{
    __asm volatile("ldr r0, =0xE000ED88\nldr r1, [r0]\norr r1, #0xF00000\nstr r1, [r0]\ndsb\nisb\nb begin");
}
#else
int main(void)
{
    check_all();
}
#endif
