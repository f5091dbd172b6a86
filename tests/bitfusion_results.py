"""The shipped Bit Fusion, layers to cost on it, and what the paper's simulator published."""

import csv
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from edgetrain.hardware.bitfusion import BitFusion
from edgetrain.hardware.bitfusion_tiling import Run
from edgetrain.hardware.formats import Format
from edgetrain.hardware.workload import Activation, Kind, Layer, Loops, Workload

DATA = Path(os.environ.get("EDGETRAIN_DATA", ROOT.parent / "shared" / "data")) / "bitfusion"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the published results of Bit Fusion are not on this machine")

CONFIGURATION = {
    "columns": "M",
    "dram_bits_per_cycle": "Bandwidth (bits/cycle)",
    "wbuf_bytes": "WBUF Size (bits)",  # bytes, whatever the column says
    "ibuf_bytes": "IBUF Size (bits)",
    "obuf_bytes": "OBUF Size (bits)",
}
FIGURES = {
    "cycles": "Cycles",
    "stalls": "Memory wait cycles",
    **{
        f"{memory.lower()}_{way.lower()}": f"{memory} {way}"
        for memory in ("WBUF", "IBUF", "OBUF", "DRAM")
        for way in ("Read", "Write")
    },
}
# The three decimals that the simulator prints of its prices, pJ a bit
PRINTED = {
    "wbuf_read_pj": 0.021,
    "wbuf_write_pj": 0.029,
    "ibuf_read_pj": 0.059,
    "ibuf_write_pj": 0.114,
    "obuf_read_pj": 0.033,
    "obuf_write_pj": 0.073,
}


def device(**changes: Any) -> BitFusion:
    """conf/hardware/bitfusion.yaml with changes."""
    node = yaml.safe_load((ROOT / "conf" / "hardware" / "bitfusion.yaml").read_text())
    assert node.pop("_target_") == "edgetrain.hardware.bitfusion.BitFusion"
    return BitFusion(**node | changes)


def published() -> dict[tuple[tuple[str, int], ...], dict[str, dict[str, Run]]]:
    """The simulator's results by configuration, network and layer."""
    results: dict = defaultdict(lambda: defaultdict(dict))
    with (DATA / "bitfusion-eyeriss-sim-sweep.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            configuration = tuple((key, int(row[column])) for key, column in CONFIGURATION.items())
            run = Run(**{key: int(row[column]) for key, column in FIGURES.items()})
            results[configuration][row["Network"]][row["Layer"].partition("/")[0]] = run
    return results


def table(*layers: Layer) -> Workload:
    return Workload("table", layers)


def layer(kind: Kind = "conv", bits: tuple[int, int] = (8, 8), name: str = "layer", **loops: int) -> Layer:
    """A layer of a table without tensors, but for its input's width."""
    nest = Loops(**loops)
    inputs = (Activation(f"{name}.in", (1,), Format(bits[0])),)
    return Layer(name, kind, nest, inputs, (), macs=nest.macs, weight_format=Format(bits[1]))


def run(one: Layer, of: BitFusion | None = None, first: bool = False) -> Run:
    """Its run behind another convolution, or as the first layer."""
    before = layer(name="before", out_channels=32, in_channels=16)
    x = replace(one.inputs[0], name="before.out")
    behind = (replace(before, outputs=(x,)), replace(one, inputs=(x, *one.inputs[1:])))
    found = (of or device()).runs(table(one) if first else table(*behind))[-1]
    assert found is not None
    return found
