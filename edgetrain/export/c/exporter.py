"""A network as one folder of self-contained C99, for microcontrollers; the same bytes as `models.integer` computes."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.console import Console
from torch import Tensor, nn

from edgetrain.errors import UserError, listing, nearest
from edgetrain.export.artefact import Artefact, Emulation, Predict
from edgetrain.export.c.arena import CMSIS_NN, OWN, Arena, arenas
from edgetrain.export.c.board import check_board, constant_bytes
from edgetrain.export.c.cortex_m import CORES, STRICT, missing_tools, require_tools
from edgetrain.export.c.emulation import emulations
from edgetrain.export.c.frontend import FEATURES, frontend_facts, frontend_files, has_front_end
from edgetrain.export.c.host import OPTIMISATION, HostProgram, compiler_version, require_compiler
from edgetrain.export.c.layers import KINDS
from edgetrain.export.c.literals import check_name
from edgetrain.export.c.source import model_files, renamed
from edgetrain.export.language import is_language
from edgetrain.export.manifest import NAME as MANIFEST
from edgetrain.folder import write_atomic
from edgetrain.methods.lowering import check_lowering, lower
from edgetrain.methods.quantize import in_scheme
from edgetrain.models.integer import IntegerNetwork, IntegerProgram
from edgetrain.models.quantized import QuantizedModel, float_network
from edgetrain.ops.mfcc import MFCC

CSRC = Path(__file__).parent / "csrc"
COPIED = ("kernels.h", "fixed_point.h", "kernels.c", "kernels_plain.c", "kernels_cmsis_nn.c", "main.c", "Makefile")
EMULATED = ("cortex_m4", "cortex_m7", "cortex_m55")  # unless the recipe names others
FRONT_END_NOTE = "the model takes samples; its features are computed in PyTorch when judged, on a device by frontend.c"
ROUNDING = {"int8": "double, as TensorFlow Lite's default", "q7": "half up"}

console = Console(stderr=True, highlight=False)


class C:
    """model.c and model.h, kernels, a host main and a Makefile; for features of audio also the front end and a stream.

    name: of the C functions; scheme: int8 or q7, None for what the model was quantised to; flash_bytes, ram_bytes: of a
    board, None for no limit; emulate: cores that it is run on under QEMU, None for three where the tools are installed;
    emulated_items: held-out items that each core gets; cmsis_nn, cmsis_core: checkouts of Arm's CMSIS-NN and CMSIS_6,
    whose kernels are emulated too. Raises UserError for a name, board, core or path that cannot be.
    """

    opening_runs_code: ClassVar[bool] = True
    formats: ClassVar[list[str]] = ["int8"]

    def __init__(
        self,
        name: str = "model",
        scheme: Literal["int8", "q7"] | None = None,
        flash_bytes: int | None = None,
        ram_bytes: int | None = None,
        emulate: list[str] | None = None,
        emulated_items: int = 8,
        cmsis_nn: str | None = None,
        cmsis_core: str | None = None,
    ) -> None:
        check_name(name)
        for key, value in (("flash_bytes", flash_bytes), ("ram_bytes", ram_bytes), ("emulated_items", emulated_items)):
            if value is not None and value < 1:
                raise UserError(f"export.c.{key}={value} must be at least 1")
        for core in emulate or ():
            if core not in CORES:
                raise UserError(f"export.c.emulate: no core '{core}'{nearest(core, CORES)}; there are {listing(CORES)}")
        check_checkouts(cmsis_nn, cmsis_core)
        self.name, self.flash_bytes, self.ram_bytes = name, flash_bytes, ram_bytes
        self.emulate, self.emulated_items = emulate, emulated_items
        self.cmsis_nn = None if cmsis_nn is None else Path(cmsis_nn)
        self.cmsis_core = None if cmsis_core is None else Path(cmsis_core)
        self.wanted, self.scheme = scheme, scheme or "int8"

    def check_scheme(self, scheme: str) -> None:
        """The scheme to which training will quantise, int8 or q7, both of which there is C for; `check` goes by it."""
        self.scheme = self.wanted or scheme

    def check(self, model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
        """Raises UserError, before training, for a missing tool, an operator without a kernel, a board too small."""
        require_compiler()
        if self.emulate:
            require_tools()
        if is_language(model):
            raise UserError("export.c holds feed-forward networks and this is a language model; use export=[gguf]")
        program = check_lowering(model, example_inputs, self.scheme)
        check_board(program, self.used(arenas(program)), self.flash_bytes, self.ram_bytes)

    def export(
        self, model: nn.Module, example_inputs: tuple[Tensor, ...], calibration: Any, out: Path
    ) -> list[Artefact]:
        """The folder, compiled and run here. Raises UserError for a model that is not quantised or has no C form."""
        require_compiler()
        if not isinstance(model, QuantizedModel):
            raise UserError(
                f"export.c holds networks in whole numbers, and this {type(model).__name__} has no such form"
            )
        model = in_scheme(model, self.wanted or model.scheme.name, example_inputs, calibration)
        network = lower(model, example_inputs)
        plans = arenas(network.program)
        check_board(network.program, self.used(plans), self.flash_bytes, self.ram_bytes)
        labels = [str(label) for label in getattr(calibration, "labels", [])]
        files = {name: renamed((CSRC / name).read_text(), self.name) for name in COPIED}
        files |= model_files(network.program, self.name, labels)
        facts = {"scheme": model.scheme.name, "calibration": dict(model.scheme.calibration)}
        facts |= facts_of(network.program, plans)
        preprocessing = calibration.preprocessing() if hasattr(calibration, "preprocessing") else {}
        if own := front_end_of(model, preprocessing):
            facts |= {"model_front_end": own, "model_front_end_note": FRONT_END_NOTE}
            preprocessing = {**preprocessing, "features": FEATURES, **own}
        if has_front_end(preprocessing):
            files |= frontend_files(preprocessing, self.name)
            facts["front_end"] = frontend_facts(preprocessing)
        for name, text in files.items():
            write_atomic(out / name, text)
        program = HostProgram(out, network.front_end)
        return [
            Artefact(
                model.scheme.name,
                tuple(sorted(files)),
                program,
                network,
                tolerance=0.0,
                lsb=network.program.values[network.program.output].scale,
                facts=facts,
                timed=False,
                emulations=self.emulations(out, network),
            )
        ]

    def load(self, folder: Path, name: str, files: tuple[str, ...]) -> Predict:
        """The folder compiled again and run here. Raises UserError for a missing compiler and for damaged sources."""
        form = json.loads((folder / MANIFEST).read_text())["forms"][name]
        settings = form.get("model_front_end")
        return HostProgram(folder, None if settings is None else MFCC(**settings))

    def used(self, plans: dict[str, Arena]) -> dict[str, Arena]:
        """The plans that count against a board: CMSIS-NN's only where it is used."""
        return {name: plan for name, plan in plans.items() if name != CMSIS_NN or self.cmsis_nn is not None}

    def emulations(self, out: Path, network: IntegerNetwork) -> list[Emulation]:
        cores = self.emulate
        if cores is None:
            if missing := missing_tools():
                console.print(f"  not run on emulated cores: apt-get install {' '.join(missing)}, or say emulate=[]")
                return []
            cores = list(EMULATED)
        if not cores:
            return []
        return emulations(out, network, cores, self.emulated_items, self.cmsis_nn, self.cmsis_core)


