"""The trials of a sweep where they outlive its process: Optuna's journal in the sweep's folder, or a shared database.

A trial is claimed in one write that names its worker, the folder that runs it. So whatever kills a worker, its trials
are found again as running and its own, and go on; and other machines see them as taken. Only `finish` ends one.
"""

import os
import socket
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url

from edgetrain.errors import UserError, listing
from edgetrain.folder import RunFolder
from edgetrain.resume import differences
from edgetrain.sweep.plan import Sweep
from edgetrain.sweep.space import Value, point, size, spread_out

JOURNAL = "trials.journal"
STARTUP = 10  # trials spread evenly before Optuna's model of them proposes
PATIENCE = 60  # seconds to wait for another process that writes into the same SQLite file

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Ledger:
    """A sweep's trials. worker: names the folder that runs them.

    Raises UserError when the storage cannot be opened or holds a study of something else.
    """

    def __init__(self, sweep: Sweep, folder: RunFolder, worker: str) -> None:
        self.sweep, self.folder, self.worker = sweep, folder, worker
        options = sweep.options
        storage = database(options.storage) if options.storage else journal(folder)
        name = options.name or sweep.config.recipe
        try:
            self.study = optuna.load_study(storage=storage, study_name=name)
        except KeyError:
            self.study = optuna.create_study(
                storage=storage, study_name=name, direction=options.direction, load_if_exists=True
            )
        self.study.pruner = optuna.pruners.MedianPruner() if options.pruner == "median" else optuna.pruners.NopPruner()
        self._agree()

    def _agree(self) -> None:
        """The study's first worker says what it is about; the others compare. Raises UserError where they differ."""
        mine, held = self.sweep.identity(), self.study.user_attrs.get("sweep")
        if held is None:
            self.study.set_user_attr("every_point", size(self.sweep.axes) <= self.sweep.options.trials)
            self.study.set_user_attr("sweep", mine)
        elif changed := differences(held, mine):
            raise UserError(
                f"storage={shown(self.sweep.options.storage)} holds a study '{self.study.study_name}' whose "
                f"{listing(changed)} differs; choose another with name=NAME, or type the same sweep"
            )

    @property
    def total(self) -> int:
        """How many trials there will be: of a small finite space, every point once."""
        points = size(self.sweep.axes) if self.study.user_attrs["every_point"] else self.sweep.options.trials
        return int(min(points, self.sweep.options.trials))

    def trials(self) -> list[FrozenTrial]:
        """All that count, in order."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "surplus" not in trial.user_attrs]

    @property
    def best(self) -> FrozenTrial | None:
        """The finished trial with the lowest mean, or the highest; the first of equals."""
        done = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        sign = -1 if self.sweep.options.direction == "maximize" else 1
        return min(done, key=lambda trial: sign * trial.value, default=None)

    def mine(self, trial: FrozenTrial) -> bool:
        return trial.user_attrs.get("worker") == self.worker

    def running(self, mine: bool) -> list[FrozenTrial]:
        """Claimed and not ended, by this folder or by others."""
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING and self.mine(trial) == mine]

    def claim(self, under_way: set[int]) -> tuple[optuna.Trial, dict[str, Value]] | None:
        """A trial and its values: one that this worker left behind, else a new one; None when all have been claimed."""
        left = [trial for trial in self.running(mine=True) if trial.number not in under_way]
        if not left:
            if len(self.trials()) >= self.total:
                return None
            place = f"{socket.gethostname()}:{self.folder.path}"
            claimed = optuna.trial.create_trial(
                state=TrialState.RUNNING, user_attrs={"worker": self.worker, "place": place}
            )
            self.study.add_trial(claimed)
            left = [trial for trial in self.running(mine=True) if trial.number not in under_way]
        rank = [trial.number for trial in self.trials()].index(left[0].number)
        self.study.sampler = self._sampler(rank)
        trial = optuna.trial.Trial(self.study, left[0]._trial_id)  # as `ask` makes it, for a trial that is there
        if rank >= self.total:  # another machine claimed the last one in the same moment
            trial.set_user_attr("surplus", True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        return trial, {axis.key: axis.suggest(trial) for axis in self.sweep.axes}

    def _sampler(self, rank: int) -> BaseSampler:
        """New for every trial, so that what is proposed depends on the seed and the trials before, not on restarts."""
        if self.study.user_attrs["every_point"]:
            return OnePoint(point(self.sweep.axes, rank))
        if rank < STARTUP:
            return OnePoint(spread_out(self.sweep.axes, rank, self.sweep.seeds[0]))
        return TPESampler(n_startup_trials=STARTUP, seed=self.sweep.seeds[0] * 1_000_003 + rank)

    def finish(self, trial: optuna.Trial, state: TrialState, value: float | None = None, **facts: Any) -> None:
        """End a trial, once and for all; `facts` are kept beside it."""
        for name, fact in facts.items():
            trial.set_user_attr(name, fact)
        self.study.tell(trial, value, state)


def check_storage(sweep: Sweep) -> None:
    """Raises UserError for a shared storage that a sweep cannot use, before it has a folder."""
    if sweep.options.storage:
        Ledger(sweep, RunFolder(Path(os.devnull)), "")


class OnePoint(RandomSampler):
    """Proposes one point and no other."""

    def __init__(self, values: dict[str, Value]) -> None:
        super().__init__()
        self.values = values

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self.values[param_name]


class FolderLock:
    """Nothing to do: the sweep's folder is locked already. Optuna's own lock outlives a killed process by 30 s."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def mend(folder: RunFolder) -> None:
    """Drop a last line of the journal that a full disk cut short. Only for who holds the folder's lock."""
    path = folder.path / JOURNAL
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def journal(folder: RunFolder) -> BaseStorage:
    path = folder.path / JOURNAL
    try:
        return JournalStorage(JournalFileBackend(str(path), FolderLock()))
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} does not parse ({error}); the file was damaged, start a new sweep") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder with out=DIR") from error


def database(url: str) -> BaseStorage:
    waits = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else {}
    try:
        return RDBStorage(url, engine_kwargs=waits)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError, OSError, ValueError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise UserError(f"storage={shown(url)} cannot be opened: {reason}") from error


def shown(url: str | None) -> str:
    """A storage without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True) if url else JOURNAL
    except sqlalchemy.exc.ArgumentError:
        return url
