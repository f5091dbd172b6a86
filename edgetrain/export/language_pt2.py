"""A Llama as a torch.export program: the stateful form, its cache in buffers that it writes to."""

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from edgetrain.export.artefact import Artefact
from edgetrain.export.language import STEM, Session, as_llama
from edgetrain.export.language_stateful import traced
from edgetrain.export.latency import one_thread
from edgetrain.export.single_graph import damaged
from edgetrain.folder import write_atomic
from edgetrain.hardware.exported_graph import silence

CONTEXT, CHUNK = "context", "tokens_of_a_call"  # small files in the archive


def export_llama(model: nn.Module, out: Path) -> list[Artefact]:
    """Write llama_fp32.pt2. Raises UserError for a model that is not a Llama."""
    llama = as_llama(model, "pt2")
    program, chunk = traced(llama)
    files = (f"{STEM}_fp32.pt2",)
    buffer = io.BytesIO()
    with silence():
        torch.export.save(program, buffer, extra_files={CONTEXT: str(llama.context), CHUNK: str(chunk)})
    write_atomic(out / files[0], buffer.getvalue())
    facts = {"tokens_of_a_call": chunk, "runtime": {"torch": torch.__version__}}
    return [load_llama(out, files).artefact("fp32", files, llama, facts)]


def load_llama(folder: Path, files: tuple[str, ...]) -> Session:
    """What `export_llama` wrote, run by torch on one thread. Raises UserError for a damaged file.

    Opening a .pt2 file may run code that is in it.
    """
    path = folder / files[0]
    says = {CONTEXT: "", CHUNK: ""}
    try:
        with silence():
            module = torch.export.load(path, extra_files=says).module()
        context, chunk = (int(says[key]) for key in (CONTEXT, CHUNK))
    except Exception as error:  # of zip, json, schema or tensors, as the damage has it
        raise damaged(path, error) from error

    def step(tokens: Tensor, start: int) -> Tensor:
        with one_thread(), torch.inference_mode():
            return module(tokens, torch.tensor([start]))

    return Session(step, context, chunk)