def check_checkouts(cmsis_nn: str | None, cmsis_core: str | None) -> None:
    """Raises UserError for paths that are not the checkouts that they are to be, and for one without the other."""
    given = {"cmsis_nn": cmsis_nn, "cmsis_core": cmsis_core}
    marks = {"cmsis_nn": "Include/arm_nnfunctions.h", "cmsis_core": "CMSIS/Core/Include/cmsis_compiler.h"}
    repositories = {"cmsis_nn": "ARM-software/CMSIS-NN", "cmsis_core": "ARM-software/CMSIS_6"}
    for key, path in given.items():
        if path is None and any(given.values()):
            raise UserError(f"export.c: CMSIS-NN needs both checkouts; give {key} too, one of {repositories[key]}")
        if path is not None and not (Path(path) / marks[key]).is_file():
            raise UserError(
                f"export.c.{key}={path} has no {marks[key]}; give the path of a checkout of {repositories[key]}"
            )


def front_end_of(model: nn.Module, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the MFCC that a network begins with; empty for one without. settings: the data's preprocessing."""
    mfcc = getattr(float_network(model), "front_end", None)
    if not isinstance(mfcc, MFCC):
        return {}
    rate = settings["sample_rate"]
    frame = {"window_ms": 1000 * mfcc.window / rate, "stride_ms": 1000 * mfcc.stride / rate}
    return {"sample_rate": rate, **frame, **mfcc.bank_settings, "coefficients": mfcc.dct.shape[1]}


def facts_of(program: IntegerProgram, plans: Mapping[str, Arena]) -> dict[str, Any]:
    """For the manifest. size_bytes: what goes to flash beside code; the files are text."""
    values = program.values
    return {
        "size_bytes": sum(map(constant_bytes, program.operations)),
        "weight_bytes": sum(each.weight.numel() for each in program.operations if hasattr(each, "weight")),
        "arena": plans[OWN].facts(),
        "arena_cmsis_nn": plans[CMSIS_NN].facts(),
        "rounding": ROUNDING[program.scheme],
        "operators": dict(Counter(KINDS[type(each)] for each in program.operations).most_common()),
        "operations": [
            {
                "name": each.name,
                "operator": KINDS[type(each)],
                "output": list(values[each.output].shape),
                "scale": values[each.output].scale,
                "zero_point": values[each.output].zero_point,
                "low": each.low,
                "high": each.high,
                "constant_bytes": constant_bytes(each),
            }
            for each in program.operations
        ],
        "input": {"scale": values[program.input].scale, "zero_point": values[program.input].zero_point},
        "compiler": compiler_version(),
        "flags": " ".join((*STRICT, *OPTIMISATION)),
        "kernels_plain_sha256": hashlib.sha256((CSRC / "kernels_plain.c").read_bytes()).hexdigest(),
        "batch": 1,
    }
