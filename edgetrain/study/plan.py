"""What a command line asks for: one run, or a study, whose runs are every variant of the recipe with every seed.

`variant=NAME` and `seed=K` pick one run. A recipe with `seeds: [...]` is a study otherwise, and the lists
`variant=[a,b]` and `seeds=[0,1]` narrow it, or make one of a recipe that has none; so does a `variant=[a,b]` in the
smoke list, when smoke is asked for. Imports nothing heavy.
"""

import dataclasses
import io
import re
from contextlib import redirect_stderr
from dataclasses import dataclass, field

from edgetrain.compose import compose
from edgetrain.config import Config, foreign_packages
from edgetrain.errors import UserError, listing, nearest

PICKS = ("variant", "seed", "seeds", "out")  # what a study says for each of its runs


@dataclass(frozen=True)
class Child:
    """One run of a study. variant: None where the recipe has no variants."""

    variant: str | None
    seed: int

    @property
    def name(self) -> str:
        return "_".join(filter(None, [self.variant, f"seed{self.seed}"]))


@dataclass(frozen=True)
class Study:
    """Many runs of one recipe.

    config: the recipe's without a variant, its `variants` and `seeds` those of this study; arguments: as typed;
    packages: what a run that is resumed must be told to trust.
    """

    config: Config
    arguments: list[str]
    smoke: bool = False
    packages: list[str] = field(default_factory=list)

    @property
    def children(self) -> list[Child]:
        """Seed by seed, so that a study stopped half-way has whole comparisons."""
        return [Child(variant, seed) for seed in self.config.seeds for variant in self.config.variants or [None]]

    def arguments_of(self, child: Child) -> list[str]:
        """The command line that makes this run and no other."""
        typed = [text for text in self.arguments if key_of(text) not in PICKS]
        picks = [f"variant={child.variant}"] if child.variant else []
        return [*typed, *picks, f"seed={child.seed}", *(["--smoke"] if self.smoke else [])]

    def outline(self) -> str:
        """The runs, a line each, as comments of YAML."""
        children = self.children
        lines = [f"# a study of {len(children)} runs, {self.config.parallel} at a time, from what stands below and:"]
        for child in children:
            changes = [*self.config.variants.get(child.variant, []), f"seed={child.seed}"]
            lines.append(f"#   {child.name}: {' '.join(changes)}")
        return "\n".join(lines)


def plan(overrides: list[str], smoke: bool = False, foreign: bool = False) -> Config | Study:
    """The checked configuration of one run, or a study with every run's configuration checked.

    `foreign` as for `compose`. Raises UserError that lists every problem, with the name of the run that has it.
    """
    typed = [text.partition("=")[2] for text in overrides if key_of(text) == "variant"]
    names = _names(typed[-1]) if typed else None
    seed = [text for text in overrides if key_of(text) == "seed"]
    several = (typed and _is_list(typed[-1])) or any(key_of(text) == "seeds" for text in overrides)
    if seed and several:
        raise UserError(f"{seed[-1]} picks one run, and a list of variants or seeds several; write seeds=[...] for all")
    if seed or (typed and not several):
        return compose(overrides, smoke=smoke, foreign=foreign)
    config = compose([text for text in overrides if key_of(text) != "variant"], smoke=smoke, foreign=foreign)
    if not config.seeds and names is None:
        return config
    if smoke and names is None:
        names = next((_names(text.partition("=")[2]) for text in config.smoke if key_of(text) == "variant"), None)
    return _checked(_narrowed(config, names), overrides, smoke, foreign)


def key_of(text: str) -> str:
    return text.partition("=")[0].lstrip("+")


def _is_list(value: str) -> bool:
    return value.startswith("[") and value.endswith("]")


def _names(value: str) -> list[str]:
    names = [name.strip(" '\"") for name in value.strip("[]").split(",")] if _is_list(value) else [value]
    if not all(names):
        raise UserError(f"variant={value}: expected names of variants, as in variant=[a,b]")
    return names


def _narrowed(config: Config, names: list[str] | None) -> Config:
    """With only the variants named, and a seed for certain. Raises UserError that lists what cannot be a study."""
    problems = []
    for name in names or []:
        if name not in config.variants:
            known = listing(config.variants) or "none"
            hint = nearest(name, config.variants)
            problems.append(f"variant={name}: {config.recipe} has no such variant{hint}; variants: {known}")
    problems += [f"variant {name}: not a word that can name a folder" for name in config.variants if not _WORD(name)]
    seeds = config.seeds or [config.seed]
    for key, entries in (("variant", names or []), ("seeds", seeds)):
        twice = dict.fromkeys(entry for entry in entries if entries.count(entry) > 1)
        problems += [f"{key}: {entry} stands in the list twice" for entry in twice]
    if config.parallel < 1:
        problems.append(f"parallel={config.parallel}: at least one run at a time")
    for number, claim in enumerate(config.claims):
        for key in ("variant", "against"):
            if key in claim and claim[key] not in config.variants:
                hint = nearest(claim[key], config.variants)
                problems.append(f"claims.{number}.{key}={claim[key]}: {config.recipe} has no such variant{hint}")
    if problems:
        raise UserError("\n".join(problems))
    variants = config.variants if names is None else {name: config.variants[name] for name in names}
    return dataclasses.replace(config, variants=variants, seeds=seeds)


_WORD = re.compile(r"\w[\w.-]*").fullmatch


def _checked(config: Config, overrides: list[str], smoke: bool, foreign: bool) -> Study:
    """The study, once every variant has been composed; a seed is a whole number and cannot make one wrong."""
    study = Study(config, overrides, smoke)
    problems, packages = [], set(foreign_packages(config))
    for child in study.children[: max(1, len(config.variants))]:
        arguments = [text for text in study.arguments_of(child) if text != "--smoke"]
        try:
            with redirect_stderr(io.StringIO()):  # what a variant drops is said again in its run's log
                packages |= set(foreign_packages(compose(arguments, smoke=smoke, foreign=foreign)))
        except UserError as error:
            lines = [line.removeprefix(f"variant {child.variant}: ") for line in str(error).splitlines()]
            problems += [f"{child.name}: {line}" for line in lines]
    if problems:
        raise UserError("\n".join(problems))
    return dataclasses.replace(study, packages=sorted(packages))
