"""scripts/qemu_run: an exported network on an emulated Cortex-M, with the instructions that each layer takes."""

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from edgetrain.errors import UserError
from edgetrain.export.c.cortex_m import CORES, KERNELS, build, compiler_version, flags_of, prefix_of, sections
from edgetrain.export.c.emulation import Emulated, run
from edgetrain.folder import Row
from edgetrain.report.terminal import print_table

NO_CYCLES = (
    "Instructions, not cycles and not energy: the emulator has no caches, no wait states of flash and issues one "
    "instruction at a time."
)


class Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {' '.join(self.format_usage().split())}")


def parser() -> argparse.ArgumentParser:
    command = Arguments("scripts/qemu_run", description=__doc__)
    command.add_argument("folder", type=Path, help="export/c of a run, or a copy of it")
    command.add_argument("core", help=", ".join(CORES))
    command.add_argument("inputs", type=Path, nargs="?", help="float32 inputs one after another; zeros if not given")
    command.add_argument("--kernels", default="portable", help=", ".join(KERNELS))
    command.add_argument("--cmsis-nn", type=Path, help="checkout of ARM-software/CMSIS-NN, for its kernels")
    command.add_argument("--cmsis-core", type=Path, help="checkout of ARM-software/CMSIS_6, whose headers those need")
    return command


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    try:
        show(parser().parse_intermixed_args(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def show(given: argparse.Namespace) -> None:
    """Answers, a table of layers, and with what it was built."""
    if given.inputs is None:
        prefix_of(given.folder)
        inputs, words = bytes(input_bytes(given.folder)), ["--int8"]
    else:
        inputs, words = read(given.inputs), []
    with tempfile.TemporaryDirectory(prefix="edgetrain_") as place:
        elf = build(given.folder, given.core, given.kernels, Path(place), given.cmsis_nn, given.cmsis_core)
        done = run(elf, given.core, inputs, words)
        sizes = sections(elf)
    if not done.runs:
        raise UserError(f"{given.inputs} is empty; give at least one input")
    if given.inputs is not None:
        print(done.text)
    which = "an input of zeros" if given.inputs is None else "the last input"
    title = f"{given.core}, {given.kernels} kernels: instructions of {which}"
    print_table(["layer", "kind", "MACs", "instructions", "a MAC"], rows_of(done), title)
    print()
    print(" ".join(["arm-none-eabi-gcc", *flags_of(CORES[given.core])]))
    print(compiler_version())
    held = ", ".join(f"{size:,} bytes {name}" for name, size in sizes.items())
    print(f"{held}, with start-up code and C library; at most {done.stack:,} bytes of stack in a layer")
    print(NO_CYCLES)


def rows_of(done: Emulated) -> list[Row]:
    counted = [
        {"layer": layer.name, "kind": layer.kind, "MACs": layer.macs, "instructions": count}
        for layer, count in zip(done.layers, done.instructions, strict=True)
    ]
    total = {key: sum(row[key] for row in counted) for key in ("MACs", "instructions")}
    counted.append({"layer": "total", "kind": "", **total})
    return [row | {"a MAC": row["instructions"] / row["MACs"] if row["MACs"] else None} for row in counted]


def input_bytes(folder: Path) -> int:
    """Of a quantised input, from model.h. Raises UserError where that does not say it."""
    path = folder / "model.h"
    found = re.search(r"^#define \w+_INPUT_BYTES (\d+)", path.read_text(encoding="utf-8"), re.M)
    if found is None:
        raise UserError(f"{path} was damaged; copy the whole folder again, or export again")
    return int(found[1])


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a file of float32 inputs") from error


if __name__ == "__main__":
    sys.exit(main())
