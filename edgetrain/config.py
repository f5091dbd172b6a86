"""The schema: what a composed recipe may contain. Everything is checked here before anything heavy is imported.

`find_problems` collects every error; each line has the key as typed, the value, what was expected and
the nearest valid name.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Required, TypedDict, get_type_hints

from edgetrain.annotations import fits
from edgetrain.errors import UserError, listing, nearest
from edgetrain.signatures import home, signature

Node = dict[str, Any]

SINGLE_GROUPS = ("job", "data", "model", "task", "optimizer", "trainer")
LIST_GROUPS = ("method", "measure", "hardware", "export", "logger")
GROUPS = SINGLE_GROUPS + LIST_GROUPS
MISSING = "???"

# Required arguments that are passed when the object is built, so that no recipe names them.
RUNTIME = {
    "task": {"model", "methods", "optimizer"},
    "optimizer": {"params"},
    "trainer": {"callbacks", "logger", "default_root_dir"},
    "logger": {"save_dir"},
    "measure": {"trained", "folder"},
}

# What a run folder or a checkpoint from elsewhere may name without trust=[package]: these rooms, which define what
# recipes build, and library classes. The capital letter keeps out functions, and modules that a module imports.
TRUSTED_ROOMS = (
    r"edgetrain\.(jobs|xr|federated|privacy|evaluation|export|decoding|tasks|methods|models|data|hardware)\."
)
TRUSTED = re.compile(
    r"torch\.optim\.(lr_scheduler\.)?[A-Z]\w*"
    r"|lightning(\.pytorch)?\.Trainer"
    r"|lightning\.pytorch\.(callbacks|loggers|strategies)\.[A-Z]\w*"
    r"|transformers\.AutoModel\w*\.from_(pretrained|config)"
    r"|timm\.create_model"
    r"|torchvision\.transforms\.v2\.[A-Z]\w*"
)


PAIR = {"variant", "against"}  # a claim's keys that make it a comparison


class Claim(TypedDict, total=False):
    """A paper's claim, judged by a metric of the run; `above` and `below` are numbers or names of other metrics.

    unless: a metric that, when it is not 0, makes the figure one that may not be quoted; margin: the smallest
    difference from the bound that counts, for figures of one seed. variant, against: two variants of a study; then the
    metric's difference between them, `variant` minus `against`, is judged, and the bound is a number.
    """

    effect: Required[str]
    paper: Required[str]
    metric: Required[str]
    above: float | str | None
    below: float | str | None
    unless: str | None
    margin: float | None
    variant: str
    against: str


class StudyFigure(TypedDict, total=False):
    """A figure over a study's variants: their means over the seeds, and the spread.

    One of table (columns x and y of a table that every run writes), curve (a logged quantity over x, `step` or another
    logged quantity), bars (metrics) and points (two metrics, x and y, a point a variant; variants whose names are alike
    up to the last underscore are joined). boxes: limits on x by name, each drawn as the area up to it.
    """

    title: Required[str]
    table: str
    curve: str
    bars: list[str]
    points: list[str]
    boxes: dict[str, float]
    log_x: bool
    x: str
    y: str
    x_label: str
    y_label: str
    log_y: bool


class StudyResult(TypedDict, total=False):
    """What a study shows. metrics: names, * stands for anything; by default those of the claims, losses and speed.

    folds: seeds that are equal modulo this number share what is held out, such as a speaker: their runs are averaged
    before anything is compared, as they are not independent.
    """

    metrics: list[str]
    folds: int
    figures: list[dict[str, Any]]  # each a StudyFigure


@dataclass(frozen=True)
class Config:
    """One run. Plain containers only, so that a checkpoint that holds it loads with weights_only=True."""

    recipe: str
    description: str = ""  # the recipe's first sentence
    seed: int = 0
    out: str | None = None  # the run folder; None makes outputs/<recipe>/<time>-<id>
    init_from: str | None = None  # weights only: a checkpoint, a Hugging Face folder, or recipe:NAME
    resume: str | None = None  # a run folder to continue
    trust: list[str] = field(default_factory=list)  # packages that a run folder from elsewhere may name
    variant: str | None = None
    baseline: str | None = None  # a finished run to compare with
    job: Node | None = None
    data: Node | None = None
    model: Node | None = None
    task: Node | None = None
    optimizer: Node | None = None
    trainer: Node | None = None
    method: dict[str, Node] = field(default_factory=dict)
    measure: dict[str, Node] = field(default_factory=dict)
    hardware: dict[str, Node] = field(default_factory=dict)
    export: dict[str, Node] = field(default_factory=dict)
    logger: dict[str, Node] = field(default_factory=dict)
    smoke: list[str] = field(default_factory=list)  # overrides that shrink the run to seconds
    variants: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)  # not empty: a study of every variant with every seed
    parallel: int = 1  # a study's runs at a time
    study: StudyResult = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """A copy in plain containers, as saved in the run folder's config.yaml."""
        return dataclasses.asdict(self)


