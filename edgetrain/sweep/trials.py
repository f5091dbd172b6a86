"""The trials of a sweep that this machine runs, `parallel` at a time; each seed is an ordinary run in its own process.

A trial's seeds run one after another; its value is the mean of the metric over them. Whatever fails is recorded and
passed over. Nothing about a running trial is in this process alone: a sweep that was killed finds them in the ledger,
and their runs go on from their checkpoints.
"""

import math
import os
import signal
import time
from collections.abc import Iterable
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edgetrain.errors import Interrupted, UserError, listing, nearest
from edgetrain.folder import RunFolder
from edgetrain.spread import spread
from edgetrain.study.children import POLL, Runner, stop
from edgetrain.study.result import numeric_metrics
from edgetrain.sweep.ledger import Ledger
from edgetrain.sweep.plan import Sweep
from edgetrain.sweep.space import Value
from edgetrain.sweep.space import shown as plain

GRACE = 60  # seconds between asking a run to end and killing it

console = Console(stderr=True, highlight=False)


class Failed(Exception):
    """This trial has no value; the message says why."""


class Unmeasured(Failed):
    """The run measured or logged other things than the sweep looks at."""


class Pruned(Exception):
    """This trial is worse than the median of the others at the same step."""


class RunningTrial:
    """One trial under way: a run for each seed, in order."""

    def __init__(self, sweep: Sweep, trial: optuna.Trial, values: dict[str, Value], folder: RunFolder) -> None:
        self.sweep, self.trial = sweep, trial
        self.name = f"trial{trial.number}"
        self.words = " ".join(f"{key}={shown(value)}" for key, value in values.items())
        self.runners = [
            Runner(
                f"{self.name}_seed{seed}",
                folder.child(self.name, seed),
                sweep.arguments_of(values, seed),
                sweep.packages,
            )
            for seed in sweep.seeds
        ]
        self.metrics: list[float] = []  # of the seeds that are done
        self.seconds = 0.0
        self.ending: Failed | Pruned | None = None  # the run was asked to end
        self.since = 0.0  # when the run was started, or asked to end
        self.logged = 0  # bytes of the curve when it was last read

    @property
    def runner(self) -> Runner:
        return self.runners[len(self.metrics)]

    def poll(self, threads: int) -> bool:
        """Look after the run of the current seed; True when all seeds are done.

        Raises Failed and Pruned, when no process of this trial is left, and UserError for a metric that is not there.
        """
        runner = self.runner
        if runner.alive:
            self._watch(runner)
            return False
        if runner.folder.finished:
            if self.sweep.options.pruner != "none" and runner is self.runners[0]:
                self._report(runner.folder)
                self._require_curve(runner.folder)
            self.metrics.append(self._metric(runner.folder))
            self.seconds += runner.folder.read_json("environment.json").get("wall_seconds", 0)
            self.ending = None
            return len(self.metrics) == len(self.runners)
        if self.ending:
            raise self.ending
        if runner.attempts:
            raise Failed(runner.failure())
        known = runner.left_behind
        if runner.start(threads):
            self.since = time.monotonic()
            console.print(f"started  {runner.name}  {self.words}")
        elif not known:
            console.print(f"running  {runner.name}, which an earlier process of this sweep began")
        return False

    def _watch(self, runner: Runner) -> None:
        """Ask the run to end when its time is up or its curve is hopeless; kill it when it does not listen."""
        options, elapsed = self.sweep.options, time.monotonic() - self.since
        if self.ending:
            if elapsed > GRACE:
                runner.process.kill()
            return
        if options.timeout and elapsed > 60 * options.timeout:
            self.ending = Failed(f"{runner.name} took longer than timeout={options.timeout:g} minutes")
        elif options.pruner != "none" and runner is self.runners[0]:
            size = sum(path.stat().st_size for path in runner.folder.path.glob("logs/part_*/metrics.csv"))
            if size != self.logged and (step := self._report(runner.folder)) is not None:
                self.ending = Pruned(f"at step {step}")
            self.logged = size
        if self.ending:
            runner.process.send_signal(signal.SIGINT)
            self.since = time.monotonic()

    def _report(self, folder: RunFolder) -> int | None:
        """Tell the ledger what is new in the curve of the first seed; the step at which the pruner gives up, if any."""
        last = max(self._reported(), default=-1)
        for step, values in folder.training_curves():
            if step > last and self.sweep.options.curve in values:
                self.trial.report(values[self.sweep.options.curve], step)
                if self.trial.should_prune():
                    return step
        return None

    def _reported(self) -> dict[int, float]:
        return self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values

    def _require_curve(self, folder: RunFolder) -> None:
        """Raises Unmeasured where a finished run logged nothing that the pruner could compare."""
        if not self._reported():
            logged = dict.fromkeys(name for _, values in folder.training_curves() for name in values)
            raise Unmeasured(
                f"pruner=median: {folder.path.name} logged no {self.sweep.options.curve}; it {has(logged)}"
            )

    def _metric(self, folder: RunFolder) -> float:
        """Raises Failed where a finished run has none, or no number, and names the nearest."""
        name = self.sweep.options.metric
        metrics = numeric_metrics(folder)
        if name not in metrics:
            raise Unmeasured(
                f"metric={name}: {folder.path.name} has no such metric{nearest(name, metrics)}; it {has(metrics)}"
            )
        if not math.isfinite(metrics[name]):
            raise Failed(f"{folder.path.name} measured {name}={metrics[name]}")
        return metrics[name]


