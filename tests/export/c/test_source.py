import ctypes
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from c_bundle import CSRC, cc, needs_cc
from integer_programs import random_program

from edgetrain.errors import UserError
from edgetrain.export.c.arena import CMSIS_NN, OWN, arenas
from edgetrain.export.c.literals import comment, real, string
from edgetrain.export.c.source import model_files, renamed, strides
from edgetrain.models.integer import Clip, Convolution, FullyConnected, IntegerProgram, Value
from edgetrain.ops import int8

CLASSES = 7
CHAIN = next(  # a convolution among others, and in the end so many classes
    program
    for program in map(random_program, range(1000))
    if isinstance(program.operations[0], Convolution)
    and isinstance(program.operations[-1], FullyConnected)
    and program.values[program.output].bytes == CLASSES
)
FLOATS = ctypes.POINTER(ctypes.c_float)
BYTES = ctypes.POINTER(ctypes.c_int8)


def library(files, folder, *flags):
    """model.c and the plain kernels, to be called from here."""
    for name, text in files.items():
        (folder / name).write_text(text)
    cc("-shared", "-fPIC", "-O1", *flags, "model.c", CSRC / "kernels_plain.c", "-lm", "-o", "model.so", folder=folder)
    return ctypes.CDLL(str(folder / "model.so"))


def identity(scale, zero_point, shape, axes):
    """A program of one operation that changes nothing."""
    values = {name: Value(name, shape, scale, zero_point) for name in ("x", "y")}
    return IntegerProgram("int8", values, (Clip(name="clip", inputs=("x",), output="y"),), "x", "y", axes)


def quantized_in_c(model, x, count):
    out = np.zeros(count, np.int8)
    model.model_quantize(x.ctypes.data_as(FLOATS), out.ctypes.data_as(BYTES))
    return out


def test_the_same_program_gives_the_same_bytes_in_any_process():
    code = (
        "from integer_programs import random_program as r; from edgetrain.export.c.source import model_files as m;"
        "import hashlib; print(hashlib.sha256(repr([m(r(s, k)) for s in range(5) for k in ('int8', 'q7')]).encode())"
        ".hexdigest())"
    )
    found = set()
    for seed in ("1", "2"):
        path = os.pathsep.join([str(CSRC.parents[3]), str(CSRC.parents[3] / "tests")])
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
        found.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).stdout)
    assert len(found) == 1 and len(found.pop()) == 65


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is no C identifier"),
        ("2fast", "is no C identifier"),
        ("key-word", "is no C identifier"),
        ("größe", "is no C identifier"),
        ("_model", "is no C identifier"),
        ("a b", "is no C identifier"),
        ("model\n", "is no C identifier"),
        ("while", "is a keyword of C"),
        ("EdgeTrain_x", "begins like the kernels' own names"),
        ("a" * 23, "is longer than 22 characters"),
    ],
)
def test_a_name_that_c_does_not_take_is_refused(name, problem):
    with pytest.raises(UserError, match=f"export.c.name={re.escape(repr(name))} {problem}") as caught:
        model_files(CHAIN, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -0.5, 1e-39])
def test_a_scale_that_is_no_positive_float32_is_refused_with_its_layer(scale):
    last = CHAIN.operations[-1]
    values = CHAIN.values | {last.output: replace(CHAIN.values[last.output], scale=scale)}
    with pytest.raises(UserError, match=f"the output of {last.name} has the scale .*look for NaN or infinity"):
        model_files(replace(CHAIN, values=values))


def test_labels_of_another_count_are_refused():
    with pytest.raises(UserError, match="the network gives 7 numbers and the data has 2 labels"):
        model_files(CHAIN, labels=["yes", "no"])


def test_lines_end_within_120_columns_and_names_begin_with_the_models():
    for seed in range(30):
        files = model_files(random_program(seed), "a_longer_name")
        assert max(map(len, "".join(files.values()).splitlines())) <= 120
        defined = re.findall(r"^(?:static )?(?:const )?\w+ \**(?:const )?\*?(\w+)[\[(]", files["model.c"], re.MULTILINE)
        assert defined and all(name.startswith("a_longer_name_") for name in defined)
        assert all(name.startswith("A_LONGER_NAME_") for name in re.findall(r"#define (\w+)", "".join(files.values())))


