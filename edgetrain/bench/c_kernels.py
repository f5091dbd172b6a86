"""Instructions that networks in C take on emulated Cortex-M: plain loops, our kernels and Arm's CMSIS-NN.

Weights are random, from a seed: what a kernel does depends on shapes. The plain loops are the yardstick, so that their
source and the compiler's flags are printed with every ratio (Lai, Suda and Chandra 2018, arXiv 1801.06601, compare
cycles on a board with another program).
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgetrain.bench.export import Noise, keyword_network
from edgetrain.bench.results import show_rows
from edgetrain.errors import UserError, listing
from edgetrain.export.c.cortex_m import core_named, require_tools
from edgetrain.export.c.exporter import C
from edgetrain.folder import Row, RunFolder
from edgetrain.methods.quantize import post_training
from edgetrain.models.cmsis_cifar10 import CMSISCifar10
from edgetrain.report.figures import bar_chart

PLAIN = "plain"
NETWORKS = ("cmsis_cifar10", "ds_cnn_s")
NO_CYCLES = (
    "Instructions of one inference in QEMU, not cycles and not energy: no caches, no wait states of flash, one "
    "instruction at a time. Every layer of every kernel gave the bytes that PyTorch gives."
)


def c_kernels(
    folder: RunFolder,
    *,
    networks: list[str] = NETWORKS,
    cores: list[str] = ("cortex_m4", "cortex_m7", "cortex_m55"),
    cmsis_nn: str | None = None,
    cmsis_core: str | None = None,
) -> dict[str, Any]:
    """Instructions by layer of int8 networks in C on emulated Cortex-M: plain loops, our kernels, CMSIS-NN.

    networks: of the CMSIS-NN paper's CIFAR-10 network and DS-CNN-S; cmsis_nn, cmsis_core: checkouts of
    ARM-software/CMSIS-NN and CMSIS_6, without which CMSIS-NN is left out.
    """
    if unknown := [name for name in networks if name not in NETWORKS]:
        raise UserError(f"networks={unknown}: choose from {listing(NETWORKS)}")
    for core in cores:
        core_named(core)
    require_tools()
    exporter = C(emulate=list(cores), emulated_items=1, cmsis_nn=cmsis_nn, cmsis_core=cmsis_core)
    metrics: dict[str, Any] = {}
    for name in networks:
        metrics |= bench_network(folder, name, exporter)
    return metrics


def bench_network(folder: RunFolder, name: str, exporter: C) -> dict[str, Any]:
    """A table for each core, and one figure of the whole network."""
    network = built(name)
    noise = Noise(network.input_shape)
    example = (torch.zeros(1, *network.input_shape),)
    metrics: dict[str, Any] = {}
    totals: dict[str, dict[str, float | None]] = {}
    with tempfile.TemporaryDirectory() as place:
        (artefact,) = exporter.export(post_training(network, example, noise), example, None, Path(place))
        layers: dict[str, dict[str, list[Row]]] = {}
        for each in artefact.emulations:
            _, rows = each.run(noise.items[0][0][None])
            layers.setdefault(each.processor, {})[each.kernels] = rows
        flags = {each.processor: each.facts["flags"] for each in artefact.emulations}
        made = f"{artefact.emulations[0].facts['compiler']}, {artefact.emulations[0].facts['emulator'].split(',')[0]}"
    source = f"kernels_plain.c has the sha256 {artefact.facts['kernels_plain_sha256']}."
    for core, counted in layers.items():
        rows = compared(counted)
        caption = f"{NO_CYCLES} {made}; {flags[core]}. {source}"
        show_rows(folder, f"{name}_{core}", rows, f"{name} on {core}", caption)
        for kernels in counted:
            metrics[f"{name}/{core}/{kernels}/instructions"] = rows[-1][kernels]
            totals.setdefault(kernels, {})[core] = rows[-1][kernels] / 1e6
            if kernels != PLAIN:
                metrics[f"{name}/{core}/{kernels}/plain_over_these"] = rows[-1][f"plain / {kernels}"]
        print(caption)
    png = bar_chart(totals, "million instructions of one inference", log=True)
    folder.add_figure(name, png, f"{name} on emulated cores", NO_CYCLES)
    return metrics


def built(name: str) -> nn.Module:
    if name == "ds_cnn_s":
        return keyword_network("ds_cnn", "s")
    torch.manual_seed(0)
    return CMSISCifar10().eval()


def compared(counted: dict[str, list[Row]]) -> list[Row]:
    """A row a layer and one of the whole: each kernel's instructions, and the plain loops' divided by them."""
    kernels = [PLAIN, *(name for name in counted if name != PLAIN)]
    rows = [
        {key: each[PLAIN][key] for key in ("layer", "kind", "macs")}
        | {name: each[name]["instructions"] for name in kernels}
        for each in (dict(zip(counted, layer, strict=True)) for layer in zip(*counted.values(), strict=True))
    ]
    summed = {key: sum(row[key] for row in rows) for key in ("macs", *kernels)}
    rows.append({"layer": "total", "kind": "", **summed})
    return [row | {f"plain / {name}": row[PLAIN] / row[name] for name in kernels[1:]} for row in rows]
