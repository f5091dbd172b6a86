"""A Llama as an ExecuTorch program: one method, `forward(tokens, start)`, its cache in mutable buffers, XNNPACK.

Constant methods say what ExecuTorch's runner for language models asks a program: `get_max_context_len`,
`get_max_seq_len` (tokens of one call), `get_vocab_size`, `use_kv_cache`, `enable_dynamic_shape`.
"""

from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgetrain.export.artefact import Artefact
from edgetrain.export.executorch import MEMORY_NOTE, last_words, native_log, operators_of, runtime
from edgetrain.export.language import STEM, Session, as_llama
from edgetrain.export.language_stateful import traced
from edgetrain.export.single_graph import damaged
from edgetrain.folder import write_atomic
from edgetrain.hardware.exported_graph import silence
from edgetrain.models.llama import Llama

LIMITS = ("get_max_context_len", "get_max_seq_len")


def export_llama(model: nn.Module, out: Path) -> list[Artefact]:
    """Write llama_fp32.pte. Raises UserError for a model that is not a Llama."""
    llama = as_llama(model, "executorch")
    program, chunk = traced(llama)
    lowered, operators = lower(program, llama, chunk)
    files = (f"{STEM}_fp32.pte",)
    write_atomic(out / files[0], lowered.buffer)
    plan = lowered.executorch_program.execution_plan[0]
    facts = {
        "tokens_of_a_call": chunk,
        "delegates": dict(Counter(delegate.id for delegate in plan.delegates)),
        "operators": operators,
        "planned_memory_bytes": sum(plan.non_const_buffer_sizes),
        "planned_memory_note": f"the cache, and {MEMORY_NOTE}",
        "runtime": {"executorch": metadata.version("executorch")},
    }
    return [load_llama(out, files).artefact("fp32", files, llama, facts)]


def lower(program: ExportedProgram, llama: Llama, chunk: int) -> tuple[Any, dict[str, dict[str, int]]]:
    """The program to write, and how many nodes each backend runs of each operator."""
    says = {
        "get_max_context_len": llama.context,
        "get_max_seq_len": chunk,
        "get_vocab_size": llama.vocab_size,
        "use_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    with silence():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

        edge = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            constant_methods=says,
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        operators = operators_of(edge.exported_program().graph_module)
        # Writes into the cache where it is; else every step would copy all of it, twice.
        return edge.to_executorch(ExecutorchBackendConfig(run_reinplace_pass=True)), operators


def load_llama(folder: Path, files: tuple[str, ...]) -> Session:
    """What `export_llama` wrote, in ExecuTorch's runtime. Raises UserError for a damaged file."""
    path = folder / files[0]
    with native_log() as log:
        try:
            program = runtime().load_program(path)
            context, chunk = (program.load_method(name).execute([])[0] for name in LIMITS)
            method = program.load_method("forward")
        except RuntimeError as error:
            raise damaged(path, last_words(log) or error) from error

    def step(tokens: Tensor, start: int) -> Tensor:
        return method.execute([tokens.contiguous(), torch.tensor([start])])[0].clone()  # the next call reuses it

    return Session(step, context, chunk)
