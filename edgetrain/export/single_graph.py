"""What exporters of one graph share: tensors in, one tensor of logits out, one input at a time as on a device."""

import copy
import importlib
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgetrain.errors import UserError, listing
from edgetrain.export.artefact import Artefact, Predict
from edgetrain.export.dynamic import FreeSize, check_sizes, free_size
from edgetrain.export.language import are_language, check_llama, is_language
from edgetrain.hardware.exported_graph import exported, silence
from edgetrain.methods.quantize import check_post_training
from edgetrain.models.quantized import QuantizedModel

FP32, INT8 = "fp32", "int8"
FORMS = (FP32, INT8)
FP32_TOLERANCE = 1e-4  # of a logit
INT8_STEPS = 2.001  # 2, and float32's rounding; XNNPACK and ONNX Runtime scale sums in float, each in its own order
OUTPUT = "logits"
MANY = 500  # operators, from which on a writer is slow: recurrent networks, written out step by step
console = Console(stderr=True, highlight=False)
Call = Callable[[tuple[Tensor, ...]], Tensor]  # inputs of one item -> its logits [1, ...]


@dataclass(frozen=True)
class Form:
    """A form to write. module: what is exported, and what the artefact is to equal; lsb: the step of its output."""

    name: str
    module: nn.Module
    tolerance: float = FP32_TOLERANCE
    lsb: float | None = None


class GraphExporter:
    """An exporter that writes `model_<form>.<suffix>`. Subclasses say how a graph is checked, written and opened.

    formats: which of fp32 and int8 to write; None writes both where the model is quantised to int8, else fp32.
    dynamic: leave height and width of images free, each within sides [least, most] in multiples of step (pixels); such
    a file is in fp32 alone. Raises UserError for settings that contradict each other.
    """

    opening_runs_code: ClassVar[bool] = False
    target: ClassVar[str]
    suffix: ClassVar[str]
    writers: ClassVar[tuple[str, ...]]  # packages that writing needs
    runtimes: ClassVar[tuple[str, ...]]  # packages that running needs

    def __init__(
        self,
        formats: list[str] | None = None,
        dynamic: bool = False,
        sides: Sequence[int] = (64, 512),
        step: int = 1,
    ) -> None:
        if formats is not None and (not formats or set(formats) - set(FORMS)):
            raise UserError(f"export.{self.target}.formats={formats} must list fp32, int8 or both, or be null")
        if dynamic and INT8 in (formats or ()):
            raise UserError(
                f"export.{self.target}.formats={formats}: int8 is written at one size; ask for formats=[fp32], or set "
                f"export.{self.target}.dynamic=false"
            )
        self.formats = [FP32] if dynamic else formats
        self.free = free_size(self.target, sides, step) if dynamic else None

    def lacking(self, program: ExportedProgram) -> dict[str, set[str]]:
        """Operators that the target has not, each with the modules that use it."""
        raise NotImplementedError

    def write(self, program: ExportedProgram, path: Path) -> dict[str, Any]:
        """Write the file, whole; returns facts."""
        raise NotImplementedError

    def open(self, path: Path) -> Call:
        """The file in its runtime, on one thread."""
        raise NotImplementedError

    def language(self) -> Any:
        """The module that writes and opens this target's language models."""
        return importlib.import_module(f"edgetrain.export.language_{self.target}")

    def check(self, model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
        """Raises UserError when a package is missing, or an operator; the model stays as it is."""
        require(self.target, *self.writers, *self.runtimes)
        if is_language(model):
            check_llama(model, self.target)
            refuse_int8_language(self.formats, self.target)
            return
        if INT8 in (self.formats or ()) and not isinstance(model, QuantizedModel):
            try:
                check_post_training(model, example_inputs)
            except UserError as error:
                raise UserError(
                    f"export.{self.target}.formats={self.formats}: {error}; or ask for formats=[fp32]"
                ) from error
        network = model.float_model if isinstance(model, QuantizedModel) else model
        program = program_of(network, example_inputs, self.target, self.free)
        with silence():
            lacking = self.lacking(program)
        if lacking:
            raise self.refusal(lacking)

    def check_scheme(self, scheme: str) -> None:
        """Raises UserError when int8 is asked for of a model that is to be quantised otherwise."""
        if scheme != INT8 and INT8 in (self.formats or ()):
            raise UserError(
                f"export.{self.target}.formats={self.formats}: the {scheme} scheme shifts by powers of two, which no "
                f"{self.target} runtime does; ask for formats=[fp32], or quantise with the scheme int8"
            )

    def check_sizes(self, example_inputs: tuple[Tensor, ...], called: set[tuple[int, ...]]) -> None:
        """Raises UserError when `called`, shapes without the batch, has one that the artefact will not take."""
        check_sizes(self.target, self.free, tuple(example_inputs[0].shape[1:]), called)

    def refusal(self, lacking: dict[str, set[str]]) -> UserError:
        operators = listing(f"{name} (in {listing(sorted(users), 3)})" for name, users in sorted(lacking.items()))
        return UserError(
            f"export.{self.target}: the target has no {operators}; replace it in the model, or leave this target out"
        )

    def export(
        self, model: nn.Module, example_inputs: tuple[Tensor, ...], calibration: Any, out: Path
    ) -> list[Artefact]:
        """model_fp32 and model_int8, each run back from its file. Raises UserError for what the target cannot hold."""
        require(self.target, *self.writers, *self.runtimes)
        if is_language(model):
            refuse_int8_language(self.formats, self.target)
            return self.language().export_llama(model, out)
        artefacts = []
        if isinstance(model, QuantizedModel):
            self.check_scheme(model.scheme.name)
        for form in forms_of(model, self.formats, self.target):
            file = f"model_{form.name}.{self.suffix}"
            begun = time.perf_counter()
            program = program_of(form.module, example_inputs, self.target, self.free)
            operators = sum(node.op == "call_function" for node in program.graph.nodes)
            if operators > MANY:
                console.print(f"write {operators:,} operators as {self.target} {form.name}; this takes a minute")
            facts = self.write(program, out / file)
            facts |= {"conversion_seconds": round(time.perf_counter() - begun, 2), "threads": 1, "batch": 1}
            facts |= {"sizes": str(self.free)} if self.free else {}
            facts |= {"runtime": {name: metadata.version(name) for name in self.runtimes}}
            call = item_by_item(said(self.open(out / file), file))
            files = tuple(sorted(path.name for path in out.glob(f"{file}*")))  # the largest have weights beside them
            artefacts.append(Artefact(form.name, files, call, form.module, form.tolerance, form.lsb, facts))
        return artefacts

    def load(self, folder: Path, name: str, files: tuple[str, ...]) -> Predict:
        """`predict` of an exported form. Raises UserError for a missing runtime and for a damaged file."""
        require(self.target, *self.runtimes)
        if are_language(files):
            return self.language().load_llama(folder, files).predict
        path = folder / files[0]
        if not path.is_file():
            raise UserError(f"{path} is missing; copy the whole folder again, or export again")
        return item_by_item(said(self.open(path), path.name))


def forms_of(model: nn.Module, formats: list[str] | None, target: str) -> list[Form]:
    """What to write of a model, fp32 first. Raises UserError for int8 of a model that has no such form."""
    if not isinstance(model, QuantizedModel):
        if formats is not None and INT8 in formats:
            raise UserError(
                f"export.{target}.formats={formats}: this {type(model).__name__} is not quantised and cannot be; "
                "ask for formats=[fp32]"
            )
        return [Form(FP32, model)]
    scheme = model.scheme
    forms = [Form(FP32, model.float_model)]
    if scheme.name == INT8:
        forms.append(Form(INT8, model.graph, INT8_STEPS * scheme.output_scale, scheme.output_scale))
    return [form for form in forms if formats is None or form.name in formats]


def refuse_int8_language(formats: list[str] | None, target: str) -> None:
    if formats is not None and INT8 in formats:
        raise UserError(
            f"export.{target}.formats={formats}: language models are written in fp32; ask for formats=[fp32]"
        )


def program_of(
    module: nn.Module, inputs: tuple[Tensor, ...], target: str, free: FreeSize | None = None
) -> ExportedProgram:
    """The module's graph at the shapes of `inputs`, or of images of a free size.

    Raises UserError for one that torch.export does not take.
    """
    if isinstance(module, fx.GraphModule):  # what quantisation made; it is past having modes
        # Only what the graph reads: the float weights are still beside the quantised ones.
        with torch.no_grad(), silence():  # also copying: it copies a LeafSpec, of which Python warns
            used = row_major(fx.GraphModule(module, copy.deepcopy(module.graph)))
            program = torch.export.export(used, inputs)
    else:
        shapes = free.shapes(inputs, target) if free else None
        program = exported(row_major(module), inputs, f"export.{target}: {type(module).__name__}", shapes)
    for node in program.graph.nodes:
        for key in ("stack_trace", "from_node"):  # this machine's folders and addresses, which would be shipped
            node.meta.pop(key, None)
    return program


def row_major(module: nn.Module) -> nn.Module:
    """The module, or a copy where weights lie channels last, as some train faster: ExecuTorch takes no such graph."""
    if all(tensor.is_contiguous() for tensor in (*module.parameters(), *module.buffers())):
        return module
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format)


