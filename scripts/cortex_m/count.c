/* Instructions that CMSIS-NN's int8 kernels take, counted in QEMU. Lines: type, shape, operations, instructions.
 *
 * SysTick counts one tick for 40 instructions under `-icount shift=0` (25 MHz against one instruction a nanosecond).
 * An operation is half a MAC, one input of a pool's window, elsewhere one element written.
 */
#include "arm_nnfunctions.h"
#include <stdint.h>
#include <string.h>

#define CONTROL (*(volatile uint32_t *)0xE000E010)
#define RELOAD (*(volatile uint32_t *)0xE000E014)
#define CURRENT (*(volatile uint32_t *)0xE000E018)
#define COPROCESSORS (*(volatile uint32_t *)0xE000ED88)
#define INSTRUCTIONS_PER_TICK 40

extern uint32_t stack_top, bss_start, bss_end;
void reset(void);
static void count_all(void);
__attribute__((section(".vectors"), used)) static void *const vectors[] = {&stack_top, (void *)reset};

static int8_t in[1 << 18], out[1 << 18], w[1 << 18], scratch[1 << 17];
static int32_t bias[4096], multiplier[4096], shift[4096];
static cmsis_nn_context context = {scratch, sizeof scratch};
static cmsis_nn_per_channel_quant_params channels = {multiplier, shift};
static cmsis_nn_per_tensor_quant_params whole = {1 << 30, -8};

static void say(const char *text) { __asm volatile("mov r0, #4\nmov r1, %0\nbkpt 0xab" ::"r"(text) : "r0", "r1", "memory"); }
static void leave(void) { __asm volatile("mov r0, #0x18\nldr r1, =0x20026\nbkpt 0xab" ::: "r0", "r1"); }
static void say_number(uint32_t value) {
    char digits[12];
    int place = sizeof digits - 1;
    digits[place] = 0;
    do digits[--place] = '0' + value % 10; while (value /= 10);
    say(digits + place);
}

static void begin(void) { CURRENT = 0; }
static void end(const char *name, uint32_t operations, int failed) {
    uint32_t ticks = RELOAD - CURRENT;
    say(failed ? "FAILED " : "");
    say(name);
    say(" ");
    say_number(operations);
    say(" ");
    say_number(ticks * INSTRUCTIONS_PER_TICK);
    say("\n");
}

static void conv(const char *name, int size, int inputs, int outputs, int groups, int kernel, int pad, int stride) {
    int after = (size + 2 * pad - kernel) / stride + 1;
    cmsis_nn_conv_params params = {128, 0, {stride, stride}, {pad, pad}, {1, 1}, {-128, 127}};
    cmsis_nn_dims x = {1, size, size, inputs}, f = {outputs, kernel, kernel, inputs / groups}, b = {1, 1, 1, outputs};
    cmsis_nn_dims y = {1, after, after, outputs};
    begin();
    int status = arm_convolve_wrapper_s8(&context, &params, &channels, &x, in, &f, w, &b, bias, &y, out);
    end(name, 2u * after * after * outputs * kernel * kernel * inputs / groups, status);
}

static void depthwise(const char *name, int size, int width, int kernel, int pad, int stride) {
    int after = (size + 2 * pad - kernel) / stride + 1;
    cmsis_nn_dw_conv_params params = {128, 0, 1, {stride, stride}, {pad, pad}, {1, 1}, {-128, 127}};
    cmsis_nn_dims x = {1, size, size, width}, f = {1, kernel, kernel, width}, b = {1, 1, 1, width};
    cmsis_nn_dims y = {1, after, after, width};
    begin();
    int status = arm_depthwise_conv_wrapper_s8(&context, &params, &channels, &x, in, &f, w, &b, bias, &y, out);
    end(name, 2u * after * after * width * kernel * kernel, status);
}

static void linear(const char *name, int inputs, int outputs) {
    cmsis_nn_fc_params params = {128, 0, 0, {-128, 127}};
    cmsis_nn_dims x = {1, 1, 1, inputs}, f = {inputs, 1, 1, outputs}, b = {1, 1, 1, outputs}, y = b;
    begin();
    int status = arm_fully_connected_s8(&context, &params, &whole, &x, in, &f, w, &b, bias, &y, out);
    end(name, 2u * inputs * outputs, status);
}

static void matmul(const char *name, int rows, int inner, int columns) {
    cmsis_nn_bmm_params params = {0, 0, {0, 0, 0, {-128, 127}}};
    cmsis_nn_dims a = {1, 1, rows, inner}, b = {1, 1, columns, inner}, y = {1, 1, rows, columns};
    begin();
    int status = arm_batch_matmul_s8(&context, &params, &whole, &a, in, &b, w, &y, out);
    end(name, 2u * rows * inner * columns, status);
}