@needs_cc
def test_weights_and_layers_in_c_are_those_of_the_program(tmp_path):
    files = model_files(CHAIN)
    model = library({**files, "model.c": files["model.c"].replace("static const ", "const ")}, tmp_path)
    for index, operation in enumerate(CHAIN.operations):
        if hasattr(operation, "weight"):
            found = (ctypes.c_int8 * operation.weight.numel()).in_dll(model, f"model_weight_{index}")
            assert list(found) == operation.weight.flatten().tolist()
            found = (ctypes.c_int32 * operation.bias.numel()).in_dll(model, f"model_bias_{index}")
            assert list(found) == operation.bias.tolist()


@needs_cc
@pytest.mark.parametrize(
    ("shape", "axes", "own"),
    [
        ((5, 4, 3), (1, 2, 0), (3, 5, 4)),
        ((6, 7, 1), (0, 1, None), (6, 7)),
        ((1, 9, 4), (None, 1, 0), (4, 9)),
        ((1, 1, 11), (None, None, 0), (11,)),
        ((5, 4, 3), (0, 1, 2), (5, 4, 3)),
        ((5, 4, 3), (2, 1, 0), (3, 4, 5)),
    ],
)
def test_quantising_in_c_equals_torch_bit_for_bit(shape, axes, own, tmp_path):
    """Against torch's own operator, with halves, the ends, and what lies far beyond them."""
    import torch.ao.quantization.fx._decomposed  # defines the operator

    scale, zero_point = 0.1, -3
    model = library(model_files(identity(scale, zero_point, shape, axes)), tmp_path)
    x = torch.randn(own, generator=torch.Generator().manual_seed(0)) * 5
    flat = x.view(-1)
    flat[:10] = torch.tensor([0.05, -0.05, 0.15, -0.15, 0.25, 1e30, -1e30, float("inf"), -float("inf"), 12.95])
    wanted = torch.ops.quantized_decomposed.quantize_per_tensor(x, scale, zero_point, -128, 127, torch.int8)
    wanted = wanted.permute(*[axis for axis in axes if axis is not None]).reshape(-1)
    assert quantized_in_c(model, x.numpy(), x.numel()).tolist() == wanted.tolist()


