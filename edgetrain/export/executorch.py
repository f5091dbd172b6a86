"""ExecuTorch programs, computed by XNNPACK where it has the operator and by portable kernels elsewhere."""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from edgetrain.errors import UserError
from edgetrain.export.single_graph import OUTPUT, Call, GraphExporter, damaged, input_names, users_of
from edgetrain.folder import write_atomic
from edgetrain.hardware.exported_graph import every_size, silence

MEMORY_NOTE = "inputs, outputs and what portable kernels need; XNNPACK allocates its own, so this is not the RAM needed"


class ExecuTorch(GraphExporter):
    """model_fp32.pte and model_int8.pte, for one input at a time.

    formats: fp32, int8 or both; None writes what there is. The runtime computes on one thread, for the whole process:
    it has one pool of threads.
    """

    target, suffix = "executorch", "pte"
    writers, runtimes = (), ("executorch",)

    def lacking(self, program: ExportedProgram) -> dict[str, set[str]]:
        """Operators that XNNPACK does not take and of which the runtime has no kernel."""
        with every_size(bool(program.range_constraints)):
            lacking = without_kernel(program.run_decompositions().graph)
        if not lacking:
            return {}  # soon known; lowering takes longer
        try:
            return without_kernel(lowered(program).exported_program().graph)
        except UserError:  # its passes stumble over operators that they do not know
            return lacking

    def write(self, program: ExportedProgram, path: Path) -> dict[str, Any]:
        edge = lowered(program)
        if lacking := without_kernel(edge.exported_program().graph):
            raise self.refusal(lacking)
        with silence(), every_size(bool(program.range_constraints)):
            finished = edge.to_executorch()
        write_atomic(path, finished.buffer)
        plan = finished.executorch_program.execution_plan[0]
        return {
            "inputs": input_names(program),
            "outputs": [OUTPUT],
            "delegates": dict(Counter(delegate.id for delegate in plan.delegates)),
            "operators": operators_of(edge.exported_program().graph_module),
            "planned_memory_bytes": sum(plan.non_const_buffer_sizes),
            "planned_memory_note": MEMORY_NOTE,
        }

    def open(self, path: Path) -> Call:
        with native_log() as log:
            try:
                method = runtime().load_program(path).load_method("forward")
            except RuntimeError as error:
                raise damaged(path, last_words(log) or error) from error

        def call(inputs: tuple[Tensor, ...]) -> Tensor:
            return method.execute([value.contiguous() for value in inputs])[0]

        return call


def runtime() -> Any:
    """The process's ExecuTorch runtime, on one thread."""
    with silence(), native_log():
        import executorch.kernels.quantized  # noqa: F401  quantize and dequantize, where XNNPACK leaves them
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        if portable_lib._threadpool_get_thread_count() != 1:
            portable_lib._unsafe_reset_threadpool(1)  # the only setting there is; safe while no method runs
        return Runtime.get()


def lowered(program: ExportedProgram) -> Any:
    """The edge program, with what XNNPACK takes handed to it. Raises UserError for what cannot be lowered."""
    with silence(), every_size(bool(program.range_constraints)):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        # Whether an operator is in a list of core ones says nothing; `without_kernel` asks what the runtime has.
        config = EdgeCompileConfig(_check_ir_validity=False)
        try:
            return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], compile_config=config)
        except Exception as error:  # of any of its passes
            cause = " ".join(str(error.__cause__ or error).split())
            raise UserError(f"export.executorch cannot lower the graph: {cause}") from error


def without_kernel(graph: fx.Graph) -> dict[str, set[str]]:
    """Operators that stand in the graph itself, not in a part of XNNPACK's, and that the runtime cannot compute."""
    from executorch.exir.dialects.edge.op.api import to_variant
    from torchgen.model import SchemaKind

    kernels = runtime().operator_registry.operator_names
    families = {name.partition(".")[0] for name in kernels}

    def lacks(node: fx.Node) -> str | None:
        operator = operator_of(node)
        if operator is None:
            return None
        if operator.is_view:  # becomes a copy, or nothing
            known = f"{operator._schema.name}_copy" in families
        elif operator.name() in kernels:  # of a free size; its result is a number
            known = True
        else:
            try:
                known = to_variant(operator, SchemaKind.out).name() in kernels
            except RuntimeError:  # it has no form that writes into memory planned ahead
                known = False
        return None if known else str(operator).removesuffix(".default")

    return users_of(graph.nodes, lacks)


def operators_of(graph: fx.GraphModule) -> dict[str, dict[str, int]]:
    """How many nodes each backend runs of each operator: `xnnpack` and `portable`."""
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    inside = [module.original_module.graph for _, module, _ in get_lowered_submodules(graph)]
    return {"xnnpack": histogram(inside), "portable": histogram([graph.graph])}


def histogram(graphs: list[fx.Graph]) -> dict[str, int]:
    operators = [operator for graph in graphs for node in graph.nodes if (operator := operator_of(node))]
    return dict(Counter(operator._schema.name.replace("::", ".") for operator in operators).most_common())


def operator_of(node: fx.Node) -> OpOverload | None:
    """None for an item of a tuple, a size, memory, a part of XNNPACK's."""
    operator = node.target if isinstance(node.target, OpOverload) else getattr(node.target, "_op", None)  # edge's
    return operator if isinstance(operator, OpOverload) else None


@contextmanager
def native_log() -> Iterator[TextIO]:
    """What the runtime writes on standard error, by its own hand or through Python's, goes into a file instead."""
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            with redirect_stderr(log):
                yield log
        finally:
            log.flush()
            os.dup2(kept, 2)
            os.close(kept)


def last_words(log: TextIO) -> str:
    """The last line of the runtime's log, without its place in the source."""
    log.seek(0)
    lines = log.read().strip().splitlines()
    return lines[-1].partition("] ")[2] if lines else ""
