"""Decoding of a model, of the same with shared blocks, and of one as deep with blocks of its own.

MobileLLM-LS's claim (Liu et al. 2024, arXiv 2402.14905, Table 7; an iPhone 13, float16): visiting every block twice
costs 2.6% of the time of one token, as the weights are read once, and blocks of its own cost 86%. Weights here are
random, from a seed; the deep model has copies of the shared ones, so that both must decode the same text.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgetrain.bench.fresh_process import in_fresh_process
from edgetrain.bench.results import show_rows, timing_rows
from edgetrain.bench.side_by_side import Contender, Timing, measure, ratio
from edgetrain.build import build
from edgetrain.compose import compose
from edgetrain.config import Config, make
from edgetrain.decoding.fused import Weights
from edgetrain.decoding.static import StaticDecoder
from edgetrain.environment import resident
from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.models.huggingface import save_llama, unrolled_weights
from edgetrain.models.llama import Llama
from edgetrain.report.figures import bar_chart

PLAIN, SHARED, UNROLLED = "plain", "shared", "unrolled"
PAPER = "The paper, MobileLLM-125M on an iPhone 13: shared 1.026 times the time of plain, unrolled 1.86 times."


def decode(
    folder: RunFolder,
    *,
    overrides: list[str] = (),
    prompt_length: int = 64,
    new_tokens: int = 32,
    repeats: int = 7,
    weights: Weights = "float32",
    compiled: bool = False,
) -> dict[str, Any]:
    """Tokens a second, memory and file size: a model, its layer-sharing form, and the latter with its own blocks.

    overrides: model=mobilellm_125m unless said, and keys inside model and data; weights, compiled: of the decoder.
    """
    config = decoding_config(list(overrides), prompt_length + new_tokens)
    prompt = torch.randint(config.data["vocab_size"], (prompt_length,), generator=torch.Generator().manual_seed(0))
    models = {name: model_of(config, name) for name in (PLAIN, SHARED, UNROLLED)}
    sizes = {name: file_size(model) for name, model in models.items()}
    decoders = {name: StaticDecoder(model, weights=weights, compiled=compiled) for name, model in models.items()}
    texts: dict[str, list[int]] = {}

    def run(name: str) -> int:
        texts[name] = decoders[name].decode([prompt], new_tokens)[0]
        return len(texts[name])

    contenders = [Contender(name, lambda name=name: run(name)) for name in models]
    timings = {timing.name: timing for timing in measure(contenders, repeats)}
    if texts[SHARED] != texts[UNROLLED]:
        raise UserError("the shared model and its unrolled copy decoded different texts; their times do not compare")
    rows = timing_rows(list(timings.values()), timings[PLAIN], "tokens")
    for row in rows:
        name = row["contender"]
        row |= held(models[name], decoders[name]) | {"file, MiB": sizes[name] / 2**20}
        row["peak, MiB"] = peak(config, name, prompt_length, new_tokens, weights)
    title = f"Decoding, {weights}{', compiled' * compiled}: {prompt_length} tokens of prompt, {new_tokens} new ones"
    caption = (
        f"Median and quartiles of {repeats} repeats in turns; random weights. file: exported safetensors, float32. "
        "peak: of a fresh process that builds the model, copies it for decoding and decodes, above what it had before; "
        f"not compiled. {PAPER}"
    )
    show_rows(folder, "decode", rows, title, caption)
    rates = {name: timing.median for name, timing in timings.items()}
    folder.add_figure("decode", bar_chart({"tokens/s": rates}, "tokens a second"), "Tokens a second", PAPER)
    return metrics_of(rows, timings)


def decoding_config(overrides: list[str], length: int) -> Config:
    """The model's configuration. Raises UserError when it is no Llama of ours, or shares nothing."""
    if not any(text.startswith("model=") for text in overrides):
        overrides = ["model=mobilellm_125m", *overrides]
    bare = ["method=[]", "data.vocab_size=32000", f"data.context={length}"]
    config = compose(["recipe=layerskip_llama", *bare, *overrides])
    if not config.model or config.model["_target_"] != "edgetrain.models.llama.Llama":
        raise UserError("bench decode needs a Llama of ours: model=llama or model=mobilellm_...")
    if config.model["context"] < length:
        raise UserError(f"model.context={config.model['context']} has no room for {length} tokens; set it to {length}")
    share = config.model["share"] if config.model["share"] != "none" else "immediate"
    return make(config.to_dict() | {"model": config.model | {"share": share}})


def untrained(config: Config, name: str) -> Llama:
    """The configured model (`shared`), without sharing (`plain`), or with a block for every visit (`unrolled`)."""
    torch.manual_seed(config.seed)
    node = config.model
    if name != SHARED:
        node = node | {"share": "none", "layers": node["layers"] * (node["repeats"] if name == UNROLLED else 1)}
    return build(node).eval()


def model_of(config: Config, name: str) -> Llama:
    """The same, and every block of `unrolled` is a copy of the shared one."""
    model = untrained(config, name)
    if name == UNROLLED:
        shared = untrained(config, SHARED)
        order = [visit.block for visit in shared.model.visits]
        model.load_state_dict(unrolled_weights(shared.state_dict(), order))
    return model


def file_size(model: Llama) -> int:
    """Bytes of the exported weights."""
    with tempfile.TemporaryDirectory() as place:
        save_llama(model, Path(place))
        return (Path(place) / "model.safetensors").stat().st_size


def held(model: Llama, decoder: StaticDecoder) -> Row:
    """What the decoder keeps, in MiB: its weights, the embedding among them, and the cache."""
    tensors: list[Tensor] = [*decoder.fused.buffers()]
    cache = [*decoder.cache.keys, *decoder.cache.values]
    return {
        "layers": model.layers,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights, MiB": sum(tensor.nbytes for tensor in tensors) / 2**20,
        "cache, MiB": sum(tensor.nbytes for tensor in cache) / 2**20,
    }


def peak(config: Config, name: str, prompt_length: int, new_tokens: int, weights: str) -> float | str:
    """MiB of a process that does nothing else; `not run` where the system does not tell."""
    arguments = {"config": config.to_dict(), "name": name, "new_tokens": new_tokens, "weights": weights}
    found = in_fresh_process("edgetrain.bench.decode.peak_bytes", prompt_length=prompt_length, **arguments)
    return "not run" if found is None else found / 2**20


def peak_bytes(config: dict[str, Any], name: str, prompt_length: int, new_tokens: int, weights: Weights) -> int | None:
    """Largest memory of this process while decoding, above what it had before. For a fresh process."""
    idle = resident()
    if idle is None:
        return None
    decoder = StaticDecoder(untrained(make(config), name), weights=weights)
    decoder.decode([torch.zeros(prompt_length, dtype=torch.int64)], new_tokens)
    return resident("VmHWM") - idle


def metrics_of(rows: list[Row], timings: dict[str, Timing]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for row in rows:
        for key in ("tokens/s", "weights, MiB", "cache, MiB", "file, MiB", "peak, MiB"):
            metrics[f"{row['contender']}/{key.replace(', MiB', '_mib').replace('/s', '_per_s')}"] = row[key]
    for name, (one, other) in {
        "plain_over_shared": (PLAIN, SHARED),
        "shared_over_unrolled": (SHARED, UNROLLED),
    }.items():
        found = ratio(timings[one], timings[other])
        print(f"{name:22} {found}")
        metrics[name] = found.median if found.quotable else str(found)
    return metrics
