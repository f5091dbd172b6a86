"""The story of a sweep: its trials, the best of them as a recipe, that recipe with fresh seeds, one report."""

import secrets
import time
from typing import Any

import sqlalchemy.exc
import yaml
from optuna.exceptions import StorageInternalError
from rich.console import Console

from edgetrain.annotations import fits
from edgetrain.build import read_config
from edgetrain.config import Config
from edgetrain.environment import describe, now
from edgetrain.errors import UserError, listing
from edgetrain.folder import RunFolder, write_atomic
from edgetrain.resume import differences
from edgetrain.study.plan import key_of
from edgetrain.sweep.best import retrain, retraining, runs_of, write_best
from edgetrain.sweep.ledger import Ledger, mend, shown
from edgetrain.sweep.plan import Sweep, plan_sweep
from edgetrain.sweep.result import summarise
from edgetrain.sweep.trials import run_trials

MAY_CHANGE = ("trials", "parallel", "timeout", "retrain", "trust")

console = Console(stderr=True, highlight=False)


def run_sweep(sweep: Sweep, folder: RunFolder) -> list[str]:
    """Carry out or go on with a sweep; returns a sentence for each thing that is missing from its result.

    Raises Interrupted, resume= goes on from there; and UserError for a storage that cannot be used.
    """
    started = time.monotonic()
    saved = folder.read_json("sweep.json")
    worker = saved["worker"] if saved else secrets.token_hex(8)
    mend(folder)
    try:
        ledger = Ledger(sweep, folder, worker)
        environment = begin(sweep, folder, worker)
        run_trials(sweep, ledger, folder)
        failures = conclude(sweep, ledger, folder)
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        reason = str(getattr(error, "orig", None) or error.__cause__ or error).splitlines()[0]
        raise UserError(
            f"storage={shown(sweep.options.storage)} failed: {reason}; go on with resume={folder.path}"
        ) from error
    if not failures:
        environment["finished"] = now()
    environment["wall_seconds"] = round(environment.get("wall_seconds", 0.0) + time.monotonic() - started, 1)
    folder.write_json("environment.json", environment)
    redraw(sweep, folder)
    return failures


def begin(sweep: Sweep, folder: RunFolder, worker: str) -> dict[str, Any]:
    """Write down what the sweep is, the first time; returns what is known of this machine and those before."""
    environment = folder.read_json("environment.json")
    if environment:
        environment["resumed"] = [*environment.get("resumed", []), describe()]
    else:
        environment = describe() | {"sampler_seed": sweep.seeds[0]}
        saved = {"arguments": sweep.arguments, "smoke": sweep.smoke, "worker": worker, "sweep": fixed_parts(sweep)}
        folder.write_json("sweep.json", saved)
        config = yaml.safe_dump(sweep.config.to_dict(), sort_keys=False, allow_unicode=True)
        write_atomic(folder.path / "config.yaml", config)
    folder.write_json("environment.json", environment)
    return environment


def conclude(sweep: Sweep, ledger: Ledger, folder: RunFolder) -> list[str]:
    """The best trial as a recipe, trained again; a sentence for each thing that could not be had."""
    best, elsewhere = ledger.best, ledger.running(mine=False)
    summarise(sweep, ledger, folder)
    if best is None:
        console.print("no trial has a value; results.csv has the end of each one's log")
        return []
    recipe = write_best(best, len(ledger.trials()), sweep, folder)
    if elsewhere:
        places = listing(trial.user_attrs["place"] for trial in elsewhere)
        console.print(
            f"still running elsewhere: {len(elsewhere)}, in {places}; the machine that ends last retrains the best"
        )
    elif sweep.options.retrain:
        console.print(f"best     trial{best.number}, now with {sweep.options.retrain} fresh seeds: {recipe}")
        return retrain(best, recipe, sweep, folder)
    return []


def redraw(sweep: Sweep, folder: RunFolder) -> None:
    """The report of what there is by now."""
    ledger = Ledger(sweep, folder, folder.read_json("sweep.json")["worker"])
    retrained = runs_of(retraining(ledger.best, folder)) if ledger.best else []
    console.print(f"report  {summarise(sweep, ledger, folder, retrained)}")


def resumed_sweep(path: str, overrides: list[str]) -> tuple[Sweep, RunFolder]:
    """The sweep of the folder at `path`, planned again from the command line that made it.

    Raises UserError when that no longer gives the same sweep, because of an override or since the recipe was edited.
    """
    folder = RunFolder.open(path)
    saved = folder.read_json("sweep.json")
    if not isinstance(saved, dict) or not fits(saved.get("arguments"), "list[str]") or "worker" not in saved:
        raise UserError(f"{folder.path / 'sweep.json'} does not hold a command line; the file was damaged")
    kept = [text for text in saved["arguments"] if key_of(text) != "trust"]  # trust is the reader's to give
    sweep = plan_sweep([*kept, *overrides], smoke=bool(saved.get("smoke")), foreign=True)
    before = Config(**read_config(folder)).to_dict() | saved["sweep"]
    after = sweep.config.to_dict() | fixed_parts(sweep)
    changed = [key for key in differences(before, after) if key.partition(".")[0] != "trust"]
    if changed:
        raise UserError(
            f"resume={path}: {listing(changed)} differs from the sweep that is being resumed; only "
            f"{listing(MAY_CHANGE)} may, so put the recipe and the command line back, or start a new sweep"
        )
    return sweep, folder


def fixed_parts(sweep: Sweep) -> dict[str, Any]:
    """What a sweep that goes on has in common with its beginning, besides the configuration."""
    return sweep.identity() | {"storage": sweep.options.storage, "name": sweep.options.name}
