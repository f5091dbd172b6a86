"""Workloads as files: what is written is read again, what is left out follows, and nothing bad gets in."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, zeros

from edgetrain.errors import UserError
from edgetrain.hardware.formats import FP32, INT8, Format
from edgetrain.hardware.layer_tables import COLUMNS, read_layer_table, write_csv, write_json
from edgetrain.hardware.tracing import trace
from edgetrain.hardware.workload import KINDS, Activation, Layer, Loops, Workload

TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(str.strip)
COUNTS = st.integers(0, 10**15)
FORMATS = st.sampled_from([FP32, INT8, Format(1), Format(5), Format(16, 8), Format(8, 4)])


@st.composite
def tensors(draw) -> Activation:
    """A tensor that follows from its name, as one name stands for one tensor."""
    name = draw(TEXTS)
    return Activation(name, tuple(range(1, len(name) % 4 + 1)), INT8, len(name) % 2 == 0)


@st.composite
def layers(draw) -> Layer:
    groups = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 10**6), min_size=9, max_size=9))
    loops = Loops(sizes[0], groups, sizes[1] * groups, sizes[2] * groups, *sizes[3:])
    return Layer(
        draw(TEXTS),
        draw(st.sampled_from(KINDS)),
        loops,
        tuple(draw(st.lists(tensors(), max_size=3))),
        tuple(draw(st.lists(tensors(), max_size=2))),
        *draw(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS)),
        draw(st.just("") | TEXTS),
        draw(FORMATS),
        draw(st.floats(0, 1)),
        draw(st.none() | st.integers(1, 100)),
        draw(st.just("") | TEXTS),
        draw(st.booleans()),
    )


@st.composite
def workloads(draw) -> Workload:
    rows = draw(st.lists(layers(), min_size=1, max_size=4, unique_by=lambda layer: layer.name))
    names = [tensor.name for row in rows for tensor in (*row.inputs, *row.outputs)]
    sides = st.lists(st.sampled_from(names), unique=True).map(tuple) if names else st.just(())
    return Workload(draw(TEXTS), tuple(rows), draw(sides), draw(sides))


@given(workload=workloads())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_json_brings_back_everything_and_csv_all_but_the_name(workload, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_json(workload, folder / "table.json")
    assert read_layer_table(folder / "table.json") == workload
    write_csv(workload, folder / "table.csv")
    again = read_layer_table(folder / "table.csv")
    assert again.layers == workload.layers
    assert (set(again.inputs), set(again.outputs)) == (set(workload.inputs), set(workload.outputs))
    assert again.name == "table"


def test_a_tensors_name_may_hold_what_parts_tensors(tmp_path):
    inputs = (Activation("a; b[2x3] int8 out", (2,), INT8), Activation("%3B%25;", (), INT8, state=True))
    workload = Workload("names", (Layer("a", "move", Loops(), inputs),))
    write_csv(workload, tmp_path / "names.csv")
    assert read_layer_table(tmp_path / "names.csv") == workload


def test_a_traced_model_is_written_in_columns_that_people_know(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())
    workload = trace(model, (zeros(1, 3, 9, 9),))
    write_csv(workload, tmp_path / "model.csv")
    header, conv, relu = (tmp_path / "model.csv").read_text().splitlines()
    assert header == ",".join(COLUMNS)
    assert conv.startswith(
        "0,,conv,1,1,8,3,4,4,3,3,2,2,3456,6912,216,8,0.weight,fp32,input[1x3x9x9] fp32 in,0[1x8x4x4]"
    )
    assert relu.split(",")[:3] == ["1", "", "elementwise"]
    assert read_layer_table(tmp_path / "model.csv") == Workload("model", workload.layers, ("input",), ("1",))


def table(folder: Path, text: str, suffix: str = ".csv") -> Path:
    path = folder / f"own{suffix}"
    path.write_text(text)
    return path


OWN = """name,kind,K,C,Y,X,R,S,stride
stem,,32,3,33,33,3,3,2
dw,depthwise,32,32,18,18,3,3,
fc,linear,10,512,,,,,
pool,pool,32,32,16,16,2,2,2
act,elementwise,32,32,16,16,,,
big,,8,4,2,9,3,3,
"""


def test_a_table_with_few_columns_is_filled_up(tmp_path):
    stem, dw, fc, pool, act, big = read_layer_table(table(tmp_path, OWN))
    assert (stem.kind, stem.loops) == ("conv", Loops(1, 1, 32, 3, 16, 16, 3, 3, 2, 2))
    assert (stem.macs, stem.weights) == (16 * 16 * 32 * 27, 32 * 27)
    assert dw.loops == Loops(1, 32, 32, 32, 16, 16, 3, 3)
    assert (dw.macs, dw.weights, dw.operations) == (16 * 16 * 32 * 9, 32 * 9, 2 * 16 * 16 * 32 * 9)
    assert (fc.macs, fc.weights, fc.weight_format) == (5120, 5120, FP32)
    assert (pool.loops, pool.operations) == (Loops(1, 32, 32, 32, 8, 8, 2, 2, 2, 2), 8 * 8 * 32 * 4)
    assert (act.macs, act.weights, act.operations) == (0, 0, 32 * 16 * 16)
    assert (big.degenerate, big.macs, big.operations, big.loops.out_height) == (True, 0, 0, 1)


def test_a_tables_groups_and_output_sizes_are_read(tmp_path):
    text = (
        "name,G,K,C,Y',X',R,S,stride Y,stride X,weight_format\n g ,2,8,4,5,6,3,1,2,1,e4m3\n g ,4,4,4,5,6,3,1,2,1,int8\n"
    )
    grouped, depthwise = read_layer_table(table(tmp_path, "\ufeff" + text))
    assert (grouped.kind, grouped.loops) == ("grouped", Loops(1, 2, 8, 4, 5, 6, 3, 1, 2, 1))
    assert (depthwise.kind, depthwise.name) == ("depthwise", " g :2")
    assert grouped.weight_format == Format(8, 4)


BAD = {
    "no file": (None, "cannot read the layer table .*own.csv: No such file"),
    "empty": ("", "there is no column name, K, C; a layer table needs name, K, C"),
    "header": ("name,K,C\n", "has no layers"),
    "missing": ("name,K,Y\na,1,2\n", "there is no column C"),
    "unknown": ("name,K,C,strides\na,1,2,3\n", "unknown column 'strides' \\(did you mean 'stride'\\?\\)"),
    "negative": ("name,K,C\na,1,2\nb,-3,2\n", "own.csv, row 2: K must be a whole number of at least 1, not -3"),
    "zero": ("name,K,C,R\na,1,2,0\n", "row 1: R must be a whole number of at least 1, not 0"),
    "no number": ("name,K,C\na,many,2\n", "row 1: K must be a whole number of at least 1, not 'many'"),
    "fraction": ("name,K,C\na,1.5,2\n", "K must be a whole number"),
    "blank": ("name,K,C\na,,2\n", "row 1: K is empty"),
    "no name": ("name,K,C\n,1,2\n", "row 1: name is empty"),
    "kind": ("name,kind,K,C\na,convolution,1,2\n", "row 1: 'convolution' is no kind of layer"),
    "groups": ("name,G,K,C\na,3,6,4\n", "row 1: C=4 is no multiple of G=3 groups"),
    "both": ("name,K,C,Y,Y'\na,1,2,5,3\n", "row 1: gives the size of the input"),
    "cells": ("name,K,C\na,1,2,3\n", "row 1: 4 cells for 3 columns"),
    "format": ("name,K,C,weight_format\na,1,2,four\n", "row 1: 'four' is not a number format"),
    "density": ("name,K,C,density\na,1,2,1.2\n", "row 1: density must be a number from 0 to 1, not '1.2'"),
    "tensor": ("name,K,C,inputs\na,1,2,x\n", "row 1: inputs: 'x' is no tensor; write name\\[1x64x32x32\\] int8"),
    "flag": ("name,K,C,degenerate\na,1,2,maybe\n", "degenerate must be yes or no"),
    "quotes": ('name,K,C\n"a\x00,1,2', "own.csv"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_a_bad_csv_is_a_sentence_naming_file_and_row(text, said, tmp_path):
    path = tmp_path / "own.csv" if text is None else table(tmp_path, text)
    with pytest.raises(UserError, match=said) as caught:
        read_layer_table(path)
    assert str(path) in str(caught.value)


BAD_JSON = {
    "damaged": ('{"layers": [', "is not valid JSON .*the file was damaged"),
    "no object": ("[1]", "must be an object with a list of 'layers'"),
    "row": ('{"layers": [1]}', "layer 1 is not an object"),
    "none": ('{"layers": []}', "has no layers"),
    "name": ('{"layers": [{"name": 1, "K": 1, "C": 1}]}', "layer 1: name must be text, not 1"),
    "number": ('{"layers": [{"name": "a", "K": true, "C": 1}]}', "layer 1: K must be a whole number"),
    "tensors": ('{"layers": [{"name": "a", "K": 1, "C": 1, "inputs": "x"}]}', "inputs must be a list of tensors"),
    "sides": ('{"inputs": 3, "layers": [{"name": "a", "K": 1, "C": 1}]}', "'inputs' and 'outputs' lists of names"),
}


@pytest.mark.parametrize(("text", "said"), BAD_JSON.values(), ids=BAD_JSON)
def test_a_bad_json_is_a_sentence_naming_file_and_layer(text, said, tmp_path):
    path = table(tmp_path, text, ".json")
    with pytest.raises(UserError, match=said) as caught:
        read_layer_table(path)
    assert str(path) in str(caught.value)


def test_another_kind_of_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="must end in .csv, .json, .m"):
        read_layer_table(tmp_path / "model.onnx")


WORDS = [
    *("name", "K", "C", "Y", "Y'", "R", "stride", "kind", "weight_format", "inputs", "outputs", "density", "rank"),
    *(",", "\n", "\r", '"', "1", "2", "-1", "0", "conv", "x[1x2] int8", "Network", "Layer", "Type", "Dimensions", "{"),
    *(
        "}",
        ":",
        "K: 3",
        "CONV",
        "DSCONV",
        "//",
        "Stride",
        "Constant",
        "[",
        "]",
        '"layers"',
        "null",
        "1e400",
        " ",
        "\ufeff",
    ),
]


@given(
    text=st.lists(st.sampled_from(WORDS), max_size=40).map("".join)
    | st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)
    | st.text(max_size=60),
    suffix=st.sampled_from([".csv", ".json", ".m"]),
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_text_is_a_workload_or_a_sentence(text, suffix, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert len(read_layer_table(path)) > 0
    except UserError as error:
        assert "\n" not in str(error) or "\n" in text


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.floats()
    | st.sampled_from(["a", "3", "int8", "x[2] int8"]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(rows=st.lists(st.dictionaries(st.sampled_from((*COLUMNS, "Y", "X", "stride")), VALUES, max_size=8), max_size=3))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_json_layers_are_a_workload_or_a_sentence(rows, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz_rows.json"
    path.write_text(json.dumps({"layers": [{"name": "a", "K": 4, "C": 2} | row for row in rows]}))
    with suppress(UserError):
        assert len(read_layer_table(path)) == len(rows)
