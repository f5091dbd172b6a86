"""Many generated networks in one program, their arenas poisoned and guarded: what every layer of each writes."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgetrain.export.c.layers import WITH_SCRATCH
from edgetrain.export.c.source import model_files
from edgetrain.models.integer import IntegerNetwork, IntegerProgram

CSRC = Path(__file__).parents[1] / "edgetrain" / "export" / "c" / "csrc"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
NETWORKS_A_FILE = 100
POISONS = (0xA5, 0x5A)  # of every other item

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

HEADER = """
#include <stdint.h>

#define GUARD 64
struct entry {
    int (*init)(void);
    int8_t *(*input)(void);
    const int8_t *(*run)(void);
    int32_t input_bytes, output_bytes, arena_bytes;
    int8_t *arena; /* with GUARD bytes before and after */
    void *const *scratch;
    const int32_t *scratch_bytes;
};
"""
MAIN = """
#include <stdio.h>
#include <string.h>

#include "bundle.h"

%(externs)s
static const struct entry *const all[] = {%(tables)s};
static const int counts[] = {%(counts)s};
static const struct entry *each;
static int poison;

/* What an operation leaves in its scratch memory, and the next one finds there, is of no value. */
void edgetrain_trace(int layer, const int8_t *output, int32_t bytes)
{
    fwrite(output, 1, bytes, stdout);
    for (int i = layer; i <= layer + 1; i++)
        if (i >= 0 && each->scratch_bytes[i] > 0)
            memset(each->scratch[i], ~poison, each->scratch_bytes[i]);
}

static int guarded(void)
{
    for (int i = 0; i < GUARD; i++)
        if (each->arena[i - GUARD] != (int8_t)poison || each->arena[each->arena_bytes + i] != (int8_t)poison)
            return 0;
    return 1;
}

int main(void)
{
    for (int i = 0; i < %(files)d; i++)
        for (int j = 0; j < counts[i]; j++)
            for (int k = 0; k < %(batch)d; k++) {
                each = &all[i][j];
                poison = k %% 2 ? 0x5A : 0xA5;
                memset(each->arena - GUARD, poison, each->arena_bytes + 2 * GUARD);
                if (each->init() || fread(each->input(), 1, each->input_bytes, stdin) != (size_t)each->input_bytes)
                    return 1;
                fwrite(each->run(), 1, each->output_bytes, stdout);
                if (!guarded())
                    return 2;
                fwrite(each->arena, 1, each->arena_bytes, stdout);
            }
    return 0;
}
"""


def cc(*arguments: object, folder: Path) -> None:
    command = ["cc", *STRICT, "-I", str(CSRC), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]


@dataclass
class Ran:
    """trace: int8 [batch, bytes of input, layers and logits]; arena: uint8 [batch, its bytes] afterwards."""

    trace: np.ndarray
    arena: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """Of each byte of the arena whether any item changed it."""
        poison = np.array(POISONS, np.uint8)[np.arange(len(self.arena)) % 2]
        return (self.arena != poison[:, None]).any(0)


class Bundle:
    """Programs compiled once into `folder`, to be linked with one of the kernels' files or another."""

    def __init__(
        self, programs: Sequence[IntegerProgram], batch: int, folder: Path, flags: Sequence[str] = SANITIZED
    ) -> None:
        self.programs, self.batch, self.folder, self.flags = programs, batch, folder, flags
        (folder / "bundle.h").write_text(HEADER)
        numbered = list(enumerate(programs))
        self.objects, counts = [], []
        for number, start in enumerate(range(0, len(numbered), NETWORKS_A_FILE)):
            group = numbered[start : start + NETWORKS_A_FILE]
            (folder / f"networks{number}.c").write_text(source_of(group, number))
            cc(*flags, "-DEDGETRAIN_TRACE", "-c", f"networks{number}.c", folder=folder)
            self.objects.append(f"networks{number}.o")
            counts.append(len(group))
        tables = [f"entries{number}" for number in range(len(counts))]
        text = MAIN % {
            "externs": "\n".join(f"extern const struct entry {name}[];" for name in tables),
            "tables": ", ".join(tables),
            "counts": ", ".join(map(str, counts)),
            "files": len(counts),
            "batch": batch,
        }
        (folder / "bundle.c").write_text(text)

    def run(self, kernels: str, inputs: Sequence[Tensor], arenas: Sequence[int]) -> list[Ran]:
        """Each network on its inputs int8 [batch, ...]. arenas: bytes of each."""
        cc(*self.flags, "bundle.c", CSRC / kernels, *self.objects, "-lm", "-o", "bundle", folder=self.folder)
        given = b"".join(x.numpy().tobytes() for x in inputs)
        done = subprocess.run([str(self.folder / "bundle")], input=given, capture_output=True)
        assert done.returncode == 0, (done.returncode, done.stderr.decode()[:3000])
        written, at, ran = np.frombuffer(done.stdout, np.int8), 0, []
        for program, arena in zip(self.programs, arenas, strict=True):
            traced = sum(program.values[name].bytes for name in traced_values(program))
            size = self.batch * (traced + arena)
            rows = written[at : at + size].reshape(self.batch, traced + arena)
            ran.append(Ran(rows[:, :traced], rows[:, traced:].view(np.uint8)))
            at += size
        assert at == len(written)
        return ran


