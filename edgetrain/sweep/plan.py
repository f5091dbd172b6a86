"""What a sweep's command line asks for, checked whole before anything starts: space, seeds, options, compositions.

Imports nothing heavy.
"""

import dataclasses
import inspect
import io
import re
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from edgetrain.annotations import fits
from edgetrain.compose import compose
from edgetrain.config import Config, foreign_packages
from edgetrain.errors import UserError, nearest
from edgetrain.study.plan import key_of
from edgetrain.sweep.space import Axis, Value, read_space

LOWER_IS_BETTER = ("loss", "perplexity")
CURVES = "csv"  # the logger whose file the pruner reads


@dataclass(frozen=True)
class Options:
    """How the space is searched. A trial's value is the mean of `metric` over its seeds.

    trials: of all machines together; parallel: trials at a time on this machine; direction: None stands for minimize,
    which is only assumed of a loss; storage: a database's URL, None for a file in the sweep's folder; name: of the
    study in that database, the recipe's by default; timeout: minutes for a run; retrain: fresh seeds for the best.
    """

    trials: int = 20
    parallel: int = 1
    metric: str = "test/loss"
    direction: Literal["minimize", "maximize"] | None = None
    storage: str | None = None
    name: str | None = None
    pruner: Literal["median", "none"] = "none"
    timeout: float | None = None
    retrain: int = 3

    def problems(self) -> list[str]:
        found = [
            f"{key}={value}: expected {readable(inspect.formatannotation(kind))}"
            for key, kind in inspect.get_annotations(Options).items()
            if not fits(value := getattr(self, key), inspect.formatannotation(kind))
        ]
        if found:
            return found
        if self.trials < 1:
            found.append(f"trials={self.trials}: at least one trial")
        if self.parallel < 1:
            found.append(f"parallel={self.parallel}: at least one trial at a time")
        if self.retrain < 0:
            found.append(f"retrain={self.retrain}: a number of seeds, 0 for none")
        if self.timeout is not None and not self.timeout > 0:
            found.append(f"timeout={self.timeout}: minutes, above 0, or null")
        if self.direction is None and not any(word in self.metric for word in LOWER_IS_BETTER):
            found.append(f"metric={self.metric}: say which way is better with direction=minimize or direction=maximize")
        if self.pruner == "median" and not self.metric.startswith("test/"):
            found.append(
                f"pruner=median compares validation/X with metric=test/X; metric={self.metric} is never validated"
            )
        if self.storage is not None and "://" not in self.storage:
            found.append(
                f"storage={self.storage}: expected a URL, as sqlite:///sweep.db or postgresql://user@host/database"
            )
        if self.name is not None and self.storage is None:
            found.append(
                f"name={self.name} names a study in a shared storage=URL; without one there is only this folder's"
            )
        return found

    @property
    def curve(self) -> str:
        """What the pruner compares while a trial is training."""
        return self.metric.replace("test/", "validation/", 1)


@dataclass(frozen=True)
class Sweep:
    """Many trials of one recipe.

    config: of the first values of every key; arguments: as typed; fixed: those that every trial has; packages: what a
    run that is resumed must be told to trust.
    """

    config: Config
    arguments: list[str]
    fixed: list[str]
    axes: list[Axis]
    seeds: list[int]
    options: Options
    smoke: bool = False
    packages: list[str] = field(default_factory=list)

    def overrides(self, values: dict[str, Value]) -> list[str]:
        """Of the recipe, for a point of the space."""
        typed = [text for text in self.fixed if key_of(text) != "out"]  # each run has a folder of its own
        return [*typed, *(axis.override(values[axis.key]) for axis in self.axes)]

    def arguments_of(self, values: dict[str, Value], seed: int) -> list[str]:
        """The command line of one run. It measures and exports only when the metric may depend on it: the best is
        trained again, and then all that the recipe lists is done."""
        logged: list[str] = []
        if self.options.pruner != "none":  # its curve has to reach the file while it trains
            logged = [] if CURVES in self.config.logger else [f"+logger=[{CURVES}]"]
            logged.append(f"logger.{CURVES}.flush_logs_every_n_steps=1")
        overrides = self.overrides(values)
        typed = {key_of(text).partition(".")[0] for text in overrides}
        lean = [group for group in ("measure", "export") if getattr(self.config, group) and group not in typed]
        skipped = [f"{group}=[]" for group in lean] if self.options.metric.startswith("test/") else []
        return [*overrides, *logged, *skipped, f"seed={seed}", *(["--smoke"] if self.smoke else [])]

    def identity(self) -> dict[str, Any]:
        """What all machines that share a storage have to agree on."""
        return {
            "recipe": self.config.recipe,
            "space": {axis.key: axis.spec() for axis in self.axes},
            "overrides": [text for text in self.fixed if key_of(text) not in ("recipe", "trust", "out")],
            "seeds": self.seeds,
            "metric": self.options.metric,
            "direction": self.options.direction,
            "pruner": self.options.pruner,
            "smoke": self.smoke,
        }


