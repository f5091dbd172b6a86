"""Memory that a training takes beyond what every training of that model in float32 must hold.

One contender, alone in a fresh process (`peak`): the largest memory so far at the end of its second optimiser step,
minus that of the process when everything was imported and nothing built, minus 16 bytes a parameter: the weight, its
gradient and AdamW's two moments, 4 bytes each. What remains is activations, logits, copies in bfloat16 and workspace.
"""

import re
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgetrain.bench.fresh_process import in_fresh_process
from edgetrain.bench.litgpt import load_litgpt
from edgetrain.bench.paused import Finished
from edgetrain.bench.trainers import trainings
from edgetrain.build import build
from edgetrain.config import Config, make
from edgetrain.environment import resident
from edgetrain.errors import UserError
from edgetrain.folder import Row
from edgetrain.jobs.memory import out_of_memory

STEPS = 2  # of the optimiser: the first has no moments yet while its activations are there
BYTES = 16  # a parameter: weight, gradient, two moments
ABOVE = "above weights, gradients and moments, MiB"


def batch_of(memory_tokens: str | None, config: Config) -> tuple[int, int]:
    """Sequences and tokens of each, from "8x2048"; the config's own when None. Raises UserError for another form."""
    if memory_tokens is None:
        return config.data["batch_size"], config.data["context"]
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", memory_tokens)
    if not found:
        raise UserError(f"memory_tokens={memory_tokens}: give sequences and the tokens of each, as in 8x2048")
    return int(found[1]), int(found[2])


def memory_row(config: Config, name: str, weights: Path, litgpt: str | None, batch: tuple[int, int]) -> Row:
    """One contender's row: peak, idle and what is above, in MiB, or why not."""
    sequences, context = batch
    config = replace(
        config,
        data=config.data | {"batch_size": sequences, "context": context},
        model=config.model | {"context": context},
        trainer=config.trainer | {"max_steps": STEPS},
        init_from=str(weights),
    )
    arguments = {"config": config.to_dict(), "name": name, "weights": str(weights), "litgpt": litgpt}
    found = in_fresh_process("edgetrain.bench.training_memory.peak", **arguments)
    row: Row = {"contender": name, "batch": f"{sequences}x{context}"}
    if "failed" in found:
        return row | {ABOVE: found["failed"]}
    held = BYTES * found["parameters"]
    sizes = {"peak, MiB": found["peak"], "idle, MiB": found["idle"], "held, MiB": held}
    sizes[ABOVE] = found["peak"] - found["idle"] - held
    return row | {key: size / 2**20 for key, size in sizes.items()} | {"seconds": found["seconds"]}


def peak(config: dict[str, Any], name: str, weights: str, litgpt: str | None) -> dict[str, Any]:
    """Train for STEPS steps; bytes before the model was built and at most, or what failed. For a fresh process."""
    import transformers.trainer  # noqa: F401 - so that every contender's idle process has imported the same

    if litgpt is not None:
        load_litgpt(litgpt)
    gpu = torch.cuda.is_available()
    idle = 0 if gpu else resident()
    if idle is None:
        return {"failed": f"not run: {sys.platform} does not tell a process's memory"}
    checked = make(config)
    done, started = 0, time.monotonic()

    def step() -> None:
        nonlocal done
        done += 1
        if done == STEPS:
            raise Finished

    losses: dict[str, list[Tensor]] = {}
    with tempfile.TemporaryDirectory() as place:
        train = trainings(checked, Path(weights), Path(place), losses, litgpt)[name]
        try:
            train(step)
        except Finished:
            pass
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error, checked) is None:
                raise
            return {"failed": "out of memory"}
    largest = torch.cuda.max_memory_allocated() if gpu else resident("VmHWM")
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build(checked.model).parameters())
    return {"idle": idle, "peak": largest, "parameters": parameters, "seconds": time.monotonic() - started}
