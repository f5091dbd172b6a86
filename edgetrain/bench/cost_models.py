"""Cost queries a second: a network on an array of processing elements, on Bit Fusion, and by ZigZag.

Machines and models of the tools differ, so that their figures do not compare; how long an answer takes does. ZigZag
searches loop orders, Bit Fusion tiles and loop orders, NVDLA's dataflow is fixed.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import torch

from edgetrain.bench.results import show_rows, timing_rows
from edgetrain.bench.side_by_side import Contender, Timing, measure, ratio
from edgetrain.bench.zigzag import LOOPS, ask_zigzag, installed
from edgetrain.build import build
from edgetrain.compose import compose
from edgetrain.folder import Row, RunFolder
from edgetrain.hardware.asic import Asic
from edgetrain.hardware.bitfusion import BitFusion
from edgetrain.hardware.bitfusion_networks import network
from edgetrain.hardware.tracing import trace
from edgetrain.hardware.workload import Workload
from edgetrain.report.figures import bar_chart

RESNET, MOBILENET = "resnet18", "mobilenetv2_100"
COLD, ZIGZAG = "nvdla", "ZigZag"
DESIGNS = list(product(range(128, 4097, 64), (8, 16, 32, 64)))  # processing elements, numbers a cycle between them
PUBLISHED = ("SVHN", "CIFAR10", "LeNet-5", "RNN", "LSTM")  # networks of which the authors give every layer, 24 in all
ARRAYS = ((32, 192), (32, 4096), (64, 4096), (128, 4096), (256, 4096))  # columns, DRAM bits a cycle
BATCH = 16
SLICE = 0.2  # seconds that a repeat of short queries takes
OFFICIAL = "The official optimiser takes 0.1 to 1.8 s a layer under Python 3, on another machine."


def cost_models(
    folder: RunFolder, *, size: int = 224, repeats: int = 7, minutes: float = 15.0, zigzag: bool = True
) -> dict[str, Any]:
    """Cost queries a second: ResNet-18 on NVDLA, Bit Fusion and by ZigZag, designs of a search, Bit Fusion's layers.

    size: of the images; minutes: no repeat of ResNet-18 begins that would end after so many; zigzag=false leaves it
    out. ZigZag is measured where it is installed, on its own ResNet-18 of 224 pixels.
    """
    config = compose(["recipe=cost", "model=timm", f"model.name={RESNET}", "hardware=[nvdla,bitfusion]"])
    nvdla, bitfusion = (build(config.hardware[name]) for name in ("nvdla", "bitfusion"))
    image = (torch.zeros(1, 3, size, size),)
    models = {name: build(config.model | {"name": name}) for name in (RESNET, MOBILENET)}
    tables = {name: trace(model, image, name) for name, model in models.items()}

    queries = {
        COLD: often(lambda: replace(nvdla).cost(tables[RESNET])),  # a device keeps its layers, a copy has none
        "nvdla, layers kept": often(lambda: nvdla.cost(tables[RESNET]), keep=True),
        "nvdla, traced first": once(lambda: replace(nvdla).cost(trace(models[RESNET], image, RESNET))),
        "bitfusion": once(lambda: bitfusion.cost(tables[RESNET])),
    }
    absent = "" if zigzag else "ZigZag was left out."
    if zigzag and installed():
        queries[ZIGZAG] = once(ask_zigzag)
    elif zigzag:
        absent = "ZigZag is not installed; pip install zigzag-dse six"
        print(absent)
    found = timed(queries, repeats, minutes)
    caption = (
        f"{size} pixels; median and quartiles of the repeats, in turns, one thread. Nothing is kept from one query to "
        f"the next where a row does not say so. ZigZag: its own ResNet-18, TPU-like machine, lpf_limit={LOOPS}; it "
        "searches loop orders, Bit Fusion tiles and loop orders, NVDLA's dataflow is fixed. Only the times compare, as "
        f"the machines differ. {absent}"
    )
    show(
        folder, "cost_queries", found, found.get(ZIGZAG, found[COLD]), "queries", "Costs of ResNet-18", caption.strip()
    )
    each = {"ms a query": {name: 1e3 / timing.median for name, timing in found.items()}}
    folder.add_figure("cost_queries", bar_chart(each, "milliseconds a query", log=True), "Time of a query", caption)

    searches = timed(mobilenet_queries(nvdla, tables[MOBILENET]), repeats)
    (fewest, narrow), (most, wide) = DESIGNS[0], DESIGNS[-1]
    caption = (
        f"{size} pixels, after tracing. Designs: {len(DESIGNS)}, of {fewest} to {most} processing elements and "
        f"{narrow} to {wide} numbers a cycle between them, each asked for the first time."
    )
    show(folder, "cost_designs", searches, searches["a cost"], "costs", "Costs of MobileNetV2 on NVDLA", caption)

    official = timed({"official layers": once(lambda: official_layers(bitfusion))}, repeats)
    caption = f"{len(PUBLISHED)} networks, {len(ARRAYS)} arrays, {BATCH} images, nothing kept. {OFFICIAL}"
    show(folder, "cost_bitfusion", official, *official.values(), "layers", "Layers on Bit Fusion", caption)
    return metrics_of(found | searches | official, found)


def mobilenet_queries(nvdla: Asic, table: Workload) -> dict[str, Callable[[], int]]:
    designs = [replace(nvdla, pes=pes, noc_bandwidth=width) for pes, width in DESIGNS]
    return {
        "a cost": often(lambda: replace(nvdla).cost(table)),
        "a cost, layers kept": often(lambda: nvdla.cost(table), keep=True),
        "designs of a search": once(lambda: len([design.cost(table) for design in designs])),
    }


def official_layers(bitfusion: BitFusion) -> int:
    """Run every published layer on every published array; returns how many those are."""
    layers = 0
    for columns, bandwidth in ARRAYS:
        device = grown(bitfusion, columns, bandwidth)
        for name in PUBLISHED:
            forget()
            layers += len(device.runs(network(name, BATCH)))
    return layers


def grown(bitfusion: BitFusion, columns: int, bandwidth: int) -> BitFusion:
    """With other columns, buffers as many times as large, and so many bits of DRAM a cycle."""
    times = columns // bitfusion.columns
    buffers = {name: times * getattr(bitfusion, name) for name in ("wbuf_bytes", "ibuf_bytes", "obuf_bytes")}
    return replace(bitfusion, columns=columns, dram_bits_per_cycle=bandwidth, **buffers)


def once(query: Callable[[], object]) -> Callable[[], int]:
    """A repeat that asks once, with nothing kept; what counts its own units returns how many."""

    def run() -> int:
        forget()
        done = query()
        return done if isinstance(done, int) else 1

    return run


def often(query: Callable[[], object], keep: bool = False) -> Callable[[], int]:
    """A repeat that asks for as long as a clock can tell; with nothing kept between two queries, unless `keep`."""

    def run() -> int:
        asked, ends = 0, time.perf_counter() + SLICE
        while time.perf_counter() < ends:
            if not keep:
                forget()
            query()
            asked += 1
        return asked

    return run


def forget() -> None:
    """Empty every cache of the device models' functions."""
    for clear in cache_clears(len(sys.modules)):
        clear()