def plan_sweep(overrides: list[str], smoke: bool = False, foreign: bool = False) -> Sweep:
    """A sweep with every choice, and both ends of every interval, composed once.

    `foreign` as for `compose`. Raises UserError that lists every problem.
    """
    options, rest = read_options(overrides)
    axes, seeds, fixed = read_space(rest)
    problems = options.problems() + misplaced(fixed)
    if not axes:
        also = "; a recipe over several seeds alone is a study: seeds=[0,1,2] without the verb" if seeds else ""
        problems.append(
            "nothing is swept; give at least one key several values, as in 'optimizer.lr=tag(log,interval(1e-4,1e-2))' "
            f"or 'model.dim=64,128', in quotes{also}"
        )
    if problems:
        raise UserError("\n".join(problems))
    config, packages = composed(axes, fixed, smoke, foreign)
    options = dataclasses.replace(options, direction=options.direction or "minimize")
    return Sweep(config, overrides, fixed, axes, seeds or [config.seed], options, smoke, packages)


def read_options(overrides: list[str]) -> tuple[Options, list[str]]:
    """The sweep's own keys, the last of each, and all other overrides."""
    keys = {item.name for item in dataclasses.fields(Options)}
    typed = {key: text.partition("=")[2] for text in overrides if (key := text.partition("=")[0]) in keys}
    values = {
        key: value if key in ("storage", "name") and value != "null" else plain(value) for key, value in typed.items()
    }
    return Options(**values), [text for text in overrides if text.partition("=")[0] not in keys]


def readable(annotation: str) -> str:
    """For a message: "'median', 'none'" of Literal['median', 'none'], and `or null` for what may be None."""
    optional = " or null" if re.search("Optional|None", annotation) else ""
    return re.sub(r"typing\.|Optional|Literal|[\[\]]| \| None", "", annotation) + optional


def plain(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def misplaced(fixed: list[str]) -> list[str]:
    """What an ordinary run takes and a sweep cannot, and misspelt options."""
    problems = []
    known = [item.name for item in (*dataclasses.fields(Options), *dataclasses.fields(Config))]
    for text in fixed:
        key = key_of(text)
        if key == "recipe" and re.search(r"[,(]", text):
            problems.append(
                f"{text}: a sweep is over the values of one recipe; for several recipes start several sweeps"
            )
        elif key == "variant" and "[" in text:
            problems.append(f"{text}: variants are swept as variant=a,b")
        elif key == "out" and "," in text:
            problems.append(f"{text}: a comma in a sweep's folder would be read as two recipes; choose another name")
        elif key == "seeds":
            problems.append(f"{text}: a trial's seeds are written seed=0,1,2 or seed=range(3)")
        elif text.startswith("~"):
            problems.append(
                f"{text}: a sweep cannot take a key away, as its best recipe could not say so; set it instead"
            )
        elif "=" not in text or ("." not in key and key not in known):
            problems.append(f"{text}: no such key{nearest(key, known)}")
    return problems


def composed(axes: list[Axis], fixed: list[str], smoke: bool, foreign: bool) -> tuple[Config, list[str]]:
    """The configuration at the first values, and the packages that any value brings.

    Raises UserError with every problem of every value, each once.
    """
    first = {axis.key: axis.probes[0] for axis in axes}
    numbers = {axis.key: axis for axis in axes if not axis.choices}
    problems: dict[tuple[str, str], str] = {}  # by key, and by the reason alone where every value has it
    configs: list[Config] = []
    for axis in axes:
        for value in axis.probes:
            chosen = [each.override(value if each is axis else first[each.key]) for each in axes]
            try:
                with redirect_stderr(io.StringIO()):  # what a choice drops is said again in its run's log
                    configs.append(compose([*fixed, *chosen], smoke=smoke, foreign=foreign))
            except UserError as error:
                for line in str(error).splitlines():
                    key, _, rest = line.partition("=")
                    whatever = key in numbers or re.search("no such key|has no parameter", line)
                    problems.setdefault((key, rest.rpartition(": ")[2] if whatever else rest), line)
    if problems:
        hints = {
            key: f"; for whole numbers write {key}=int(interval({numbers[key].low:g},{numbers[key].high:g}))"
            for key, reason in problems
            if key in numbers and reason == "expected int"
        }
        raise UserError("\n".join(line + hints.get(key, "") for (key, _), line in problems.items()))
    return configs[0], sorted({package for config in configs for package in foreign_packages(config)})
