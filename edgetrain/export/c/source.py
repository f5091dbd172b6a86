"""model.h and model.c: an integer program as C99, the same bytes for the same program."""

from collections.abc import Sequence
from math import inf, prod

import numpy as np

from edgetrain.errors import UserError
from edgetrain.export.c.arena import CMSIS_NN, OWN, Arena, arenas, layer_of
from edgetrain.export.c.layers import KINDS, WITH_SCRATCH, constants, shape_of, struct_name
from edgetrain.export.c.literals import call, check_name, comment_lines, filled, real, string
from edgetrain.models.integer import Clip, IntegerProgram, MaxPool, Value
from edgetrain.ops.int8 import softmax_multiplier

PREFIX = "model"  # of the names in csrc/main.c and stream.c, which the model's own replaces


def model_files(program: IntegerProgram, name: str = PREFIX, labels: Sequence[str] = ()) -> dict[str, str]:
    """The text of model.h and model.c. name: what its functions' names begin with; labels: of the outputs, or none.

    Raises UserError for a name that C does not take, a scale that is no positive number, labels of another count.
    """
    check_name(name)
    check_scales(program)
    classes = program.values[program.output].bytes
    if labels and len(labels) != classes:
        raise UserError(f"export.c: the network gives {classes} numbers and the data has {len(labels)} labels")
    model = Model(program, name, list(labels) or [str(index) for index in range(classes)])
    return {"model.h": model.header(), "model.c": model.source()}


def check_scales(program: IntegerProgram) -> None:
    """Raises UserError for a value that no number of steps can stand for, as a NaN in the weights makes them."""
    writers = {operation.output: operation.name for operation in program.operations}
    for value in program.values.values():
        inverse = np.float64(1) / value.scale if value.scale else inf
        if not (0 < value.scale < inf and inverse < np.finfo(np.float32).max):
            raise UserError(
                f"export.c: the output of {writers.get(value.name, 'the input')} has the scale {value.scale:g}, no "
                "positive number that float32 holds; look for NaN or infinity in the weights of that layer"
            )