def defaults() -> dict[str, Any]:
    """The keys outside the groups that need not be given, with their defaults."""
    plain = Config(recipe="").to_dict()
    return {key: value for key, value in plain.items() if key not in (*GROUPS, "recipe")}


def make(raw: dict[str, Any]) -> Config:
    """The configuration of a mapping without problems. An empty node counts as not picked."""
    return Config(**{key: value for key, value in raw.items() if value or key not in GROUPS})


def find_problems(raw: dict[str, Any], options: dict[str, Iterable[str]] | None = None) -> list[str]:
    """Everything wrong with a composed configuration. `options`: {group: names} that exist, to suggest from."""
    options = options or {}
    fields = {item.name: item for item in dataclasses.fields(Config)}
    problems = []
    for key, value in raw.items():
        if key not in fields:
            problems.append(f"{_shown(key, value)}: no such key{nearest(str(key), fields)}")
        elif key in SINGLE_GROUPS:
            problems += _single_problems(key, value, options.get(key, ()))
        elif key in LIST_GROUPS:
            problems += _list_problems(key, value, options.get(key, ()))
        elif key == "claims":
            problems += _claim_problems(value)
        elif key == "study":
            problems += _study_problems(value)
        elif value == MISSING:
            problems.append(f"{key}: missing")
        else:
            expected = inspect.formatannotation(fields[key].type)
            if not fits(value, expected) or any(_nodes(value, "")):  # nothing is built outside the groups
                problems.append(f"{_shown(key, value)}: expected {expected}")
    return problems


def _single_problems(group: str, node: Any, options: Iterable[str]) -> list[str]:
    if not node and (node is None or isinstance(node, dict)):
        return []
    if not isinstance(node, dict):
        return [f"{_shown(group, node)}: expected keys and values with a _target_, or an option: {listing(options)}"]
    if "_target_" not in node:
        return [
            f"{group} has no _target_ but sets {listing(node)}; pick an option with {group}=NAME: {listing(options)}"
        ]
    return node_problems(group, node, RUNTIME.get(group, set()))


def _list_problems(group: str, entries: Any, options: Iterable[str]) -> list[str]:
    if not entries and (entries is None or isinstance(entries, dict | list)):
        return []
    if not isinstance(entries, dict):
        return [f"{_shown(group, entries)}: expected entries by name, such as {group}.{next(iter(options), 'NAME')}"]
    problems = []
    for name, node in entries.items():
        key = f"{group}.{name}"
        if not isinstance(node, dict):
            problems.append(f"{_shown(key, node)}: expected keys and values with a _target_")
        elif "_target_" in node:
            problems += node_problems(key, node, RUNTIME.get(group, set()))
        elif name in options:
            problems.append(f"{key} has no _target_; '{name}' is not picked, add it with {group}=[...,{name}]")
        else:
            known = [*options, *(other for other in entries if other != name)]
            problems.append(f"{key} has no _target_; {group} has no such option{nearest(name, known)}")
    return problems


def node_problems(path: str, node: Node, runtime: set[str]) -> list[str]:
    """A node against the signature of its target, and the nodes inside it."""
    target = node["_target_"]
    if not isinstance(target, str) or target == MISSING:
        return [f"{_shown(path + '._target_', target)}: expected a dotted path"]
    try:
        accepted = signature(target)
    except UserError as error:
        return [f"{path}._target_={target}: {error}"]
    name = target.rpartition(".")[2]
    problems = []
    for key, value in node.items():
        parameter = accepted.parameters.get(key)
        if key in ("_target_", "_partial_"):
            continue
        if parameter is None and not accepted.open_ended:
            known = nearest(key, accepted.parameters) or f"; it has {listing(accepted.parameters) or 'none'}"
            problems.append(f"{_shown(f'{path}.{key}', value)}: {name} has no parameter '{key}'{known}")
        elif value == MISSING:
            expected = f" ({parameter.annotation})" if parameter and parameter.annotation else ""
            problems.append(f"{path}.{key}: missing, {name} needs a value{expected}")
        elif parameter and not fits(value, parameter.annotation):
            problems.append(f"{_shown(f'{path}.{key}', value)}: expected {parameter.annotation}")
        else:
            problems += _inner_problems(f"{path}.{key}", value)
    if not node.get("_partial_"):
        for key, parameter in accepted.parameters.items():
            if parameter.required and key not in node and key not in runtime:
                expected = f" ({parameter.annotation})" if parameter.annotation else ""
                problems.append(f"{path}.{key}: missing, {name} needs a value{expected}")
    return problems


def _inner_problems(path: str, value: Any) -> list[str]:
    if isinstance(value, dict) and "_target_" in value:
        return node_problems(path, value, set())
    if value == MISSING:
        return [f"{path}: missing"]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [problem for key, item in items for problem in _inner_problems(f"{path}.{key}", item)]