def input_names(program: ExportedProgram) -> list[str]:
    """`input`, or `input_0`, `input_1` and so on where there are several."""
    count = len(program.graph_signature.user_inputs)
    return ["input"] if count == 1 else [f"input_{index}" for index in range(count)]


def item_by_item(call: Call) -> Predict:
    """A call for a whole batch: each item by itself, and the logits joined."""

    def predict(*inputs: Tensor) -> Tensor:
        items = zip(*(value.split(1) for value in inputs), strict=True)
        return torch.cat([call(item) for item in items])

    return predict


def said(call: Call, file: str) -> Call:
    """The same call. Raises UserError when the runtime refuses inputs of such a shape."""

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        try:
            return call(inputs)
        except Exception as error:  # of each runtime its own
            shapes = listing(str(list(value.shape)) for value in inputs)
            cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"{file} does not run inputs of {shapes}: {cause.rstrip('.')}") from error

    return run


def users_of(nodes: Iterable[fx.Node], lacks: Callable[[fx.Node], str | None]) -> dict[str, set[str]]:
    """The operators that `lacks` names, each with the modules it is called in."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in nodes:
        if node.op == "call_function" and (name := lacks(node)):
            path, kind = list(node.meta.get("nn_module_stack", {"": ("", "")}).values())[-1]
            found[name].add(f"module '{path}'" if path else f"{kind.rpartition('.')[2] or 'the model'} itself")
    return dict(found)


def require(target: str, *packages: str) -> None:
    """Raises UserError for packages that are not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"export.{target} needs {listing(missing)}, not installed here; "
            'pip install -c constraints.txt -e ".[deploy]"'
        )


def damaged(path: Path, error: Exception | str) -> UserError:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UserError(f"{path} cannot be loaded, it is damaged or of another version ({said.rstrip('.')}); export again")
