"""Exported networks against eager PyTorch, on one thread: a keyword network, a Llama that decodes, and the features.

Weights are random, from a seed, and int8 ranges come from noise: times and sizes depend on neither. How accurate
artefacts are is for runs to say, which judge each of them.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetrain.bench.decode import decoding_config
from edgetrain.bench.results import show_rows, timing_rows
from edgetrain.bench.side_by_side import Contender, Timing, measure, ratio
from edgetrain.build import build
from edgetrain.decoding.autoregressive import generate
from edgetrain.errors import UserError, listing
from edgetrain.export.artefact import Artefact
from edgetrain.export.executorch import ExecuTorch
from edgetrain.export.latency import one_thread
from edgetrain.export.onnx import Onnx
from edgetrain.export.pt2 import Pt2
from edgetrain.export.single_graph import GraphExporter
from edgetrain.folder import RunFolder
from edgetrain.methods.quantize import post_training
from edgetrain.models.keyword import keyword, stride_ms
from edgetrain.models.llama import Llama
from edgetrain.ops.mfcc import MFCC

TARGETS: dict[str, type[GraphExporter]] = {exporter.target: exporter for exporter in (ExecuTorch, Onnx, Pt2)}
EAGER, THEIRS = "pytorch", "torchaudio"
RATE, WINDOW_MS = 16000, 40  # of the paper's features
SLICE = 0.05  # seconds that a repeat of short calls takes
BATCHES = (1, 100)  # clips whose features are computed at once


class Noise:
    """What stands in for data where only ranges of plausible size are wanted."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        drawn = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
        self.items = [(value, 0) for value in drawn]

    def samples(self, split: str) -> list[tuple[Tensor, int]]:
        return self.items


def export(
    folder: RunFolder,
    *,
    overrides: list[str] = (),
    family: str = "ds_cnn",
    size: str = "l",
    targets: list[str] = ("executorch", "onnx", "pt2"),
    llama: bool = True,
    prompt_length: int = 8,
    new_tokens: int = 32,
    repeats: int = 21,
) -> dict[str, Any]:
    """Latency, size and conversion time of artefacts against eager PyTorch; MFCCs a second against torchaudio's.

    family, size: of the keyword network; llama=false leaves the language model out; overrides: model=mobilellm_125m
    unless said, and keys inside model, of that.
    """
    if unknown := set(targets) - set(TARGETS):
        raise UserError(f"targets={sorted(unknown)}: choose from {listing(TARGETS)}")
    exporters = {name: TARGETS[name]() for name in targets}
    with one_thread(), torch.inference_mode(False), torch.no_grad(), tempfile.TemporaryDirectory() as place:
        metrics = bench_keyword(folder, exporters, f"{family}_{size}", keyword_network(family, size), place, repeats)
        if llama:
            config = decoding_config(list(overrides), prompt_length + new_tokens)
            torch.manual_seed(0)
            model = build(config.model | {"share": "none"}).eval()
            prompt = torch.randint(model.vocab_size, (prompt_length,), generator=torch.Generator().manual_seed(0))
            metrics |= bench_llama(folder, exporters, model, prompt, new_tokens, place, repeats)
        return metrics | bench_features(folder, repeats)


