"""torch.export's own archive, the neutral graph that other tools start from; run by torch."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgetrain.export.latency import one_thread
from edgetrain.export.single_graph import OUTPUT, Call, GraphExporter, damaged, input_names
from edgetrain.folder import write_atomic
from edgetrain.hardware.exported_graph import silence


class Pt2(GraphExporter):
    """model_fp32.pt2 and model_int8.pt2, for one input at a time. int8 keeps its quantize and dequantize operators.

    formats: fp32, int8 or both; None writes what there is. torch computes on one thread. Opening a .pt2 file may run
    code that is in it, so open only files from somebody you trust.
    """

    opening_runs_code = True
    target, suffix = "pt2", "pt2"
    writers, runtimes = (), ("torch",)

    def lacking(self, program: ExportedProgram) -> dict[str, set[str]]:
        return {}

    def write(self, program: ExportedProgram, path: Path) -> dict[str, Any]:
        buffer = io.BytesIO()
        with silence():
            torch.export.save(program, buffer)
        write_atomic(path, buffer.getvalue())
        called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        return {
            "inputs": input_names(program),
            "outputs": [OUTPUT],
            "operators": dict(Counter(name.removesuffix(".default") for name in called).most_common()),
        }

    def open(self, path: Path) -> Call:
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers quantize and dequantize

        try:
            with silence():
                module = torch.export.load(path).module()
        except Exception as error:  # of zip, json, schema or tensors, as the damage has it
            raise damaged(path, error) from error

        def call(inputs: tuple[Tensor, ...]) -> Tensor:
            with one_thread(), torch.inference_mode():
                output = module(*inputs)
            return output if isinstance(output, Tensor) else output[0]

        return call
