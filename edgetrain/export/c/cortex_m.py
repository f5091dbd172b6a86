"""Builds of an exported folder for emulated Cortex-M boards, by Debian's arm-none-eabi-gcc."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from edgetrain.errors import UserError, listing

SOURCES = Path(__file__).parent / "csrc" / "cortex_m"
COMPILER, EMULATOR, LIBRARY = "arm-none-eabi-gcc", "qemu-system-arm", "rdimon.specs"
PACKAGES = {COMPILER: "gcc-arm-none-eabi", LIBRARY: "libnewlib-arm-none-eabi", EMULATOR: "qemu-system-arm"}
KERNELS = {"portable": "kernels.c", "plain": "kernels_plain.c", "cmsis_nn": "kernels_cmsis_nn.c"}
OPTIMISED = ("-O3", "-ffunction-sections", "-fdata-sections")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror")
REGIONS = {"CODE": "program memory", "FLASH": "flash", "RAM": "RAM"}


@dataclass(frozen=True)
class Core:
    """A processor and the board that QEMU has with it. memory: the link file; tick_ns: of SysTick."""

    machine: str
    flags: tuple[str, ...]
    memory: str
    tick_ns: float


CORES = {
    "cortex_m3": Core("mps2-an385", ("-mcpu=cortex-m3",), "link_mps2.ld", 40),
    "cortex_m4": Core("mps2-an386", ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), "link_mps2.ld", 40),
    "cortex_m7": Core("mps2-an500", ("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-d16"), "link_mps2.ld", 40),
    "cortex_m55": Core("mps3-an547", ("-mcpu=cortex-m55", "-mfloat-abi=hard"), "link_mps3.ld", 31.25),
}


def core_named(name: str) -> Core:
    """Raises UserError for a core that is not emulated."""
    if name not in CORES:
        raise UserError(f"'{name}' is no core that can be emulated; take one of {listing(CORES)}")
    return CORES[name]


def missing_tools() -> list[str]:
    """Names of the Debian packages that emulation lacks here."""
    missing = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    if COMPILER not in missing and not Path(said([COMPILER, f"-print-file-name={LIBRARY}"])).is_absolute():
        missing.append(LIBRARY)
    if COMPILER in missing:  # it brings no C library, and cannot say whether there is one
        missing.append(LIBRARY)
    return [package for tool, package in PACKAGES.items() if tool in missing]


def require_tools() -> None:
    """Raises UserError with the line that installs what is missing."""
    if missing := missing_tools():
        raise UserError(
            f"emulation lacks {listing(missing)}; install with: "
            f"apt-get install --no-install-recommends {' '.join(missing)}"
        )


def compiler_version() -> str:
    return said([COMPILER, "--version"]).partition("\n")[0]


def emulator_version() -> str:
    return said([EMULATOR, "--version"]).partition("\n")[0]


def flags_of(core: Core) -> list[str]:
    """What every file of the network is compiled with."""
    return [*core.flags, "-mthumb", *OPTIMISED, *STRICT]


def build(
    folder: Path, core: str, kernels: str, out: Path, cmsis_nn: Path | None = None, cmsis_core: Path | None = None
) -> Path:
    """A program for a core from an exported folder, in `out`: start.c, the folder's main and the chosen kernels.

    kernels: a key of `KERNELS`; cmsis_nn, cmsis_core: checkouts of ARM-software/CMSIS-NN and of CMSIS_6. Raises
    UserError for unknown names, a folder of another kind, a checkout that is none, what does not compile, and a network
    that is larger than the board.
    """
    board = core_named(core)
    if kernels not in KERNELS:
        raise UserError(f"'{kernels}' is no set of kernels; take one of {listing(KERNELS)}")
    require_tools()
    prefix = prefix_of(folder)
    start = out / "start.c"
    text = (SOURCES / "start.c").read_text(encoding="utf-8")
    start.write_text(text.replace("model_", f"{prefix}_").replace("MODEL_", f"{prefix.upper()}_"), encoding="utf-8")
    inputs = [start, folder / "model.c", folder / "main.c", folder / KERNELS[kernels]]
    flags = [*flags_of(board), "-DEDGETRAIN_TRACE", "-I", str(folder)]
    if kernels == "cmsis_nn":
        root, headers = checkouts(cmsis_nn, cmsis_core)
        include = ["-isystem", str(root / "Include"), "-isystem", str(headers)]
        flags += ["-DEDGETRAIN_CMSIS_NN", *include]
        glue = compiled(inputs[-1:], flags, out)
        inputs[-1:] = glue + library_objects(root, [*board.flags, "-mthumb", *OPTIMISED, *include], glue, out)
    elf = out / f"{core}_{kernels}.elf"
    link = ["-L", str(SOURCES), "-T", board.memory, "-nostartfiles", f"--specs={LIBRARY}", "-Wl,--gc-sections", "-lm"]
    compile_with([*flags, *map(str, inputs), *link, "-o", str(elf)], f"{core}, {kernels} kernels")
    return elf


def prefix_of(folder: Path) -> str:
    """What the names of an exported network begin with. Raises UserError for a folder that holds none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the export/c folder of a run")
    header = folder / "model.h"
    text = header.read_text(encoding="utf-8", errors="replace") if header.is_file() else ""
    found = re.search(r"^int (\w+)_init\(void\);", text, re.M)
    if found is None:
        raise UserError(f"{folder} holds no network in C that was exported here; give the export/c folder of a run")
    return found[1]


