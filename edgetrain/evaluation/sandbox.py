"""Run a Python program that nobody has read, within limits.

A fresh interpreter runs it with the standard library alone, in Linux namespaces of its own that need no privilege
(`sandbox_init.py` sets them up):

- no network, not even the loopback device;
- of the file system it sees the interpreter and the system's libraries, read only, and an empty folder in memory, its
  current folder and HOME, of at most DISK_MB;
- no other process: what it starts dies with it, and it can signal nothing else;
- limits on processor and wall time, memory and files (setrlimit), processes, and output; an empty environment.

Not prevented: reading the system's libraries; using all of the memory limit in each of PROCESSES processes; attacks on
the kernel itself; telling us that it reached its end when it did not. It keeps accidents in, not a determined attacker.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from edgetrain.errors import UserError

Status = Literal["passed", "failed", "timed out", "out of memory", "syntax error", "too much output"]

DISK_MB = 64  # of all files together; also the largest file
OUTPUT_KB = 64
PROCESSES = 32  # threads count
OPEN_FILES = 64
STARTING_SECONDS = 30.0  # what interpreter and namespaces may take on a busy machine, besides the program
REACHED_END, OUT_OF_MEMORY, SYNTAX_ERROR = 87, 88, 89  # exit codes; no program ends so by chance, as with 0

# Runs program.py as __main__. A program that leaves before its last line, by sys.exit(0) too, has not passed.
DRIVER = f"""
import os, sys, traceback
code = 1
try:
    try:
        compiled = compile(open("program.py", encoding="utf-8").read(), "program.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        code = {SYNTAX_ERROR}
        raise
    exec(compiled, {{"__name__": "__main__", "__builtins__": __builtins__}})
    code = {REACHED_END}
except MemoryError:
    os._exit({OUT_OF_MEMORY})
except BaseException as error:
    print("".join(traceback.format_exception(error)), file=sys.stderr)
try:
    sys.stdout.flush()
finally:
    os._exit(code)
"""


@dataclass(frozen=True)
class Outcome:
    """How a program ended. detail: its error in one line; output: what it printed, bounded; seconds: wall time."""

    status: Status
    detail: str = ""
    output: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """It ran to its last line, without an error and within the limits."""
        return self.status == "passed"


def run_program(code: str, seconds: float = 3.0, memory_mb: int = 512, *, confined: bool = True) -> Outcome:
    """Run `code` as a script with this Python's standard library, for at most `seconds` of wall time.

    memory_mb: address space of each process. confined=False leaves the namespaces out: the limits hold, but the program
    has the network and your files. Raises UserError where this machine gives no namespaces.
    """
    read_end, write_end = os.pipe()
    with tempfile.TemporaryDirectory(prefix="edgetrain-") as folder, os.fdopen(read_end) as status:
        (Path(folder) / "program.py").write_text(code, encoding="utf-8", errors="replace")
        settings = {
            "driver": DRIVER,
            "status": write_end,
            "seconds": seconds,
            "memory": memory_mb * 2**20,
            "disk": DISK_MB * 2**20,
            "processes": PROCESSES,
            "files": OPEN_FILES,
            "confined": confined,
        }
        # The interpreter below the virtual environment: the program sees no installed package.
        python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        process = subprocess.Popen(
            [python, "-I", "-S", str(Path(__file__).with_name("sandbox_init.py")), json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            pass_fds=(write_end,),
            start_new_session=True,
        )
        os.close(write_end)
        try:
            output, ended = read_bounded(process.stdout, OUTPUT_KB * 2**10, seconds + STARTING_SECONDS)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        text = output.decode(errors="replace")
        return judged(json.loads(status.read() or "{}"), text, ended, len(output) > OUTPUT_KB * 2**10)


def read_bounded(stream: IO[bytes], limit: int, seconds: float) -> tuple[bytes, bool]:
    """The first bytes of a pipe, one more than `limit` at most, and whether it ended within the seconds."""
    deadline, output = time.monotonic() + seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while len(output) <= limit and (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                part = os.read(stream.fileno(), limit + 1 - len(output))
                if not part:
                    return output, True
                output += part
    return output, False


def judged(report: dict[str, Any], output: str, ended: bool, too_long: bool) -> Outcome:
    """What the sandbox's report says of a program that printed `output`."""
    if "refused" in report:
        raise UserError(
            f"a program that a model wrote cannot be confined on this machine: {report['refused']}; run on Linux where "
            "unprivileged user namespaces are allowed, or, in a machine that may be lost, with confined=false"
        )
    lines = [line for line in output.splitlines() if line.strip()]
    last, seconds = (lines[-1][:500] if lines else ""), report.get("seconds", 0.0)
    if too_long:
        return Outcome("too much output", f"printed more than {OUTPUT_KB} KiB", output, seconds)
    if report.get("timed_out") or report.get("signal") == signal.SIGXCPU or not ended:
        return Outcome("timed out", "", output, seconds)
    if report.get("exit") == REACHED_END:
        return Outcome("passed", "", output, seconds)
    if report.get("exit") == SYNTAX_ERROR:
        return Outcome("syntax error", last, output, seconds)
    if report.get("exit") == OUT_OF_MEMORY or last.startswith("MemoryError"):
        return Outcome("out of memory", "", output, seconds)
    if report.get("signal"):
        return Outcome("failed", signal.Signals(report["signal"]).name, output, seconds)
    how = f"left with exit code {report['exit']} before its end" if report else "ended its own supervisor"
    return Outcome("failed", last or how, output, seconds)