def source_of(group: Sequence[tuple[int, IntegerProgram]], number: int) -> str:
    parts = ['#include "bundle.h"\n']
    entries = []
    for index, program in group:
        name, upper = f"n{index}", f"N{index}"
        files = model_files(program, name)
        plain = f"static int8_t {name}_arena[{upper}_ARENA_BYTES] __attribute__((aligned(16)));"
        guarded = (
            f"static struct {{ int8_t before[GUARD], arena[{upper}_ARENA_BYTES], after[GUARD]; }} {name}_guarded "
            f"__attribute__((aligned(16)));\n#define {name}_arena {name}_guarded.arena"
        )
        assert plain in files["model.c"]
        parts += [files["model.h"], files["model.c"].replace('#include "model.h"\n', "", 1).replace(plain, guarded)]
        with_scratch = [isinstance(each, WITH_SCRATCH) for each in program.operations]
        places = [f"{upper}_SCRATCH_{at}" if needs else "NULL" for at, needs in enumerate(with_scratch)]
        sizes = [f"{upper}_SCRATCH_BYTES_{at}" if needs else "0" for at, needs in enumerate(with_scratch)]
        parts.append(f"static void *const {name}_scratch[] = {{{', '.join(places)}, NULL}};")
        parts.append(f"static const int32_t {name}_scratch_bytes[] = {{{', '.join(sizes)}, 0}};")
        entries.append(
            f"{{{name}_init, {name}_input, {name}_run, {upper}_INPUT_BYTES, {upper}_OUTPUT_BYTES, {upper}_ARENA_BYTES, "
            f"{name}_arena, {name}_scratch, {name}_scratch_bytes}}"
        )
    parts.append(
        f"extern const struct entry entries{number}[];\n"
        f"const struct entry entries{number}[] = {{{', '.join(entries)}}};\n"
    )
    return "\n".join(parts)


def traced_values(program: IntegerProgram) -> list[str]:
    return [program.input, *(each.output for each in program.operations), program.output]


def expected(program: IntegerProgram, x: Tensor) -> np.ndarray:
    """The trace of `Ran`, from Python."""
    values = IntegerNetwork(program, program.values[program.input].shape).run(x)
    return torch.cat([values[name].flatten(1) for name in traced_values(program)], 1).numpy()


def first_difference(program: IntegerProgram, found: np.ndarray, wanted: np.ndarray) -> str:
    """The layer and item in which two traces of a network part, for a test's message; empty where they do not."""
    if np.array_equal(found, wanted):
        return ""
    names = traced_values(program)
    ends = np.cumsum([program.values[name].bytes for name in names])
    item, place = np.argwhere(found != wanted)[0]
    return f"item {item}: {names[int(np.searchsorted(ends, place, 'right'))]}"
