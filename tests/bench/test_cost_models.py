"""The bench of cost queries: what it asks, what it forgets, and what it says of a peer that is not there."""

import csv
import gc
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from edgetrain.bench import cost_models as bench
from edgetrain.bench.cost_models import (
    ARRAYS,
    BATCH,
    PUBLISHED,
    ZIGZAG,
    forget,
    grown,
    metrics_of,
    official_layers,
    often,
    once,
)
from edgetrain.bench.side_by_side import Timing
from edgetrain.build import build
from edgetrain.compose import compose
from edgetrain.folder import RunFolder
from edgetrain.hardware import asic
from edgetrain.hardware.bitfusion import BitFusion
from edgetrain.hardware.workload import Activation, Layer, Loops, Workload

ROOT = Path(__file__).resolve().parents[2]
OFFICIAL = Path(
    os.environ.get("EDGETRAIN_DATA", ROOT.parent / "shared" / "data"), "bitfusion", "bitfusion-eyeriss-sim-sweep.csv"
)
TENSORS = (Activation("x", (1, 4, 8, 8)),), (Activation("y", (1, 8, 8, 8)),)
LAYER = Layer("conv", "conv", Loops(1, 1, 8, 4, 8, 8), *TENSORS, macs=2048, operations=4096, weights=32)


@cache
def bitfusion() -> BitFusion:
    return build(compose(["recipe=cost", "hardware=[bitfusion]"]).hardware["bitfusion"])


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)
    monkeypatch.setattr(bench, "SLICE", 0.001)
    monkeypatch.setattr(bench, "DESIGNS", [(128, 16), (256, 32)])
    monkeypatch.setattr(bench, "ARRAYS", ARRAYS[:1])
    monkeypatch.setattr(bench, "RESNET", "resnet10t")
    monkeypatch.setattr(bench, "MOBILENET", "mobilenetv3_small_050")


def test_every_query_is_timed_and_a_missing_peer_is_said_to_be_so(
    edgetrain: Callable[..., tuple[int, str, str]], quickly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "installed", lambda: False)
    code, out, err = edgetrain("bench", "cost_models", "size=32", "repeats=1", "out=bench")
    assert code == 0, err
    assert "ZigZag is not installed; pip install zigzag-dse six" in out
    folder = RunFolder.open("bench")
    names = [row["contender"] for row in folder.read_table("cost_queries")]
    assert names == ["nvdla", "nvdla, layers kept", "nvdla, traced first", "bitfusion"]
    for table in ("cost_queries", "cost_designs", "cost_bitfusion"):
        for row in folder.read_table(table):
            (rate,) = (float(row[key]) for key in row if key.endswith("/s"))
            assert float(row["ms each"]) == pytest.approx(1e3 / rate)
    metrics = folder.read_json("metrics.json")
    assert metrics["seconds/nvdla, layers kept"] < metrics["seconds/nvdla, traced first"]
    assert not any(key.startswith("times_zigzag") for key in metrics)
    page = (folder.path / "report.html").read_text()
    assert "0.1 to 1.8 s a layer" in page and "pip install zigzag-dse six" in page


def test_an_installed_peer_is_asked_in_turns_and_compared(
    edgetrain: Callable[..., tuple[int, str, str]], quickly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(bench, "trace", lambda *arguments: Workload("one", (LAYER,)))
    monkeypatch.setattr(bench, "installed", lambda: True)
    monkeypatch.setattr(bench, "ask_zigzag", lambda: asked.append(1))
    code, _, err = edgetrain("bench", "cost_models", "size=32", "repeats=2", "out=bench")
    assert code == 0, err
    assert len(asked) == 2  # never only to warm up
    rows = RunFolder.open("bench").read_table("cost_queries")
    assert rows[-1]["contender"] == ZIGZAG and rows[-1][f"times {ZIGZAG}"] == ""
    assert rows[0][f"times {ZIGZAG}"] == "not quotable: 2 repeats are fewer than 5"
    code, _, _ = edgetrain("bench", "cost_models", "size=32", "repeats=1", "zigzag=false", "out=without")
    assert code == 0 and len(asked) == 2


def test_times_of_zigzag_are_ratios_of_rates_or_say_why_not() -> None:
    def timing(name: str, seconds: float, units: int = 1) -> Timing:
        return Timing(name, 2.0, 1, [units] * 5, [seconds] * 5, [0.0] * 5)

    fast, peer = timing("nvdla", 0.5, units=100), timing(ZIGZAG, 40.0)
    metrics = metrics_of({"nvdla": fast, ZIGZAG: peer}, {"nvdla": fast, "even": timing("even", 40.0), ZIGZAG: peer})
    assert metrics["seconds/nvdla"] == pytest.approx(0.005) and metrics["seconds/ZigZag"] == pytest.approx(40)
    assert metrics["times_zigzag/nvdla"] == pytest.approx(8000)
    assert metrics["times_zigzag/even"].startswith("not quotable")
    assert "times_zigzag/ZigZag" not in metrics


def test_nothing_is_kept_between_queries_unless_asked(quickly: None) -> None:
    nvdla = build(compose(["recipe=cost", "hardware=[nvdla]"]).hardware["nvdla"])
    workload = Workload("one", (LAYER,))
    forget()
    assert asic._mapped.cache_info().currsize == 0
    asked: list[int] = []

    def query() -> None:
        asked.append(asic._mapped.cache_info().currsize)
        replace(nvdla).cost(workload)  # what a device itself keeps would hide it

    assert often(query)() == len(asked) and set(asked) == {0}
    asked.clear()
    assert often(query, keep=True)() == len(asked) and set(asked) == {1}
    assert once(query)() == 1 and asked[-1] == 0


def test_the_official_layers_are_the_120_of_the_published_table() -> None:
    assert official_layers(bitfusion()) == 120


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="needs the official table of Bit Fusion")
def test_arrays_and_networks_are_those_of_the_published_table() -> None:
    with OFFICIAL.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120
    assert {(int(row["M"]), int(row["Bandwidth (bits/cycle)"])) for row in rows} == set(ARRAYS)
    assert {row["Network"] for row in rows} == set(PUBLISHED)
    assert {int(row["Batch size"]) for row in rows} == {BATCH}
    for row in rows:  # the columns named "(bits)" hold bytes
        device = grown(bitfusion(), int(row["M"]), int(row["Bandwidth (bits/cycle)"]))
        assert (device.rows, device.columns) == (int(row["N"]), int(row["M"]))
        assert device.dram_bits_per_cycle == int(row["Bandwidth (bits/cycle)"])
        sizes = [int(row[f"{name} Size (bits)"]) for name in ("WBUF", "IBUF", "OBUF")]
        assert [device.wbuf_bytes, device.ibuf_bytes, device.obuf_bytes] == sizes
