"""The best trial as a recipe of its own, and what it is worth with seeds that chose nothing."""

import io
import shlex
import textwrap
from contextlib import redirect_stderr
from pathlib import Path

import yaml
from optuna.trial import FrozenTrial

from edgetrain.compose import as_recipe, compose
from edgetrain.errors import UserError, listing
from edgetrain.folder import RunFolder, write_atomic
from edgetrain.recipes import find, header
from edgetrain.resume import differences
from edgetrain.study.plan import key_of, plan
from edgetrain.study.resume import resumed_study
from edgetrain.study.run import run_study
from edgetrain.sweep.plan import Sweep

WIDTH = 120  # characters in a line of a recipe
NAMES = ("recipe", "description", "variant", "variants", "seeds", "parallel", "study", "claims", "smoke")


def write_best(best: FrozenTrial, trials: int, sweep: Sweep, folder: RunFolder) -> Path:
    """Write best.yaml, a recipe with its header, and check that it composes to what the trial ran.

    Raises UserError where it does not, with the command that repeats the trial.
    """
    overrides = sweep.overrides(best.params)
    path = folder.path / "best.yaml"
    recipe = [text.partition("=")[2] for text in overrides if key_of(text) == "recipe"] or [sweep.config.recipe]
    original = header(find(recipe[-1]))
    place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    lines = [
        f"{original.sentence} Trial {best.number}, the best of {trials} by {sweep.options.metric}.",
        f"Paper: {original.paper}",
        f"Claim: {original.claim}",
        f"Needs: {original.needs}",
        f"Run:   {shlex.join(['python', '-m', 'edgetrain', f'recipe={place}'])}",
    ]
    wrapped = ["\n".join(textwrap.wrap(line, WIDTH, initial_indent="# ", subsequent_indent="#   ")) for line in lines]
    body = as_recipe(overrides)
    picks = [f"  - {yaml.safe_dump(pick, default_flow_style=True)[1:-2]}" for pick in body.pop("defaults")]
    defaults = ["defaults:", *picks] if picks else []
    text = yaml.safe_dump(body, sort_keys=False, allow_unicode=True, default_flow_style=None, width=WIDTH)
    write_atomic(path, "\n".join([*wrapped, *defaults, text]))
    with redirect_stderr(io.StringIO()):  # what a choice drops has been said in the run's log
        mine, theirs = (
            {key: value for key, value in compose(typed).to_dict().items() if key not in NAMES}
            for typed in ([f"recipe={path}"], overrides)
        )
    changed = differences(theirs, mine)
    if changed:
        again = shlex.join(["python", "-m", "edgetrain", *overrides])
        raise UserError(
            f"{path} does not give {listing(changed)} as trial {best.number} had it; repeat that with: {again}"
        )
    return path


def retrain(best: FrozenTrial, recipe: Path, sweep: Sweep, folder: RunFolder) -> list[str]:
    """Train the best recipe with seeds that no trial has used, as a study below runs/, or go on with it.

    Returns a sentence for each of its runs that failed. Raises Interrupted.
    """
    place = retraining(best, folder)
    if (place.path / "config.yaml").is_file():
        trust = [f"trust=[{','.join(sweep.packages)}]"] if sweep.packages else []
        study, place = resumed_study(str(place.path), [*trust, f"parallel={sweep.options.parallel}"])
    else:
        fresh = max(sweep.seeds) + 1
        seeds = list(range(fresh, fresh + sweep.options.retrain))
        study = plan([f"recipe={recipe}", f"seeds={seeds}", f"parallel={sweep.options.parallel}"], smoke=sweep.smoke)
        place.path.mkdir(parents=True, exist_ok=True)
    return run_study(study, place)


def retraining(best: FrozenTrial, folder: RunFolder) -> RunFolder:
    """Where the best trial is trained again; a trial that was the best before keeps its own."""
    return RunFolder(folder.path / "runs" / f"best_trial{best.number}")


def runs_of(study: RunFolder) -> list[RunFolder]:
    """Its finished and unfinished runs, in the order of their seeds."""
    places = [path for path in study.path.glob("runs/seed*") if path.is_dir()]
    return [RunFolder(path) for path in sorted(places, key=lambda path: int(path.name.removeprefix("seed")))]
