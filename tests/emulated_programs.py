"""A C program on an emulated Cortex-M board, which the tests of the audio front end share."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgetrain.export.c.cortex_m import COMPILER, CORES, EMULATOR, LIBRARY, SOURCES, flags_of, missing_tools

needs_emulator = pytest.mark.skipif(bool(missing_tools()), reason="there is no cross compiler or no emulator")


def run_on(core: str, folder: Path, sources: Sequence[str], *arguments: str) -> str:
    """What it prints. sources: of its main and the rest, in `folder`, where model.h says the layers for start.c."""
    board, elf = CORES[core], folder / f"{core}.elf"
    link = ["-L", SOURCES, "-T", board.memory, "-nostartfiles", f"--specs={LIBRARY}", "-Wl,--gc-sections", "-lm"]
    files = [*sources, SOURCES / "start.c"]
    build = [COMPILER, *flags_of(board), "-DEDGETRAIN_TRACE", "-I.", *files, *link, "-o", elf]
    subprocess.run(build, cwd=folder, check=True)
    given = "".join(f",arg={each}" for each in ("program", *arguments))
    semihosting = ["-semihosting-config", f"enable=on,target=native{given}"]
    command = [EMULATOR, "-M", board.machine, "-nographic", "-monitor", "none", "-serial", "none", *semihosting]
    done = subprocess.run([*command, "-kernel", elf], cwd=folder, stdout=subprocess.PIPE, check=True, timeout=60)
    return done.stdout.decode()
