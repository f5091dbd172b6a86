"""Cycles that MAESTRO published, and ours for the same layers.

maestro-project/maestro at 4eb08d1 (MIT), tools/jupyter_notebook/data/{Resnet50,MobileNetV2}_kcp_ws_pe*.csv, with shapes
and strides from data/mapping. Equal layers stand once, with how many there are; Y and X without rows that no stride
reads.
"""

import csv
from pathlib import Path

from edgetrain.hardware.dataflow import DIMENSIONS, Shape, parse_dataflow
from edgetrain.hardware.maestro import analyse

ROWS = list(csv.DictReader((Path(__file__).parent / "hardware" / "maestro_published.csv").read_text().splitlines()))
KCP_WS = (
    "SpatialMap(1,1) K",
    "TemporalMap(64,64) C",
    "TemporalMap(Sz(R),Sz(R)) R",
    "TemporalMap(Sz(S),Sz(S)) S",
    "TemporalMap(Sz(R),1) Y",
    "TemporalMap(Sz(S),1) X",
    "Cluster(64,P)",
    "SpatialMap(1,1) C",
    "TemporalMap(Sz(R),1) Y",
    "TemporalMap(Sz(S),1) X",
)
DEPTHWISE = ("SpatialMap(1,1) C", "TemporalMap(Sz(R),1) Y", "TemporalMap(Sz(S),1) X")


def our_cycles(row: dict[str, str]) -> int:
    """With vectors of 9 and 1,024 numbers a cycle, as the published runs."""
    stride, depthwise = int(row["stride"]), row["type"] == "DSCONV"
    shape = Shape(tuple(int(row[letter]) for letter in DIMENSIONS), stride, stride, depthwise)
    dataflow = parse_dataflow(DEPTHWISE if depthwise else KCP_WS, "published")
    return analyse(dataflow, shape, int(row["pes"]), 1024, 9).cycles
