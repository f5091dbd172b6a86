"""What an exporter is, and what it hands back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

Predict = Callable[..., Tensor]
Generate = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Emulation:
    """The artefact on another processor, under an emulator; it has to give the very numbers that `predict` gives here.

    processor: such as cortex_m4; kernels: whose code computes the layers; items: of the held-out data it runs on, in
    their order, since emulation is slow. run: called like the model on those items; gives the logits, and a row for
    each layer of the last item: layer, kind, macs, instructions. facts: flags, compiler, emulator, memory.
    """

    processor: str
    kernels: str
    items: int
    run: Callable[..., tuple[Tensor, list[dict[str, Any]]]]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artefact:
    """One exported form of a model, run as it will be shipped.

    name: of the form, such as fp32 or int8; files: its files, relative to the exported folder; predict: the artefact in
    its own runtime, called like the model, with any batch size; reference: what it is to equal, for int8 the quantised
    model in PyTorch; tolerance: largest absolute difference of an output from the reference's; lsb: the step of a
    quantised output, in which differences are reported; facts: plain values for manifest.json (quantisation of each
    layer, operators, runtime and its version, memory); generate: (prompt [n], new tokens) -> tokens [n + new], greedy,
    through the artefact's own cache, where the model is a language model; timed: whether `predict` is the runtime that
    it will be shipped with, so that its latency says something; emulations: where else it is run.
    """

    name: str
    files: tuple[str, ...]
    predict: Predict
    reference: Callable[..., Any]
    tolerance: float
    lsb: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    generate: Generate | None = None
    timed: bool = True
    emulations: Sequence[Emulation] = ()


class Exporter(Protocol):
    """A target. Constructed from its option in conf/export; `load` runs what it wrote, on any machine with the runtime.

    formats: which forms to write, of fp32 and int8; None writes both where the model can be quantised, else fp32.
    opening_runs_code: whether a file of this target may hold code that runs when it is opened, so that one from
    elsewhere has to be trusted.
    """

    formats: list[str] | None
    opening_runs_code: bool

    def check(self, model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
        """Raises UserError, before any training, when the runtime is not there or lacks an operator of the model."""

    def export(
        self, model: nn.Module, example_inputs: tuple[Tensor, ...], calibration: Any, out: Path
    ) -> list[Artefact]:
        """Write into `out`, an empty folder that is thrown away when anything is raised.

        model: in eval mode; a QuantizedModel is written in both forms, any other in fp32. calibration: the run's data,
        for tokenizers and the like. Raises UserError for a model that the target cannot hold.
        """

    def load(self, folder: Path, name: str, files: tuple[str, ...]) -> Predict:
        """`predict` of the form `name` of an exported folder. Raises UserError when the runtime is not installed."""