@cache
def cache_clears(modules: int) -> tuple[Callable[[], None], ...]:
    """Looked for again only when more modules are loaded, as this is part of what is timed."""
    rooms = [module for name, module in list(sys.modules.items()) if name.startswith("edgetrain.hardware.")]
    found = {id(value): value for room in rooms for value in vars(room).values() if hasattr(value, "cache_clear")}
    return tuple(value.cache_clear for value in found.values())


def timed(queries: dict[str, Callable[[], int]], repeats: int, minutes: float | None = None) -> dict[str, Timing]:
    """Every query in turns. All but ZigZag's, which takes most of a minute, are asked once before."""
    for name, query in queries.items():
        if name != ZIGZAG:
            query()
    contenders = [Contender(name, query) for name, query in queries.items()]
    return {timing.name: timing for timing in measure(contenders, repeats, 0, threads=1, minutes=minutes)}


def show(
    folder: RunFolder, name: str, timings: dict[str, Timing], against: Timing, unit: str, title: str, caption: str
) -> None:
    rows: list[Row] = []
    for row in timing_rows(list(timings.values()), against, unit):
        rows.append({"contender": row["contender"], "ms each": 1e3 / row[f"{unit}/s"]} | row)
    show_rows(folder, name, rows, title, caption)


def metrics_of(timings: dict[str, Timing], queries: dict[str, Timing]) -> dict[str, Any]:
    """Seconds of every query, and how many times faster than ZigZag's, or why that may not be said."""
    metrics: dict[str, Any] = {f"seconds/{name}": 1 / timing.median for name, timing in timings.items()}
    for name, timing in queries.items():
        if ZIGZAG in queries and name != ZIGZAG:
            against = ratio(timing, queries[ZIGZAG])
            metrics[f"times_zigzag/{name}"] = against.median if against.quotable else str(against)
    return metrics