@needs_cc
def test_quantising_in_c_equals_torch_for_every_scale(tmp_path):
    import torch.ao.quantization.fx._decomposed  # defines the operator

    draw = torch.Generator().manual_seed(1)
    scales = (torch.rand(100, generator=draw, dtype=torch.float64) ** 4 + 1e-4).tolist()
    delicate = [scale for scale in scales if np.float32(1 / scale) != np.float32(1) / np.float32(scale)]
    for number, scale in enumerate([*scales[:2], *delicate[:4]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        model = library(model_files(identity(scale, number * 40 - 120, (1, 1, 20000), (None, None, 0))), folder)
        steps = torch.randint(-300, 300, (20000,), generator=draw) / 2  # all on or next to a half
        x = (steps * scale).float()
        x[::3] = torch.nextafter(x[::3], torch.tensor(1e9))
        wanted = torch.ops.quantized_decomposed.quantize_per_tensor(x, scale, number * 40 - 120, -128, 127, torch.int8)
        assert quantized_in_c(model, x.numpy(), 20000).tolist() == wanted.tolist()


@needs_cc
def test_what_is_not_a_number_quantises_to_the_lowest(tmp_path):
    model = library(model_files(identity(0.5, 7, (1, 1, 2), (None, None, 0))), tmp_path)
    assert quantized_in_c(model, np.array([np.nan, 0], np.float32), 2).tolist() == [-128, 7]


@needs_cc
def test_softmax_in_c_equals_tensorflow_lites_arithmetic(tmp_path):
    program = identity(0.0625, 0, (1, 1, 10), (None, None, 0))
    model = library(model_files(program), tmp_path)
    draw = np.random.default_rng(0)
    for logits in draw.integers(-128, 128, (50, 10)).astype(np.int8):
        found = np.zeros(10, np.int8)
        model.model_softmax(logits.ctypes.data_as(BYTES), found.ctypes.data_as(BYTES))
        wanted = int8.softmax(torch.from_numpy(logits), *int8.softmax_multiplier(0.0625))
        assert found.tolist() == wanted.tolist()
        exact = torch.softmax(torch.from_numpy(logits).double() * 0.0625, 0) * 256 - 128
        assert (torch.from_numpy(found).double() - exact.clamp(max=127)).abs().max() < 1.5


@needs_cc
def test_init_names_the_first_layer_whose_scratch_is_too_small(tmp_path):
    files = model_files(CHAIN)
    last = len(CHAIN.operations) - 1
    for short, wanted in ((None, 0), (0, 1), (last, 1 + last)):
        text = re.sub(rf"(MODEL_SCRATCH_BYTES_{short}) \d+", r"\1 -1", files["model.c"])
        folder = tmp_path / str(wanted)
        folder.mkdir()
        assert library({**files, "model.c": text}, folder).model_init() == wanted


@needs_cc
def test_both_plans_compile_and_are_those_of_the_planner(tmp_path):
    files = model_files(CHAIN)
    sizes = re.findall(r"#define MODEL_ARENA_BYTES (\d+)", files["model.h"])
    plans = arenas(CHAIN)
    assert list(map(int, sizes)) == [plans[CMSIS_NN].bytes, plans[OWN].bytes]
    first, second = files["model.c"].partition("#ifdef EDGETRAIN_CMSIS_NN")[2].partition("#else")[::2]
    for text, plan in ((first, plans[CMSIS_NN]), (second.partition("#endif")[0], plans[OWN])):
        assert f"#define MODEL_AT_INPUT {plan.offsets[CHAIN.input]}\n" in text
        for index, operation in enumerate(CHAIN.operations):
            assert f"#define MODEL_AT_{index} {plan.offsets[operation.output]}\n" in text
    for flags in ((), ("-DEDGETRAIN_CMSIS_NN", "-DEDGETRAIN_TRACE")):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        cc(*flags, "-c", "model.c", folder=tmp_path)


@needs_cc
def test_labels_and_layer_names_of_any_characters_stay_what_they_are(tmp_path):
    labels = ['"quoted"', "back\\slash", "new\nline", "what??/", "größe", "‮right to left", ""]
    operation = replace(CHAIN.operations[0], name="a */ int x; /* b\nc \\")
    files = model_files(replace(CHAIN, operations=(operation, *CHAIN.operations[1:])), labels=labels)
    trace = "void edgetrain_trace(int layer, const int8_t *output, int32_t bytes)"
    traced = f"{files['model.c']}\n{trace}\n{{\n    (void)layer, (void)output, (void)bytes;\n}}\n"
    model = library({**files, "model.c": traced}, tmp_path, "-DEDGETRAIN_TRACE")
    assert ctypes.c_char_p.in_dll(model, "model_layers").value.decode() == operation.name
    found = (ctypes.c_char_p * len(labels)).in_dll(model, "model_labels")
    assert [text.decode() for text in found] == labels


def test_a_literal_is_the_nearest_float32():
    draw = np.random.default_rng(0)
    for value in [*draw.normal(size=200), *(10.0 ** draw.uniform(-37, 37, 200)), 1.0, -128.0, 1e10]:
        text = real(float(value))
        assert text.endswith("f") and set(text) & set(".e")
        assert np.float32(text[:-1]) == np.float32(value)


def test_comments_and_strings_end_where_they_are_meant_to():
    assert comment("a */ b /* c\n") == "/* a *| b |* c */"
    assert string('"\\?\n\x00é') == '"\\"\\\\\\?\\012\\000é"'


def test_strides_are_those_of_torch():
    for axes in ((1, 2, 0), (0, 1, 2), (2, 0, 1)):
        shape = (4, 5, 6)
        own = [0, 0, 0]
        for axis, size in zip(axes, shape, strict=True):
            own[axis] = size
        assert strides(axes, shape) == torch.zeros(own).permute(axes).stride()


def test_a_file_of_csrc_gets_the_models_prefix():
    main = (CSRC / "main.c").read_text()
    text = renamed(main, "kws")
    assert "kws_run()" in text and "KWS_INPUT_BYTES" in text and '#include "model.h"' in text
    assert not re.search(r"\b(model|MODEL)_", text)
    assert renamed(main, "model") == main


@needs_cc
def test_two_networks_link_into_one_program(tmp_path):
    for name in ("first", "second"):
        files = model_files(CHAIN, name)
        (tmp_path / f"{name}.h").write_text(files["model.h"])
        (tmp_path / f"{name}.c").write_text(files["model.c"].replace("model.h", f"{name}.h"))
    (tmp_path / "both.c").write_text(
        '#include "first.h"\n#include "second.h"\n'
        "int main(void) { return first_init() || second_init() || first_run() == second_run(); }\n"
    )
    cc("both.c", "first.c", "second.c", CSRC / "kernels_plain.c", "-lm", "-o", "both", folder=tmp_path)
    assert subprocess.run([tmp_path / "both"]).returncode == 0
