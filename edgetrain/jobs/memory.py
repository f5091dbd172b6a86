"""Out of memory, as a sentence that names the keys to lower."""

import re

import torch

from edgetrain.config import Config

SIGNS = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|out of memory|ALLOC_FAILED|Unable to allocate",
    re.IGNORECASE,
)
AMOUNT = re.compile(r"(?:tried to allocate|Unable to allocate) (\d+(?:\.\d+)?) ?([KMGTP]iB|bytes)", re.IGNORECASE)
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
SIZES = ("dim", "hidden_dim", "hidden_size", "intermediate_size", "width", "layers", "num_hidden_layers", "depth")


def out_of_memory(error: BaseException, config: Config) -> str | None:
    """What to lower after this error, with the present values; None when it is no failed allocation.

    Recognised: MemoryError, torch's OutOfMemoryError, and RuntimeErrors of its allocators and of cuBLAS and cuDNN.
    """
    text = str(error)
    gpu = isinstance(error, torch.OutOfMemoryError) or re.search(r"CUDA|CUBLAS|CUDNN|MPS", text) is not None
    failed = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if not failed and not (isinstance(error, RuntimeError) and SIGNS.search(text)):
        return None
    return f"{'the GPU' if gpu else 'this machine'} is out of memory{_wanted(text)}; {_advice(config)}"


def _wanted(text: str) -> str:
    """How much was asked for, where the error says it."""
    found = AMOUNT.search(text)
    if not found:
        return ""
    amount, unit = float(found[1]), found[2]
    if unit == "bytes":
        power = min((int(max(amount, 1)).bit_length() - 1) // 10, len(UNITS) - 1)
        amount, unit = amount / 2 ** (10 * power), UNITS[power]
    return f" (it asked for {amount:.4g} {unit})"


def _advice(config: Config) -> str:
    """Keys to lower, the one that changes least first."""
    data, model, trainer = config.data or {}, config.model or {}, config.trainer or {}
    batch, accumulated = data.get("batch_size"), trainer.get("accumulate_grad_batches") or 1
    ways = []
    if isinstance(batch, int) and batch > 1:
        halved = f"to {batch // 2}"
        if batch % 2 == 0 and isinstance(accumulated, int):
            halved += f"; with trainer.accumulate_grad_batches={2 * accumulated} every optimiser step stays what it was"
        ways.append(f"data.batch_size={batch} ({halved})")
    if data.get("context"):
        ways.append(f"data.context={data['context']}")
    ways += [f"model.{key}={model[key]}" for key in SIZES if isinstance(model.get(key), int)]
    if not ways:
        return "use a smaller model or smaller batches"
    return f"lower {', '.join(ways[:-1])}{' or ' if ways[:-1] else ''}{ways[-1]}"
