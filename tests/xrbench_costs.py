"""XRBench's layer tables and the costs that its own MAESTRO gives them, from $EDGETRAIN_DATA or ../shared/data."""

import csv
import gzip
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from edgetrain.build import build
from edgetrain.hardware.asic import Asic
from edgetrain.hardware.dataflow import DIMENSIONS, Dataflow, Shape, parse_dataflow

ROOT = Path(__file__).resolve().parent.parent
XRBENCH = Path(os.environ.get("EDGETRAIN_DATA", ROOT.parent / "shared" / "data")) / "xrbench"
COSTS = XRBENCH / "oracle" / "maestro_layer_costs_4k.csv.gz"
NAMES = {"WS": "xrbench_ws", "OS": "xrbench_os", "RS": "xrbench_rs"}


def device(name: str, **changes) -> Asic:
    return build(yaml.safe_load((ROOT / "conf" / "hardware" / f"{name}.yaml").read_text()) | changes)


@cache
def dataflow(name: str) -> Dataflow:
    return parse_dataflow(tuple(device(NAMES[name]).dataflow), name)


@cache
def tables() -> dict[str, list[Shape]]:
    """The layers of all networks, those whose kernel is larger than their input too."""
    networks: dict[str, list[Shape]] = {}
    for path in sorted((XRBENCH / "usage_scenarios").glob("*.m")):
        for network in re.split(r"\bNetwork\b", path.read_text())[1:]:
            layers = []
            for sizes in re.findall(r"Dimensions:?\s*\{(.*?)\}", network, re.DOTALL):
                size = {letter: int(value) for letter, value in re.findall(r"([A-Z]):\s*(\d+)", sizes)}
                layers.append(Shape(tuple(size[letter] for letter in DIMENSIONS)))
            networks.setdefault(network.split()[0], layers)
    return networks


def published() -> Iterator[dict[str, str]]:
    """pes, noc_bw, dataflow, model, layer, cycles, energy_nj."""
    with gzip.open(COSTS, "rt") as file:
        yield from csv.DictReader(file)
