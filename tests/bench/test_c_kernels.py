"""The bench of C kernels: a row a layer, ratios to the plain loops, and what these were built with."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetrain.bench.c_kernels import compared
from edgetrain.export.c.cortex_m import missing_tools
from edgetrain.folder import RunFolder

Call = Callable[..., tuple[int, str, str]]
PLAIN_SOURCE = Path(__file__).parents[2] / "edgetrain/export/c/csrc/kernels_plain.c"


@pytest.mark.skipif(bool(missing_tools()), reason=f"lacks {missing_tools()}")
def test_every_layer_stands_beside_plain_loops(edgetrain: Call, workplace: Path) -> None:
    code, out, err = edgetrain("bench", "c_kernels", "networks=[ds_cnn_s]", "cores=[cortex_m55]", "out=bench")
    assert code == 0, err
    sha = hashlib.sha256(PLAIN_SOURCE.read_bytes()).hexdigest()
    assert f"kernels_plain.c has the sha256 {sha}" in out.replace("\n", " ")
    assert "-mcpu=cortex-m55" in out and "-O3" in out and "arm-none-eabi-gcc (" in out
    folder = RunFolder.open("bench")
    rows = folder.read_table("ds_cnn_s_cortex_m55")
    assert sum(row["kind"] == "depthwise" for row in rows) == 4
    *layers, total = rows
    # The paper's DS-CNN-S: 64 channels, 25 x 5 positions, a first kernel of 10 x 4, twelve words.
    first, depthwise, pointwise = 125 * 64 * 40, 125 * 64 * 9, 125 * 64 * 64
    assert [float(row["macs"]) for row in layers] == [first, *(4 * [depthwise, pointwise]), 0, 64 * 12]
    for name in ("plain", "portable"):
        assert float(total[name]) == sum(float(row[name]) for row in layers)
    metrics = folder.read_json("metrics.json")
    ours, plain = (metrics[f"ds_cnn_s/cortex_m55/{name}/instructions"] for name in ("portable", "plain"))
    assert metrics["ds_cnn_s/cortex_m55/portable/plain_over_these"] == pytest.approx(plain / ours)
    assert plain != ours  # two sources
    assert "cmsis_nn" not in total


def test_ratios_are_plain_instructions_over_each() -> None:
    facts = {"kind": "convolution", "macs": 10}
    counted = {
        "portable": [{"layer": "a", **facts, "instructions": 20}, {"layer": "b", **facts, "instructions": 30}],
        "plain": [{"layer": "a", **facts, "instructions": 60}, {"layer": "b", **facts, "instructions": 15}],
    }
    first, second, total = compared(counted)
    assert first == {"layer": "a", **facts, "plain": 60, "portable": 20, "plain / portable": 3}
    assert (second["plain"], second["plain / portable"]) == (15, 0.5)
    assert (total["layer"], total["macs"], total["plain"], total["plain / portable"]) == ("total", 20, 75, 1.5)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("networks=[resnet]", "networks=['resnet']: choose from cmsis_cifar10, ds_cnn_s"),
        ("cores=[m4]", "'m4' is no core that can be emulated; take one of cortex_m3, cortex_m4"),
        ("cmsis_nn=nowhere", "cmsis_nn=nowhere has no Include/arm_nnfunctions.h"),
    ],
)
def test_bad_input_is_one_sentence(edgetrain: Call, workplace: Path, argument: str, message: str) -> None:
    code, _, err = edgetrain("bench", "c_kernels", argument, "out=bench")
    assert code == 2 and message in err