def _claim_problems(claims: Any) -> list[str]:
    if not isinstance(claims, list):
        return [f"{_shown('claims', claims)}: expected a list"]
    problems = []
    for number, claim in enumerate(claims):
        path = f"claims.{number}"
        problems += _typed_problems(path, claim, Claim)
        if not isinstance(claim, dict) or not PAIR & claim.keys():
            continue
        problems += [f"{path}.{key}: missing, a comparison has two variants" for key in sorted(PAIR - claim.keys())]
        bounds = [value for value in (claim.get("above"), claim.get("below")) if value is not None]
        if len(bounds) != 1 or isinstance(bounds[0], str):
            problems.append(f"{path}: a comparison of variants takes one number, above or below")
    return problems


def _study_problems(study: Any) -> list[str]:
    problems = _typed_problems("study", study, StudyResult)
    if problems:
        return problems
    if study.get("folds", 1) < 1:
        problems.append(f"study.folds={study['folds']}: at least one")
    for number, figure in enumerate(study.get("figures", [])):
        path = f"study.figures.{number}"
        wrong = _typed_problems(path, figure, StudyFigure)
        if not wrong:
            kinds = [kind for kind in ("table", "curve", "bars", "points") if kind in figure]
            needed = {"table": {"x", "y"}, "curve": {"x"}, "bars": set(), "points": set()}
            if len(kinds) != 1:
                wrong = [f"{path}: draws one of table, curve, bars or points; it has {listing(kinds) or 'none'}"]
            elif kinds == ["points"] and len(figure["points"]) != 2:
                wrong = [f"{path}.points: two metrics, one for each axis, not {len(figure['points'])}"]
            else:
                missing = sorted(needed[kinds[0]] - figure.keys())
                wrong = [f"{path}.{key}: missing, a figure of a {kinds[0]} needs it" for key in missing]
        problems += wrong
    return problems


def _typed_problems(path: str, value: Any, kind: type) -> list[str]:
    """A plain mapping against a TypedDict."""
    kinds = {key: inspect.formatannotation(expected) for key, expected in get_type_hints(kind).items()}
    if not isinstance(value, dict):
        return [f"{_shown(path, value)}: expected the keys {listing(kinds)}"]
    problems = []
    for key, item in value.items():
        if key not in kinds:
            problems.append(f"{_shown(f'{path}.{key}', item)}: no such key{nearest(str(key), kinds)}")
        elif not fits(item, kinds[key]):
            problems.append(f"{_shown(f'{path}.{key}', item)}: expected {kinds[key]}")
    return problems + [f"{path}.{key}: missing" for key in sorted(kind.__required_keys__ - value.keys())]


def _shown(key: str, value: Any) -> str:
    """key=value for a message, cut to a readable length."""
    text = repr(value)
    return f"{key}={text if len(text) <= 60 else text[:57] + '...'}"


def check_trust(config: Config | dict[str, Any]) -> None:
    """For a configuration from a run folder or a checkpoint: it may name only what is known to be harmless.

    Raises UserError that names each other target and what to add. Imports nothing, so call it before `find_problems`.
    """
    raw = config.to_dict() if isinstance(config, Config) else config
    trust = raw.get("trust")
    trust = trust if isinstance(trust, list) else []  # of another type, which the schema reports
    problems = []
    for path, target, remote in _foreign(raw):
        package = target.partition(".")[0]
        if package not in trust:
            why = "runs downloaded code" if remote else "is not on the list of known targets"
            problems.append(f"{path}: {target} {why}; if you trust where this comes from, add trust=[{package}]")
    if problems:
        raise UserError("\n".join(problems))


def foreign_packages(config: Config) -> list[str]:
    """What `trust` has to name for this configuration to be read back from a run folder."""
    return sorted({target.partition(".")[0] for _, target, _ in _foreign(config.to_dict())})


def _foreign(raw: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Path and target of every node that is not known to be harmless, and whether it runs downloaded Python."""
    for path, node in _nodes({group: raw.get(group) for group in GROUPS}, ""):
        target, remote = str(node["_target_"]), bool(node.get("trust_remote_code"))
        if remote or not _is_known(target):
            yield path, target, remote


def _is_known(target: str) -> bool:
    # `home` sees through re-exports: edgetrain.folder.os.remove is not edgetrain's.
    where = home(target) or ""
    return bool(TRUSTED.fullmatch(target) or (target.startswith("edgetrain.") and re.match(TRUSTED_ROOMS, f"{where}.")))


def _nodes(value: Any, path: str) -> Iterator[tuple[str, Node]]:
    """Every mapping with a `_target_`, at any depth, with its path."""
    if isinstance(value, dict) and "_target_" in value:
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _nodes(item, f"{path}.{key}".lstrip("."))
