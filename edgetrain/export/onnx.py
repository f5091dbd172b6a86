"""ONNX files, run by ONNX Runtime; int8 as a graph with QuantizeLinear and DequantizeLinear around its operators."""

import platform
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgetrain.errors import UserError
from edgetrain.export.single_graph import OUTPUT, Call, GraphExporter, damaged, input_names, users_of
from edgetrain.folder import write_atomic
from edgetrain.hardware.exported_graph import silence

# Computes quantised values in float32 between the operators that quantise, as the file says it.
IN_FLOAT = ("session.disable_quant_qdq", "1")
LARGEST = 2**31 - 2**24  # bytes of weights in one file; Protocol Buffers end at 2 GiB


def sums_saturate() -> bool:
    """Whether the runtime's int8 kernels add pairs of products in 16 bits here: on x86 without VNNI."""
    return platform.machine().lower() in ("x86_64", "amd64") and not torch.cpu._is_vnni_supported()


class Onnx(GraphExporter):
    """model_fp32.onnx and model_int8.onnx, for one input at a time, of the opset that torch.onnx writes by default.

    Weights stay in the file up to 2 GiB, and go into <file>.data beyond. formats: fp32, int8 or both; None writes what
    there is. ONNX Runtime computes on one thread.
    """

    target, suffix = "onnx", "onnx"
    writers, runtimes = ("onnx", "onnxscript"), ("onnxruntime",)

    def lacking(self, program: ExportedProgram) -> dict[str, set[str]]:
        """As torch.onnx decomposes the graph and finds a translation for each operator."""
        from torch.onnx._internal.exporter._decomp import (
            create_onnx_friendly_decomposition_table,
            get_onnx_implemented_overloads,
        )
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        registry = ONNXRegistry.from_torchlib()
        table = create_onnx_friendly_decomposition_table(set(get_onnx_implemented_overloads(registry)))

        def lacks(node: fx.Node) -> str | None:
            known = registry.is_registered(node.target) or "_assert" in str(node.target)  # which torch.onnx drops
            return None if known else str(node.target).removesuffix(".default")

        return users_of(program.run_decompositions(table).graph.nodes, lacks)

    def write(self, program: ExportedProgram, path: Path) -> dict[str, Any]:
        try:
            with silence():
                written = torch.onnx.export(
                    program, dynamo=True, verbose=False, input_names=input_names(program), output_names=[OUTPUT]
                )
        except torch.onnx.errors.OnnxExporterError as error:
            raise UserError(f"export.onnx: torch.onnx cannot translate the graph: {last_line(error)}") from error
        without_notes(written.model)
        weights = sum(value.nbytes for value in program.state_dict.values())
        if weights < LARGEST:
            write_atomic(path, written.model_proto.SerializeToString())
        else:
            written.save(path, external_data=True)
        model = written.model
        return {
            "opset": model.opset_imports[""],
            "ir_version": model.ir_version,
            "producer": f"{model.producer_name} {model.producer_version}",
            "inputs": input_names(program),
            "outputs": [OUTPUT],
            "operators": dict(Counter(node.op_type for node in model.graph).most_common()),
        }

    def open(self, path: Path) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        if sums_saturate():
            options.add_session_config_entry(*IN_FLOAT)
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise damaged(path, error) from error
        names = [value.name for value in session.get_inputs()]

        def call(inputs: tuple[Tensor, ...]) -> Tensor:
            given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
            return torch.from_numpy(session.run([OUTPUT], given)[0])

        return call


def without_notes(model: Any) -> None:
    """Drop what torch.onnx wrote down of the PyTorch graph, which can be larger than a small network's weights."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def last_line(error: BaseException) -> str:
    """The first cause's words, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()).rstrip(".")