static void lstm(const char *name, int steps, int inputs, int hidden) {
    static int16_t first[512], second[512], cell[512];
    cmsis_nn_lstm_gate gate = {1 << 30, -8, w, bias, 1 << 30, -8, w + inputs * hidden, bias, bias, ARM_SIGMOID};
    cmsis_nn_lstm_gate candidate = gate;
    candidate.activation_type = ARM_TANH;
    cmsis_nn_lstm_params params = {1, 1, steps, inputs, hidden, 0, 1 << 30, -8, 1 << 30, -8, 32767, -12, 1 << 30, -8, 0,
                                   gate, gate, candidate, gate};
    cmsis_nn_lstm_context buffers = {first, second, cell, 0};
    begin();
    int status = arm_lstm_unidirectional_s8(in, out, &params, &buffers);
    end(name, 2u * steps * 4 * hidden * (inputs + hidden), status);
}

static void pool(const char *name, int maximum, int size, int width, int kernel, int stride) {
    int after = (size - kernel + stride - 1) / stride + 1;
    cmsis_nn_pool_params params = {{stride, stride}, {0, 0}, {-128, 127}};
    cmsis_nn_dims x = {1, size, size, width}, f = {1, kernel, kernel, width}, y = {1, after, after, width};
    begin();
    int status = (maximum ? arm_max_pool_s8 : arm_avgpool_s8)(&context, &params, &x, in, &f, &y, out);
    end(name, (uint32_t)after * after * width * kernel * kernel, status);
}

static void elementwise(int size) {
    begin();
    arm_relu_q7(in, size);
    end("elementwise relu", size, 0);
    begin();
    int status = arm_elementwise_add_s8(in, w, 0, 1 << 30, 0, 0, 1 << 30, 0, 20, out, 0, 1 << 30, -19, -128, 127, size);
    end("elementwise_two_inputs add", size, status);
    begin();
    status = arm_elementwise_mul_s8(in, w, 0, 0, out, 0, 1 << 30, -8, -128, 127, size);
    end("elementwise_two_inputs mul", size, status);
    begin();
    memcpy(out, in, size);
    end("move memcpy", size, 0);
}

static void softmax(const char *name, int rows, int size) {
    begin();
    arm_softmax_s8(w, rows, size, 1077952640, 23, -248, out);
    end(name, rows * size, 0);
}

void reset(void) {
    COPROCESSORS |= 0xF << 20; /* before the first function that saves floating-point registers */
    __asm volatile("dsb\nisb");
    count_all();
    leave();
}

__attribute__((noinline)) static void count_all(void) {
    for (uint32_t *word = &bss_start; word < &bss_end; word++) *word = 0;
    for (int i = 0; i < 1 << 18; i++) in[i] = i * 37 - 100, w[i] = i * 29 + 11;
    for (int i = 0; i < 4096; i++) multiplier[i] = (1 << 30) + i, shift[i] = -8, bias[i] = i - 100;
    RELOAD = 0xFFFFFF;
    CURRENT = 0;
    CONTROL = 5;
    conv("conv_few_channels 5x5x3->32@32", 32, 3, 32, 1, 5, 2, 1);
    conv("conv_few_channels 3x3x3->16@48/2", 48, 3, 16, 1, 3, 1, 2);
    conv("conv 5x5x32->32@16", 16, 32, 32, 1, 5, 2, 1);
    conv("conv 5x5x32->64@8", 8, 32, 64, 1, 5, 2, 1);
    conv("conv 3x3x16->16@32", 32, 16, 16, 1, 3, 1, 1);
    conv("conv 3x3x64->64@8", 8, 64, 64, 1, 3, 1, 1);
    conv("conv_1x1 64->64@16", 16, 64, 64, 1, 1, 0, 1);
    conv("conv_1x1 16->96@32", 32, 16, 96, 1, 1, 0, 1);
    conv("conv_1x1 128->128@8", 8, 128, 128, 1, 1, 0, 1);
    conv("grouped 3x3x32/4@16", 16, 32, 32, 4, 3, 1, 1);
    conv("grouped 3x3x64/8@8", 8, 64, 64, 8, 3, 1, 1);
    depthwise("depthwise 3x3x64@16", 16, 64, 3, 1, 1);
    depthwise("depthwise 3x3x96@32/2", 32, 96, 3, 1, 2);
    depthwise("depthwise 5x5x64@16", 16, 64, 5, 2, 1);
    linear("linear 1024->10", 1024, 10);
    linear("linear 256->256", 256, 256);
    linear("linear 1024->128", 1024, 128);
    matmul("matmul 64x32x64", 64, 32, 64);
    matmul("matmul 64x64x32", 64, 64, 32);
    lstm("recurrent lstm 10->118@25", 25, 10, 118);
    lstm("recurrent lstm 40->214@10", 10, 40, 214);
    pool("pool max3x3/2x32@32", 1, 32, 32, 3, 2);
    pool("pool max2x2/2x32@32", 1, 32, 32, 2, 2);
    pool("pool average2x2/2x32@32", 0, 32, 32, 2, 2);
    pool("pool average8x8x64@8", 0, 8, 64, 8, 8);
    elementwise(1 << 15);
    softmax("softmax 1x10", 1, 10);
    softmax("softmax 16x64", 16, 64);
    softmax("softmax 1x1000", 1, 1000);
}