def checkouts(cmsis_nn: Path | None, cmsis_core: Path | None) -> tuple[Path, Path]:
    """CMSIS-NN's root and the folder of the core's headers. Raises UserError when one is not there."""
    if cmsis_nn is None or cmsis_core is None:
        raise UserError("CMSIS-NN kernels need cmsis_nn and cmsis_core, checkouts of ARM-software/CMSIS-NN and CMSIS_6")
    headers = cmsis_core / "CMSIS" / "Core" / "Include"
    if not (cmsis_nn / "Include" / "arm_nnfunctions.h").is_file():
        raise UserError(f"cmsis_nn={cmsis_nn} is no checkout of ARM-software/CMSIS-NN: no Include/arm_nnfunctions.h")
    if not (headers / "cmsis_compiler.h").is_file():
        raise UserError(f"cmsis_core={cmsis_core} is no checkout of ARM-software/CMSIS_6: no {headers}")
    return cmsis_nn, headers


def library_objects(root: Path, flags: Sequence[str], objects: Iterable[Path], out: Path) -> list[Path]:
    """Objects of the library's functions that these objects call, and of those that those call.

    A function stands in a file of its name, or in one that defines several; compiling all takes half a minute.
    """
    sources = sorted((root / "Source").rglob("*.c"))
    named = {path.stem: path for path in sources}
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in sources}
    done: dict[Path, Path] = {}
    objects, asked = list(objects), set[str]()
    while wanted := {name for name in undefined(objects) if name.startswith("arm_")} - asked:
        asked |= wanted
        found = {named.get(name) or defining(name, texts) for name in wanted} - {None} - done.keys()
        objects = compiled(sorted(found), flags, out)
        done |= dict(zip(sorted(found), objects, strict=True))
        if not objects:
            break
    return list(done.values())


def defining(function: str, texts: dict[Path, str]) -> Path | None:
    """The file with a line that begins a definition of this function."""
    pattern = re.compile(rf"^[A-Za-z_][^;={{}}\n]*\b{function}\s*\((?![^;{{]*;)", re.M)
    return next((path for path, text in texts.items() if pattern.search(text)), None)


def compiled(sources: Sequence[Path], flags: Sequence[str], out: Path) -> list[Path]:
    objects = [out / f"{path.stem}.o" for path in sources]
    for source, target in zip(sources, objects, strict=True):
        compile_with([*flags, "-c", str(source), "-o", str(target)], source.name)
    return objects


def undefined(objects: Sequence[Path]) -> set[str]:
    words = said(["arm-none-eabi-nm", "-u", *map(str, objects)]).split() if objects else []
    return {name for mark, name in pairwise(words) if mark == "U"}


def compile_with(arguments: Sequence[str], what: str) -> None:
    """Raises UserError with the first thing that the compiler or linker has against it."""
    english = os.environ | {"LC_ALL": "C"}
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True, errors="replace", env=english)
    if done.returncode == 0:
        return
    short = dict[str, int]()
    for region, excess in re.findall(r"region `(\w+)' overflowed by (\d+) bytes", done.stderr):
        short[region] = max(short.get(region, 0), int(excess))
    if short:
        lacks = " and ".join(f"{excess:,} bytes more {REGIONS[region]}" for region, excess in short.items())
        raise UserError(
            f"{what}: the network needs {lacks} than the emulated board has; take a smaller one or another core"
        )
    lines = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line]
    raise UserError(
        f"{COMPILER} does not build {what}: {(lines or done.stderr.splitlines() or ['no reason given'])[0]}"
    )


def sections(elf: Path) -> dict[str, int]:
    """Bytes of text (program and constants), data and bss, of start-up code and C library as well."""
    names, numbers = said(["arm-none-eabi-size", str(elf)]).splitlines()[:2]
    return dict(zip(names.split()[:3], map(int, numbers.split()[:3]), strict=True))


def function_at(elf: Path, address: str) -> str:
    return said(["arm-none-eabi-addr2line", "-f", "-e", str(elf), address]).partition("\n")[0]


def said(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout.strip()
