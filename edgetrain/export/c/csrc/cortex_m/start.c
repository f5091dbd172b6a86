/* Start of a network's main on an emulated Cortex-M board, and what each of its operations takes there.
 *
 * Files are the emulator's own, through semihosting. It writes two: `layers`, a line an operation, and `trace`, a
 * record for each time that one ran, followed by the bytes that it wrote. Instructions are counted by SysTick, as QEMU's
 * -icount gives every instruction the same time.
 */
#include "model.h"
#include <stdio.h>
#include <stdlib.h>

#define FAULT_STATUS (*(volatile uint32_t *)0xE000ED28)
#define TICK_CONTROL (*(volatile uint32_t *)0xE000E010)
#define TICK_RELOAD (*(volatile uint32_t *)0xE000E014)
#define TICK_CURRENT (*(volatile uint32_t *)0xE000E018)
#define TICK_SPAN 0x1000000u /* it counts down in 24 bits */
#define PAINT 0xA5A5A5A5u
#define PAINTED 4096 /* words below the stack pointer of edgetrain_trace */

enum { WRITE_TEXT = 0x04, GET_COMMAND_LINE = 0x15, EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };
enum { FAULT = 70, WORDS = 8 };

struct record {
    int32_t layer;
    uint32_t bytes;
    uint64_t ticks;
    uint32_t stack; /* bytes below the caller's stack pointer that were written since the last record */
    uint32_t unused;
};

extern uint32_t stack_top, bss_start, bss_end;
extern void initialise_monitor_handles(void); /* newlib's files through semihosting */
int main(int argc, char **argv);
void reset(void);
void fault(void);
void tick(void);
__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))&stack_top, reset, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault,
    fault, fault, tick};

static volatile uint32_t spans;
static uint64_t begun;
static FILE *trace;

static int semihosting(int operation, const void *block)
{
    register int r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = block;
    __asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void leave(int code)
{
    const uint32_t block[2] = {APPLICATION_EXIT, (uint32_t)code};
    semihosting(EXIT_EXTENDED, block);
}

void tick(void)
{
    spans++;
}

static uint64_t ticks(void)
{
    uint32_t before, current;
    do {
        before = spans;
        current = TICK_CURRENT;
    } while (before != spans);
    return (uint64_t)before * TICK_SPAN + (TICK_SPAN - 1 - current);
}

static void give_up(const char *name)
{
    fprintf(stderr, "cannot write the file %s\n", name);
    exit(1);
}

static FILE *opened(const char *name)
{
    FILE *file = fopen(name, "wb");
    if (!file)
        give_up(name);
    return file;
}

static uint32_t *stack_pointer(void)
{
    uint32_t *sp;
    __asm volatile("mov %0, sp" : "=r"(sp));
    return sp;
}

/* What this function itself does is not counted, except for its own frame of some hundred bytes of stack. */
void edgetrain_trace(int layer, const int8_t *output, int32_t bytes)
{
    const uint64_t elapsed = ticks() - begun;
    volatile uint32_t *word = stack_pointer() - PAINTED;
    while (*word == PAINT)
        word++;
    const uint32_t stack = (uint32_t)((char *)__builtin_dwarf_cfa() - (char *)word);
    const struct record record = {layer, (uint32_t)bytes, elapsed, stack, 0};
    if (fwrite(&record, sizeof record, 1, trace) != 1 || fwrite(output, 1, (size_t)bytes, trace) != (size_t)bytes)
        give_up("trace");
    for (word = stack_pointer() - PAINTED; word < stack_pointer(); word++)
        *word = PAINT;
    begun = ticks();
}

static void say_hexadecimal(uint32_t value)
{
    char digits[9] = {0};
    for (int i = 7; i >= 0; i--, value >>= 4)
        digits[i] = "0123456789abcdef"[value & 15];
    semihosting(WRITE_TEXT, digits);
}

/* frame: what the core pushed: r0 to r3, r12, lr, pc, flags. */
__attribute__((used)) static void report_fault(const uint32_t *frame)
{
    semihosting(WRITE_TEXT, "\nfault at address 0x");
    say_hexadecimal(frame[6]);
    semihosting(WRITE_TEXT, ", status 0x");
    say_hexadecimal(FAULT_STATUS);
    leave(FAULT);
}

__attribute__((naked)) void fault(void)
{
    __asm volatile("mrs r0, msp\nb report_fault");
}

static void write_layers(void)
{
    FILE *layers = opened("layers");
    for (int i = 0; i < MODEL_LAYERS; i++)
        fprintf(layers, "%s\t%s\t%lld\n", model_layers[i].name, model_layers[i].kind, (long long)model_layers[i].macs);
    fclose(layers);
}

/* The words of the command line, which is cut up. */
static int split(char *line, char **words)
{
    int count = 0;
    while (*line && count < WORDS) {
        while (*line == ' ')
            *line++ = 0;
        if (*line)
            words[count++] = line;
        while (*line && *line != ' ')
            line++;
    }
    return count;
}

__attribute__((used, noreturn)) static void start(void)
{
    static char line[256], *words[WORDS + 1];
    const struct {
        char *text;
        uint32_t bytes;
    } block = {line, sizeof line};
    for (uint32_t *word = &bss_start; word < &bss_end; word++)
        *word = 0;
    initialise_monitor_handles();
    semihosting(GET_COMMAND_LINE, &block);
    write_layers();
    trace = opened("trace");
    TICK_RELOAD = TICK_SPAN - 1;
    TICK_CURRENT = 0;
    TICK_CONTROL = 7; /* on, an interrupt at every span, the core's clock */
    exit(main(split(line, words), words));
}

/* Floating point and Helium come on before the first function that may save their registers. */
__attribute__((naked)) void reset(void)
{
    __asm volatile("ldr r0, =0xE000ED88\nldr r1, [r0]\norr r1, #0xF00000\nstr r1, [r0]\ndsb\nisb\nb start");
}
