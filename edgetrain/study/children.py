"""The processes of a study: each run an ordinary one, `python -m edgetrain ...` in a folder of its own.

A run's log, runs/<name>.log, is locked for as long as somebody runs there: by the process itself, which inherits it as
its output. So a study whose first process was killed waits for the runs that it left behind, and starts none twice.
Children do not share the terminal: Ctrl-C reaches the study alone, which passes it on once.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edgetrain.checkpoint import kept_checkpoints
from edgetrain.errors import Interrupted
from edgetrain.folder import RunFolder
from edgetrain.processes import alone
from edgetrain.study.plan import Study

ATTEMPTS = 2
POLL = 0.2  # seconds
TAIL = 8  # lines of a failed run's log that are shown

console = Console(stderr=True, highlight=False)


class Runner:
    """One child: its folder, its log, and its process while there is one. arguments: of a run from the start."""

    def __init__(self, name: str, folder: RunFolder, arguments: list[str], trust: list[str]) -> None:
        self.name, self.folder, self.arguments, self.trust = name, folder, arguments, trust
        self.log = folder.path.with_name(f"{folder.path.name}.log")
        self.process: subprocess.Popen | None = None
        self.attempts = 0
        self.left_behind = False  # by an earlier study's process, and still running

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, threads: int) -> bool:
        """False, and nothing is started, where a process that an earlier study left behind still runs."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.left_behind = True
                return False
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgetrain", *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"OMP_NUM_THREADS": str(threads)} | alone(os.environ),
                start_new_session=True,
            )
        self.attempts += 1
        return True

    def command(self) -> list[str]:
        """To go on from the last checkpoint, or from the start where there is none."""
        if kept_checkpoints(self.folder):
            return [f"resume={self.folder.path}", *([f"trust=[{','.join(self.trust)}]"] if self.trust else [])]
        shutil.rmtree(self.folder.path, ignore_errors=True)
        place = str(self.folder.path).replace("'", r"\'")
        return [*self.arguments, f"out='{place}'"]  # quoted: Hydra's grammar takes no bare spaces

    def failure(self) -> str:
        """One sentence, then the end of the log."""
        code = self.process.returncode
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        tail = self.log.read_text(errors="replace").splitlines()[-TAIL:]
        times = f"failed {self.attempts} times, at last" if self.attempts > 1 else "failed,"
        return "\n    ".join([f"{self.name} {times} {ended}; {self.log} ends with", *tail])


def run_children(study: Study, folder: RunFolder) -> list[str]:
    """Run every child that is not finished, `parallel` at a time; returns a sentence for each that failed twice.

    Raises Interrupted after Ctrl-C and SIGTERM, when every child has saved its state and ended.
    """
    runners = [
        Runner(child.name, folder.child(child.variant, child.seed), study.arguments_of(child), study.packages)
        for child in study.children
    ]
    waiting = deque(runners)
    running: list[Runner] = []
    failures: list[str] = []
    threads = max(1, (os.cpu_count() or 1) // study.config.parallel)
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, refresh_per_second=2) as bar:
        shown = bar.add_task("", total=len(runners))
        try:
            while waiting or running:
                while waiting and len(running) < study.config.parallel:
                    running.append(waiting.popleft())
                for runner in [runner for runner in running if not runner.alive]:
                    known = runner.left_behind
                    if runner.folder.finished:
                        running.remove(runner)
                        bar.advance(shown)
                        seconds = runner.folder.read_json("environment.json").get("wall_seconds", 0)
                        console.print(f"done     {runner.name}, {seconds:.0f} s")
                    elif runner.attempts == ATTEMPTS:
                        running.remove(runner)
                        failures.append(runner.failure())
                        console.print(f"failed   {runner.name}")
                    elif runner.start(threads):
                        console.print(f"{'started' if runner.attempts == 1 else 'again  '}  {runner.name}")
                    elif not known:
                        console.print(f"running  {runner.name}, which an earlier process of this study began")
                names = ", ".join(runner.name for runner in running)
                bar.update(shown, description=f"running: {names or 'none'}; waiting: {len(waiting)}")
                time.sleep(POLL if running else 0)
        except KeyboardInterrupt:
            stop(running)
            raise Interrupted from None
        except BaseException:
            stop(running)
            raise
    return failures


def stop(runners: list[Runner]) -> None:
    """Ctrl-C for each, and wait until they have saved their state."""
    processes = [runner.process for runner in runners if runner.alive]
    for process in processes:
        process.send_signal(signal.SIGINT)
    for process in processes:
        process.wait()
