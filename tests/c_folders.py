"""Folders of C for emulated cores: exported networks, and programs by hand whose instructions and bytes are known."""

import re
from pathlib import Path

import pytest
import torch
from integer_programs import input_shape

from edgetrain.export.c.cortex_m import missing_tools
from edgetrain.export.c.source import model_files, renamed

CSRC = Path(__file__).parents[1] / "edgetrain/export/c/csrc"
emulated = pytest.mark.skipif(bool(missing_tools()), reason=f"lacks {missing_tools()}")

# A program by hand in place of a network; SIZE bytes stand in RAM, FLASH bytes in flash.
HEADER = """
#include <stdint.h>
#define MODEL_LAYERS 3
#define MODEL_INPUT_BYTES 2
int model_init(void);
void edgetrain_trace(int layer, const int8_t *output, int32_t bytes);
struct model_layer_facts { const char *name, *kind; int64_t macs; };
extern const struct model_layer_facts model_layers[MODEL_LAYERS];
"""
NETWORK = """
#include "model.h"
const struct model_layer_facts model_layers[] = {
    {"first", "spin", 5000000000}, {"second", "spin", 7}, {"third", "", 0}};
"""
MAIN = """
#include "model.h"
#include <stdio.h>
#include <string.h>
static const int8_t bytes[4] = {3, -1, -128, 127};
static volatile int8_t held[SIZE];
static const int8_t kept[FLASH] = {1};
__attribute__((noinline)) static void spin(uint32_t n) { __asm volatile("1: subs %0, #1\\nbne 1b" : "+r"(n)); }
__attribute__((noinline)) void deep(void) { char b[3000]; memset(b, 1, 3000); __asm volatile("" ::"r"(b) : "memory"); }
__attribute__((noinline)) void spoil(void) { *(volatile int *)0xF0000000 = 1; }
static void run(uint32_t first, uint32_t second)
{
    edgetrain_trace(-1, bytes, 1);
    spin(first);
    edgetrain_trace(0, bytes, 4);
    spin(second);
    edgetrain_trace(1, bytes + 1, 2);
    deep();
    edgetrain_trace(2, bytes, 0);
}
int main(int argc, char **argv)
{
    held[SIZE - 1] = *(const volatile int8_t *)&kept[FLASH - 1];
    for (int i = 0; i < argc; i++)
        printf("<%s>", argv[i]);
    const char *last = argc > 1 ? argv[1] : "";
    if (!strcmp(last, "spoil"))
        spoil();
    if (!strcmp(last, "hang"))
        for (;;)
            ;
    if (!strcmp(last, "refuse"))
        return fprintf(stderr, "cannot do that\\n") - 12;
    run(100, 1100);
    run(1100, 20000100);
    return 0;
}
"""


def by_hand(folder, size=1, flash=1):
    folder.mkdir(exist_ok=True)
    texts = {"model.h": HEADER, "model.c": NETWORK, "main.c": MAIN, "kernels_plain.c": "typedef int nothing;\n"}
    for name, text in texts.items():
        (folder / name).write_text(re.sub(r"\bSIZE\b", str(size), re.sub(r"\bFLASH\b", str(flash), text)))
    return folder


def exported(program, folder, name="model", labels=()):
    """The folder as the exporter writes it."""
    folder.mkdir(exist_ok=True)
    for path in CSRC.iterdir():
        if path.is_file():
            (folder / path.name).write_text(renamed(path.read_text(), name))
    for file, text in model_files(program, name, labels).items():
        (folder / file).write_text(text)
    return folder


def floats(network, items, seed=0):
    """Inputs of which some lie outside of what the first number format holds."""
    value = network.program.values[network.program.input]
    drawn = torch.randn(items, *input_shape(network.program), generator=torch.Generator().manual_seed(seed))
    return (drawn * 90 - value.zero_point) * value.scale
