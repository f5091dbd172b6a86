"""Several processes of one run on this machine, as torchrun starts them, forked so that nothing is imported twice."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LIMIT = 60.0  # seconds, after which what is left is killed


@dataclass(frozen=True)
class Ended:
    """One process: exit code (minus the signal that ended it, None past the limit), what it printed, its seconds."""

    code: int | None
    said: str
    seconds: float


def ranks(function: Callable[[int], int | None], place: Path, world: int = 2, together: bool = False) -> list[Ended]:
    """Run function(rank) in `world` processes with torchrun's environment; what it returns is the exit code.

    together: end the others when one has failed, as torchrun does and srun does not.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [place / f"rank_{rank}.log" for rank in range(world)]
    children = {_fork(function, rank, world, port, log): rank for rank, log in enumerate(logs)}
    begun, ended = time.monotonic(), {}
    while len(ended) < world and time.monotonic() - begun < LIMIT:
        for child, rank in children.items():
            if rank not in ended:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    ended[rank] = (os.waitstatus_to_exitcode(status), time.monotonic() - begun)
        if together and any(code for code, _ in ended.values()):
            for child, rank in children.items():
                if rank not in ended:
                    os.kill(child, signal.SIGTERM)
        time.sleep(0.02)
    for child, rank in children.items():
        if rank not in ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            ended[rank] = (None, LIMIT)
    return [Ended(ended[rank][0], logs[rank].read_text(), ended[rank][1]) for rank in range(world)]


def _fork(function: Callable[[int], int | None], rank: int, world: int, port: int, log: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        code = function(rank) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(
    *arguments: str, place: Path, prepare: Callable[[int], None] = lambda rank: None, together: bool = False
) -> list[Ended]:
    """One command line in two processes; `prepare` is called in each before it."""
    from edgetrain.cli import main

    def run(rank: int) -> int:
        prepare(rank)
        return main(list(arguments))

    return ranks(run, place, together=together)
