"""The C folder compiled and run on this machine."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.export.c.cortex_m import STRICT

COMPILER = "cc"
OPTIMISATION = ("-O3",)
SOURCES = ("model.c", "kernels.c", "main.c")
TIMEOUT = 600  # seconds, to compile or to run a batch


def require_compiler() -> None:
    """Raises UserError when there is no C compiler."""
    if shutil.which(COMPILER) is None:
        raise UserError(
            f"export.c runs what it wrote on this machine and needs a C compiler, {COMPILER}, which is not installed; "
            "apt-get install gcc libc6-dev"
        )


def compiler_version() -> str:
    """The first line that the compiler says of itself."""
    said = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=False).stdout
    return next(iter(said.splitlines()), "")


class HostProgram:
    """An exported folder's network as a program of this machine, which is removed with this object.

    front_end: what computes the network's input from the model's, None for nothing. Called like the model: float32
    [batch, ...] -> dequantised logits float32 [batch, n]. Raises UserError when the folder does not compile.
    """

    def __init__(self, folder: Path, front_end: nn.Module | None = None) -> None:
        require_compiler()
        self.front_end = front_end
        self.output = macros(folder)
        self._built = tempfile.TemporaryDirectory(prefix="edgetrain-c-")
        self.path = Path(self._built.name) / "main"
        sources = [str(folder / each) for each in SOURCES]
        run([COMPILER, *STRICT, *OPTIMISATION, "-o", str(self.path), *sources, "-lm"], f"{folder} does not compile")

    def __call__(self, x: Tensor) -> Tensor:
        if self.front_end is not None:
            with torch.inference_mode():
                x = self.front_end(x)
        logits = self.logits(x.float())
        return (logits.float() - self.output["ZERO_POINT"]) * self.output["SCALE"]

    def logits(self, x: Tensor) -> Tensor:
        """The int8 logits [batch, n] of float32 inputs."""
        written = run([str(self.path), "--raw"], "the exported network failed", x.numpy().tobytes())
        return torch.frombuffer(bytearray(written), dtype=torch.int8).reshape(len(x), -1)


def macros(folder: Path) -> dict[str, float]:
    """SCALE and ZERO_POINT of the output, from model.h. Raises UserError for a folder without them."""
    path = folder / "model.h"
    text = path.read_text() if path.is_file() else ""
    found = dict(re.findall(r"^#define \w+_OUTPUT_(SCALE|ZERO_POINT) \(?(\S+?)[f)]?$", text, re.MULTILINE))
    if len(found) < 2:
        raise UserError(f"{path} is missing or was damaged; copy the whole folder again, or export again")
    return {"SCALE": float(found["SCALE"]), "ZERO_POINT": int(found["ZERO_POINT"])}


def run(command: list[str], problem: str, given: bytes | None = None) -> bytes:
    """What the command writes. Raises UserError, with the first line of its complaint, when it fails."""
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"export.c: {problem}: {Path(command[0]).name} took more than {TIMEOUT} s") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line), lines[0] if lines else f"status {done.returncode}")
        raise UserError(f"export.c: {problem}: {said.rstrip('.')}; export again, or report this")
    return done.stdout