def keyword_network(family: str, size: str) -> nn.Module:
    torch.manual_seed(0)
    stride = stride_ms(family, size) if family and size in ("s", "m", "l") else 20
    return keyword(family, size, frames=(1000 - WINDOW_MS) // stride + 1, stride_ms=stride).eval()


def bench_keyword(
    folder: RunFolder, exporters: dict[str, GraphExporter], name: str, network: nn.Module, place: str, repeats: int
) -> dict[str, Any]:
    """One input at a time, in both forms."""
    example = (torch.zeros(1, *network.input_shape),)
    model = post_training(network, example, Noise(network.input_shape))
    artefacts = exported(exporters, model, example, Path(place) / "keyword")
    x = Noise(network.input_shape).items[0][0][None]
    calls = {EAGER: lambda: network(x)} | {
        key: lambda artefact=artefact: artefact.predict(x) for key, (artefact, _) in artefacts.items()
    }
    timings = timed({key: often(call) for key, call in calls.items()}, repeats)
    caption = (
        f"Batch 1, one thread; median and quartiles of {repeats} repeats in turns. Eager PyTorch computes in float32. "
        "conversion: from the model in memory to the file; the first of a runtime also imports it."
    )
    title = f"A call of {name.upper().replace('_', '-')}"
    return show(folder, "keyword", timings, weight_bytes(network), artefacts, "calls", title, caption)


def bench_llama(
    folder: RunFolder,
    exporters: dict[str, GraphExporter],
    model: Llama,
    prompt: Tensor,
    new_tokens: int,
    place: str,
    repeats: int,
) -> dict[str, Any]:
    """Greedy text through each artefact's own cache. Raises UserError when one writes another text than PyTorch."""
    artefacts = exported(exporters, model, (prompt[None],), Path(place) / "llama")
    texts: dict[str, list[int]] = {}

    def decode(name: str) -> int:
        if name == EAGER:
            texts[name] = list(generate(model, prompt, new_tokens))
        else:
            texts[name] = artefacts[name][0].generate(prompt, new_tokens)[len(prompt) :].tolist()
        return len(texts[name])

    timings = timed({name: lambda name=name: decode(name) for name in (EAGER, *artefacts)}, repeats)
    if wrong := [name for name in artefacts if texts[name] != texts[EAGER]]:
        raise UserError(f"{listing(wrong)} decoded another text than PyTorch; their times do not compare")
    caption = (
        f"{new_tokens} new tokens after a prompt of {len(prompt)}, read in the same time. Batch 1, one thread, "
        f"float32, random weights; median and quartiles of {repeats} repeats in turns. All wrote the same text."
    )
    title = f"A token of a Llama with {sum(value.numel() for value in model.parameters()) / 1e6:.1f}M parameters"
    return show(folder, "llama", timings, weight_bytes(model), artefacts, "tokens", title, caption)


def bench_features(folder: RunFolder, repeats: int) -> dict[str, Any]:
    """Clips of one second a second, ours and torchaudio's, of which the latter is another definition of MFCC."""
    ours, theirs = MFCC(RATE, WINDOW_MS), torchaudio_mfcc()
    rows, metrics = [], {}
    for batch in BATCHES:
        clips = 0.1 * torch.randn(batch, RATE, generator=torch.Generator().manual_seed(0))
        calls = {"edgetrain": lambda clips=clips: ours(clips)}
        if theirs is not None:
            calls[THEIRS] = lambda clips=clips: theirs(clips)
        timings = timed({name: often(call, batch) for name, call in calls.items()}, repeats)
        against = timings.get(THEIRS, timings["edgetrain"])
        rows += [{"clips at once": batch} | row for row in timing_rows(list(timings.values()), against, "clips")]
        metrics |= {f"features/{batch}/{name}/clips_per_s": timing.median for name, timing in timings.items()}
        if theirs is not None:
            found = ratio(timings["edgetrain"], against)
            metrics[f"features/{batch}/times_torchaudio"] = found.median if found.quotable else str(found)
    absent = "" if theirs else " torchaudio does not load here."
    caption = (
        f"10 coefficients of 40 mel channels, windows of {WINDOW_MS} ms every 20 ms, one thread. torchaudio's MFCC has "
        f"the same sizes and another definition (power, decibels), so only the times compare.{absent}"
    )
    show_rows(folder, "features", rows, "Features of one-second clips", caption)
    return metrics


def torchaudio_mfcc() -> nn.Module | None:
    try:
        from torchaudio.transforms import MFCC as Theirs
    except (ImportError, OSError):  # a build for another torch
        return None
    window = RATE * WINDOW_MS // 1000
    bank = {"n_fft": 1024, "win_length": window, "hop_length": window // 2, "n_mels": 40, "f_min": 20, "f_max": 4000}
    return Theirs(RATE, n_mfcc=10, melkwargs=bank | {"center": False})


def exported(
    exporters: dict[str, GraphExporter], model: nn.Module, inputs: tuple[Tensor, ...], place: Path
) -> dict[str, tuple[Artefact, dict[str, float]]]:
    """Each artefact, with the size of its files in bytes and the seconds that its target took for all its forms."""
    found = {}
    for target, exporter in exporters.items():
        out = place / target
        out.mkdir(parents=True)
        begun = time.perf_counter()
        artefacts = exporter.export(model, inputs, None, out)
        seconds = time.perf_counter() - begun
        for artefact in artefacts:
            size = sum((out / file).stat().st_size for file in artefact.files)
            took = artefact.facts.get("conversion_seconds", seconds)
            found[f"{target} {artefact.name}"] = (artefact, {"bytes": size, "seconds": took})
    return found


def often(call: Callable[[], Any], units: int = 1) -> Callable[[], int]:
    """A repeat that calls for as long as a clock can tell."""

    def run() -> int:
        done, ends = 0, time.perf_counter() + SLICE
        while time.perf_counter() < ends:
            call()
            done += units
        return done

    return run


def timed(runs: dict[str, Callable[[], int]], repeats: int) -> dict[str, Timing]:
    contenders = [Contender(name, run) for name, run in runs.items()]
    return {timing.name: timing for timing in measure(contenders, repeats, threads=1)}


def weight_bytes(model: nn.Module) -> int:
    """Of parameters and buffers, tied ones once."""
    return sum(value.nbytes for value in (*model.parameters(), *model.buffers()))


def show(
    folder: RunFolder,
    name: str,
    timings: dict[str, Timing],
    eager_bytes: int,
    artefacts: dict[str, tuple[Artefact, dict[str, float]]],
    unit: str,
    title: str,
    caption: str,
) -> dict[str, Any]:
    """A row for eager PyTorch and for each artefact; returns their metrics."""
    rows, metrics = [], {}
    for row in timing_rows(list(timings.values()), timings[EAGER], unit):
        key = row["contender"]
        _, about = artefacts.get(key, (None, {"bytes": eager_bytes, "seconds": ""}))
        found = {"ms": 1e3 / row[f"{unit}/s"], "file, KiB": about["bytes"] / 2**10, "conversion, s": about["seconds"]}
        rows.append({"contender": key} | found | row)
        short = f"{name}/{key.replace(' ', '_')}"
        metrics |= {f"{short}/ms": found["ms"], f"{short}/bytes": about["bytes"]}
        if key in artefacts:
            metrics[f"{short}/conversion_seconds"] = about["seconds"]
            against = ratio(timings[key], timings[EAGER])
            metrics[f"{short}/times_eager"] = against.median if against.quotable else str(against)
    show_rows(folder, name, rows, title, f"{caption} file of {EAGER}: its weights.")
    return metrics
