"""Exported networks in C on emulated Cortex-M boards: what they answer, and the instructions that each layer takes.

Instructions are no cycles: QEMU has no caches, no wait states of flash, no second issue port, no beats of Helium. They
are the same at every run. Some 25 of each layer are its call, which is counted with it.
"""

import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetrain.errors import UserError
from edgetrain.export.c.cortex_m import (
    CORES,
    EMULATOR,
    build,
    compiler_version,
    core_named,
    emulator_version,
    flags_of,
    function_at,
    require_tools,
    sections,
)

if TYPE_CHECKING:
    from torch import Tensor

    from edgetrain.export.artefact import Emulation
    from edgetrain.models.integer import IntegerNetwork

SHIFT = 6  # of -icount: an instruction takes 2^6 ns, so that a tick is less than one
RECORD = struct.Struct("<iIQII")  # csrc/cortex_m/start.c: layer, bytes, ticks, stack, 0
INPUT = -1  # the layer that stands for the input
FAULT = 70  # exit code after a fault of the processor
PATIENCE = 600.0  # seconds


@dataclass(frozen=True)
class Layer:
    """name, kind, macs: as model.c has them."""

    name: str
    kind: str
    macs: int


@dataclass(frozen=True)
class Step:
    """A layer that ran. stack: bytes below the stack pointer of the network's `run`, measured up to 16 KiB; output:
    int8, as in memory."""

    instructions: int
    stack: int
    output: bytes


@dataclass(frozen=True)
class Emulated:
    """What a program printed, its layers, and each of its runs: the input, then a step a layer."""

    text: str
    layers: tuple[Layer, ...]
    runs: tuple[tuple[Step, ...], ...]

    @property
    def instructions(self) -> list[int]:
        """By layer, of the last run."""
        return [step.instructions for step in self.runs[-1][1:]]

    @property
    def stack(self) -> int:
        """The most that a layer used, bytes."""
        return max(step.stack for steps in self.runs for step in steps[1:])


def run(elf: Path, core: str, inputs: bytes, arguments: Sequence[str] = (), patience: float = PATIENCE) -> Emulated:
    """A built program with inputs one after another in a file, as its main reads them, in one start of the emulator.

    patience: seconds. Raises UserError when it does not end, when the processor faults and when its main gives up.
    """
    require_tools()
    board = core_named(core)
    with tempfile.TemporaryDirectory(prefix="edgetrain_") as scratch:
        place = Path(scratch)
        (place / "inputs").write_bytes(inputs)
        words = [f"arg={word}" for word in ("main", *arguments, "inputs")]
        command = [EMULATOR, "-M", board.machine, "-nographic", "-monitor", "none", "-serial", "none"]
        command += ["-icount", f"shift={SHIFT}", "-kernel", str(elf.resolve())]
        command += ["-semihosting-config", ",".join(["enable=on", "target=native", *words])]
        try:
            done = subprocess.run(command, cwd=place, capture_output=True, stdin=subprocess.DEVNULL, timeout=patience)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"{elf.stem} did not end within {patience:g} s of emulation; give it fewer inputs, or look for an "
                "endless loop"
            ) from error
        if done.returncode:
            raise UserError(f"{elf.stem} stopped under emulation: {reason(elf, done)}")
        layers = [line.split("\t") for line in (place / "layers").read_text(encoding="utf-8").splitlines()]
        runs = tuple(runs_of((place / "trace").read_bytes(), board.tick_ns))
        return Emulated(
            done.stdout.decode(errors="replace"),
            tuple(Layer(name, kind, int(macs)) for name, kind, macs in layers),
            runs,
        )