class Model:
    """The text of one network."""

    def __init__(self, program: IntegerProgram, name: str, labels: list[str]) -> None:
        self.program, self.name, self.upper, self.labels = program, name, name.upper(), labels
        self.plans = arenas(program)
        self.input, self.output = program.values[program.input], program.values[program.output]
        written = {operation.output: str(index) for index, operation in enumerate(program.operations)}
        self.places = {name: f"{self.upper}_AT_{written.get(name, 'INPUT')}" for name in program.values}

    def header(self) -> str:
        name, upper, program = self.name, self.upper, self.program
        macros = {
            "INPUT_BYTES": self.input.bytes,
            "INPUT_SCALE": real(self.input.scale),
            "INPUT_ZERO_POINT": f"({self.input.zero_point})",
            "OUTPUT_BYTES": self.output.bytes,
            "OUTPUT_SCALE": real(self.output.scale),
            "OUTPUT_ZERO_POINT": f"({self.output.zero_point})",
            "CLASSES": len(self.labels),
            "LAYERS": len(program.operations),
        }
        defines = "\n".join(f"#define {upper}_{key} {value}" for key, value in macros.items())
        about = (
            f"A network of {len(program.operations)} operations in whole numbers ({program.scheme}), from "
            f"{shape_of(self.input)} (height, width, channels) to {len(self.labels)} logits. A number k stands for "
            f"(k - zero point) * scale. Call {name}_init once; then, for each input, fill {name}_input() and call "
            f"{name}_run()."
        )
        return f"""\
{comment_lines(about)}
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

{defines}

#ifdef EDGETRAIN_CMSIS_NN
#define {upper}_ARENA_BYTES {self.plans[CMSIS_NN].bytes}
#else
#define {upper}_ARENA_BYTES {self.plans[OWN].bytes}
#endif

#ifdef __cplusplus
extern "C" {{
#endif

/* 0, or 1 + the first layer for which the kernels ask for more scratch memory than was planned. */
int {name}_init(void);
/* Where the input goes, in the order height, width, channels; {name}_run overwrites it. */
int8_t *{name}_input(void);
/* The logits; they stay until the next input is written. */
const int8_t *{name}_run(void);
/* Floats in the order of the trained network's input to whole numbers as {name}_input has them. NaN is -128. */
void {name}_quantize(const float *x, int8_t *input);
/* Probability p as p * 256 - 128. */
void {name}_softmax(const int8_t *logits, int8_t *probabilities);
extern const char *const {name}_labels[{upper}_CLASSES];

#ifdef EDGETRAIN_TRACE
/* Called with the output of every layer, and with the input as layer -1 before the first; yours to write. */
void edgetrain_trace(int layer, const int8_t *output, int32_t bytes);
struct {name}_layer_facts {{
    const char *name, *kind;
    int64_t macs;
}};
extern const struct {name}_layer_facts {name}_layers[{upper}_LAYERS];
#endif

#ifdef __cplusplus
}}
#endif

#endif
"""

    def source(self) -> str:
        return "\n".join(
            [
                '#include "model.h"\n\n#include <math.h>\n#include <stddef.h>\n\n#include "kernels.h"\n',
                *(
                    constants(self.program, each, self.name, index)
                    for index, each in enumerate(self.program.operations)
                ),
                self.arena(),
                self.init(),
                self.quantize(),
                self.run(),
                self.softmax(),
                f"const char *const {self.name}_labels[{self.upper}_CLASSES] = {{\n"
                f"{filled(map(string, self.labels))}\n}};\n",
                self.facts(),
            ]
        )

    def arena(self) -> str:
        return f"""\
/* Where each tensor stands in the arena, in bytes, and the scratch memory of each layer. */
#ifdef EDGETRAIN_CMSIS_NN
{self.offsets(self.plans[CMSIS_NN])}
#else
{self.offsets(self.plans[OWN])}
#endif

static int8_t {self.name}_arena[{self.upper}_ARENA_BYTES] __attribute__((aligned(16)));
"""

    def offsets(self, plan: Arena) -> str:
        lines = [f"#define {place} {plan.offsets[name]}" for name, place in self.places.items()]
        for index, operation in enumerate(self.program.operations):
            if isinstance(operation, WITH_SCRATCH):
                offset, size = plan.scratch.get(operation.name, (0, 0))
                where = f"({self.name}_arena + {offset})" if size else "NULL"
                lines.append(f"#define {self.upper}_SCRATCH_{index} {where}")
                lines.append(f"#define {self.upper}_SCRATCH_BYTES_{index} {size}")
        return "\n".join(lines)

    def init(self) -> str:
        name = self.name
        checks = "\n".join(
            f"    if (edgetrain_{KINDS[type(operation)]}_scratch(&{struct_name(operation, self.name, index)}) > "
            f"{self.upper}_SCRATCH_BYTES_{index})\n        return {index + 1};"
            for index, operation in enumerate(self.program.operations)
            if isinstance(operation, WITH_SCRATCH)
        )
        return f"""\
int {name}_init(void)
{{
{checks}
    return 0;
}}

int8_t *{name}_input(void)
{{
    return {self.at(self.input)};
}}
"""

    def at(self, value: Value) -> str:
        return f"{self.name}_arena + {self.places[value.name]}"

    def quantize(self) -> str:
        rows, columns, channels = self.input.shape
        row, column, channel = strides(self.program.input_axes, self.input.shape)
        return f"""\
void {self.name}_quantize(const float *x, int8_t *input)
{{
    for (int32_t row = 0; row < {rows}; row++)
        for (int32_t column = 0; column < {columns}; column++)
            for (int32_t channel = 0; channel < {channels}; channel++) {{
                float value = x[row * {row} + column * {column} + channel * {channel}];
                value = nearbyintf(value * {real(1 / self.input.scale)}) + {real(self.input.zero_point)};
                *input++ = (int8_t)(value > -128.0f ? value < 127.0f ? value : 127.0f : -128.0f); /* NaN is -128 */
            }}
}}
"""

    def run(self) -> str:
        name, upper = self.name, self.upper
        lines = []
        for index, operation in enumerate(self.program.operations):
            made = self.program.values[operation.output]
            tensors = [self.at(self.program.values[each]) for each in (*operation.inputs, operation.output)]
            if isinstance(operation, Clip):
                arguments = [str(operation.low), str(operation.high), str(made.bytes), *tensors]
            else:
                arguments = [f"&{struct_name(operation, self.name, index)}", *tensors]
            if isinstance(operation, WITH_SCRATCH):
                arguments.append(f"{upper}_SCRATCH_{index}")
            elif isinstance(operation, MaxPool):
                arguments.append("NULL")
            lines.append(call(f"edgetrain_{KINDS[type(operation)]}", arguments))
            lines.append(f"    {upper}_TRACE({index}, {self.places[made.name]}, {made.bytes});")
        body = "\n".join(lines)
        return f"""\
#ifdef EDGETRAIN_TRACE
#define {upper}_TRACE(layer, at, bytes) edgetrain_trace(layer, {name}_arena + (at), bytes)
#else
#define {upper}_TRACE(layer, at, bytes) ((void)0)
#endif

const int8_t *{name}_run(void)
{{
    {upper}_TRACE(-1, {self.places[self.input.name]}, {self.input.bytes});
{body}
    return {self.at(self.output)};
}}
"""

    def softmax(self) -> str:
        multiplier, shift, diff_min = softmax_multiplier(self.output.scale)
        return f"""\
void {self.name}_softmax(const int8_t *logits, int8_t *probabilities)
{{
    edgetrain_softmax({multiplier}, {shift}, {diff_min}, {self.upper}_CLASSES, logits, probabilities);
}}
"""

    def facts(self) -> str:
        rows = []
        for operation in self.program.operations:
            macs = layer_of(operation, self.program.values).macs
            rows.append(f"    {{{string(operation.name)}, {string(KINDS[type(operation)])}, {macs}}},\n")
        return f"""\
#ifdef EDGETRAIN_TRACE
const struct {self.name}_layer_facts {self.name}_layers[{self.upper}_LAYERS] = {{
{"".join(rows)}}};
#endif
"""


def strides(axes: tuple[int | None, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """How far apart neighbours along height, width and channels stand in the network's own input."""
    sizes = {axis: size for axis, size in zip(axes, shape, strict=True) if axis is not None}
    return tuple(0 if axis is None else prod(size for other, size in sizes.items() if other > axis) for axis in axes)


def renamed(text: str, name: str) -> str:
    """A file of csrc for a model of that name."""
    return text.replace(f"{PREFIX}_", f"{name}_").replace(f"{PREFIX.upper()}_", f"{name.upper()}_")