def has(names: Iterable[str]) -> str:
    return f"has {listing(names) or 'none'}"


def shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else plain(value)


def run_trials(sweep: Sweep, ledger: Ledger, folder: RunFolder) -> None:
    """Run trials until the total has been claimed and those of this folder have ended.

    Raises Interrupted after Ctrl-C and SIGTERM, when every run has saved its state and ended; UserError when the first
    finished trial shows that no run measures what the sweep looks at.
    """
    running: list[RunningTrial] = []
    threads = max(1, (os.cpu_count() or 1) // sweep.options.parallel)
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, refresh_per_second=2) as bar:
        shown_bar = bar.add_task("", total=ledger.total)
        try:
            more = changed = True
            while more or running:
                while more and len(running) < sweep.options.parallel:
                    claimed = ledger.claim({one.trial.number for one in running})
                    more = claimed is not None
                    if more:
                        running.append(RunningTrial(sweep, *claimed, folder))
                        changed = True
                if changed:  # not at every turn: the ledger may be a database far away
                    names = ", ".join(one.name for one in running)
                    over = sum(trial.state.is_finished() for trial in ledger.trials())
                    bar.update(shown_bar, completed=over, description=f"running: {names or 'none'}{best_words(ledger)}")
                left = [one for one in running if not ended(one, ledger, threads)]
                changed = len(left) < len(running)
                running[:] = left
                time.sleep(POLL if running else 0)
        except KeyboardInterrupt:
            stop([runner for one in running for runner in one.runners])
            raise Interrupted from None
        except BaseException:
            stop([runner for one in running for runner in one.runners])
            raise


def ended(one: RunningTrial, ledger: Ledger, threads: int) -> bool:
    """Whether the trial is over; then it is in the ledger.

    Raises UserError when it failed for want of the metric, and no other trial shows that some runs do measure it.
    """
    facts: dict[str, Any] = {}
    unmeasured: Unmeasured | None = None
    try:
        if not one.poll(threads):
            return False
        mean, deviation, n = spread(one.metrics)
        state, value, facts = TrialState.COMPLETE, mean, {"deviation": deviation}
        over = f" (deviation {deviation:.2g}, {n} seeds)" if n > 1 else ""
        said = f"done     {one.name}  {one.sweep.options.metric}={mean:.4g}{over}, {one.seconds:.0f} s"
    except Pruned as pruned:
        state, value, facts = TrialState.PRUNED, None, {"note": f"pruned {pruned}"}
        said = f"pruned   {one.name}  {pruned}"
    except Failed as failed:
        state, value, facts = TrialState.FAIL, None, {"note": str(failed)}
        said = f"failed   {one.name}  {str(failed).splitlines()[0]}"
        unmeasured = failed if isinstance(failed, Unmeasured) else None
    ledger.finish(one.trial, state, value, metrics=one.metrics, seconds=one.seconds, **facts)
    console.print(said)
    if unmeasured and ledger.best is None:
        raise UserError(f"{unmeasured}; the sweep has ended, start another with what its runs do have")
    return True


def best_words(ledger: Ledger) -> str:
    best = ledger.best
    return f"; best: trial{best.number} with {best.value:.4g}" if best else ""
