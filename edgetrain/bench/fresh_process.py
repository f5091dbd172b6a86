"""A function in a process of its own, for what only a fresh process can tell: how much memory something takes."""

import importlib
import json
import resource
import subprocess
import sys
from typing import Any

from edgetrain import environment
from edgetrain.errors import UserError

SPARE = 2**30  # bytes that a fresh process leaves to the rest of the machine


def in_fresh_process(function: str, **arguments: Any) -> Any:
    """What `package.module.function(**arguments)` returns, arguments and result as JSON.

    The function may take nearly all memory that is free, but not more: it sees a failed allocation, and no other
    process is killed. Raises UserError when it fails.
    """
    request = json.dumps({"function": function, "arguments": arguments})
    command = [sys.executable, "-m", "edgetrain.bench.fresh_process"]
    ended = subprocess.run(command, input=request, capture_output=True, text=True)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise UserError(f"{function} failed in its own process: {last}")
    return json.loads(ended.stdout.splitlines()[-1])


def _limit_memory() -> None:
    free = environment.proc_bytes(environment.MEMORY, "MemAvailable")
    used = environment.resident("VmData")
    if free is not None and used is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (max(used, used + free - SPARE), hard))


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    _limit_memory()
    module, _, name = asked["function"].rpartition(".")
    print("\n" + json.dumps(getattr(importlib.import_module(module), name)(**asked["arguments"])))