def reason(elf: Path, done: "subprocess.CompletedProcess[bytes]") -> str:
    """Why a program ended with an error, from what was said last."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else f"exit code {done.returncode}"
    if done.returncode != FAULT:
        return last
    address = last.partition("address ")[2].partition(",")[0]
    return f"{last}, in {function_at(elf, address)}"


def runs_of(trace: bytes, tick_ns: float) -> Iterator[tuple[Step, ...]]:
    """The records of start.c, cut at every input."""
    steps: list[Step] = []
    at = 0
    while at < len(trace):
        layer, size, ticks, stack, _ = RECORD.unpack_from(trace, at)
        at += RECORD.size + size
        if layer == INPUT and steps:
            yield tuple(steps)
            steps = []
        steps.append(Step(round(ticks * tick_ns / 2**SHIFT), stack, trace[at - size : at]))
    if steps:
        yield tuple(steps)


def emulations(
    folder: Path,
    network: "IntegerNetwork",
    cores: Sequence[str],
    items: int,
    cmsis_nn: Path | None = None,
    cmsis_core: Path | None = None,
) -> list["Emulation"]:
    """An exported folder on each core: our kernels and CMSIS-NN's on `items` inputs, plain loops on one.

    CMSIS-NN's need both checkouts; it has none for q7. Raises UserError as `build` does.
    """
    from edgetrain.export.artefact import Emulation

    found = []
    for core in cores:
        for kernels in ("portable", "cmsis_nn", "plain"):
            if kernels == "cmsis_nn" and (cmsis_nn is None or network.program.scheme == "q7"):
                continue
            program = Program(folder, network, core, kernels, cmsis_nn, cmsis_core)
            found.append(Emulation(core, kernels, items if kernels != "plain" else 1, program, program.facts))
    return found


class Program:
    """A network built for a core, which is removed with this object; `Emulation.run`.

    facts: for the manifest; the bytes of the program are with main, start-up code and C library, those of the stack are
    measured when it runs.
    """

    def __init__(
        self,
        folder: Path,
        network: "IntegerNetwork",
        core: str,
        kernels: str,
        cmsis_nn: Path | None = None,
        cmsis_core: Path | None = None,
    ) -> None:
        self.network, self.core = network, core
        self._built = tempfile.TemporaryDirectory(prefix="edgetrain_")
        self.elf = build(folder, core, kernels, Path(self._built.name), cmsis_nn, cmsis_core)
        self.facts: dict[str, Any] = {
            "flags": " ".join(flags_of(CORES[core])),
            "compiler": compiler_version(),
            "emulator": f"{emulator_version()}, -M {CORES[core].machine}",
            **{f"program_{name}_bytes": size for name, size in sections(self.elf).items()},
            "stack_bytes": 0,
        }

    def __call__(self, *inputs: "Tensor") -> tuple["Tensor", list[dict[str, Any]]]:
        """Dequantised logits of float inputs, and a row for each layer of the last one.

        Raises UserError as `run` does, and when a layer gives another byte than in PyTorch.
        """
        x = self.network.quantize(*inputs)
        done = run(self.elf, self.core, x.numpy().tobytes(), ["--int8", "--raw"])
        check_layers(self.elf.stem, done, self.network, x)
        self.facts["stack_bytes"] = max(done.stack, self.facts["stack_bytes"])
        rows = [
            {"layer": layer.name, "kind": layer.kind, "macs": layer.macs, "instructions": count}
            for layer, count in zip(done.layers, done.instructions, strict=True)
        ]
        return dequantized(done, self.network), rows


def check_layers(what: str, done: Emulated, network: "IntegerNetwork", x: "Tensor") -> None:
    """Raises UserError naming the first layer that gave another byte than PyTorch, or when not every input was run."""
    if len(done.runs) != len(x):
        raise UserError(f"{what} ran {len(done.runs)} of {len(x)} inputs under emulation")
    values = network.run(x)
    for item, steps in enumerate(done.runs):
        for operation, step in zip(network.program.operations, steps[1:], strict=True):
            expected = values[operation.output][item].contiguous().numpy().tobytes()
            if step.output != expected:
                wrong = sum(a != b for a, b in zip(step.output, expected, strict=True))
                raise UserError(
                    f"{what} gives other bytes than PyTorch under emulation, {wrong:,} of {len(expected):,} in layer "
                    f"'{operation.name}' for input {item}; nothing was exported"
                )


def dequantized(done: Emulated, network: "IntegerNetwork") -> "Tensor":
    """Logits float32 [inputs, n], from the bytes of the last layer."""
    import torch

    logits = torch.frombuffer(bytearray(b"".join(steps[-1].output for steps in done.runs)), dtype=torch.int8)
    return network.dequantize(logits.view(len(done.runs), -1))
