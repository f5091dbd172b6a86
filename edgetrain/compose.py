"""From what a user typed to a checked configuration: Hydra composes, this file keeps the laws that Hydra does not.

1. Layers: recipe < variant < smoke < command line.
2. A group chosen in one layer drops what the layers below had set inside that group, and says so.
3. A node of the recipe that names its own `_target_` replaces the option's node whole.
4. Groups that take a list keep every entry, in order, under the option's name.
5. An option may be the path of a YAML file; it is then known by the file's name.
6. Unknown keys, options and recipes are errors that list what exists, all at once, the recipe's own included.
"""

import copy
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from edgetrain import recipes
from edgetrain.annotations import fits
from edgetrain.config import GROUPS, LIST_GROUPS, MISSING, Config, check_trust, defaults, find_problems, make
from edgetrain.errors import UserError, listing, nearest
from edgetrain.processes import is_first

DEFAULT_RECIPE = "layerskip_llama"

# Hydra's own groups, left out: they configure its command line, which is not used, and cost a third of the time.
UNUSED = [
    f"~hydra/{group}"
    for group in ("output", "launcher", "sweeper", "help", "hydra_help", "hydra_logging", "job_logging")
]

Picks = dict[str, str | list[str] | None]  # group -> option, or options in order


@dataclass(frozen=True)
class Source:
    """Where a run starts from: a recipe, or the configuration saved in a run folder."""

    name: str
    body: dict[str, Any]
    picks: Picks
    options: dict[str, dict[str, Path]]  # group -> option -> file


@dataclass
class Plan:
    """What is left for Hydra when the layers are settled."""

    picks: Picks
    body: dict[str, Any]
    values: list[Override] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def compose(
    overrides: list[str], smoke: bool = False, base: dict[str, Any] | None = None, foreign: bool = False
) -> Config:
    """The checked configuration of `recipe=NAME key=value ...`; `smoke` applies the recipe's smoke list.

    `base`: a configuration read from a run folder, used instead of a recipe; its targets must be trusted (check_trust).
    `foreign`: the overrides were read from a run folder; what they name must be trusted too.
    Raises one UserError that lists every problem, those of the chosen variant and of the smoke list too.
    """
    named, texts = _split(overrides, "recipe")
    variant, texts = _split(texts, "variant")
    command_line = _parse(texts)
    if base is not None and (named or variant):
        raise UserError("recipe= and variant= choose a new run; this one's were chosen when it was made")
    source = _saved(base) if base is not None else _read(named or DEFAULT_RECIPE)
    chosen = _variant(source, variant)
    shrunk = _smoke(source.body)
    foreign = foreign or base is not None

    raw, notices, problems = _attempt(source, [chosen, command_line], variant, foreign)
    if problems and chosen:  # which of them are the variant's?
        others = _attempt(source, [command_line], None, foreign)[2]
        problems = [line if line in others else f"variant {variant}: {line}" for line in problems]
    if smoke or base is None:
        small, small_notices, faults = _attempt(source, [chosen, shrunk, command_line], variant, foreign)
        known = {line.removeprefix(f"variant {variant}: ") for line in problems}
        problems += [f"smoke: {line}" for line in faults if line not in known]
        if smoke:
            raw, notices = small, small_notices
    if problems:
        raise UserError("\n".join(problems))
    for notice in notices if is_first() else ():
        print(notice, file=sys.stderr)
    return make(raw)


def as_recipe(overrides: list[str]) -> dict[str, Any]:
    """The body of a recipe file that alone composes to what `recipe=NAME key=value ...` does, for one run of it.

    Choices of groups stand under `defaults`, values in their places. The smoke list keeps what the overrides leave of
    it; a study's keys, and claims that compare its variants, are left out. `~key` cannot be said in a file.
    """
    named, texts = _split(overrides, "recipe")
    variant, texts = _split(texts, "variant")
    source, command_line = _read(named or DEFAULT_RECIPE), _parse(texts)
    plan = _settle(source, [_variant(source, variant), command_line])
    for override in plan.values:
        *path, last = override.key_or_group.split(".")
        node = plan.body
        for name in path:
            node = node.setdefault(name, {})
        value = override.value()
        node[last] = node[last] | value if isinstance(value, dict) and isinstance(node.get(last), dict) else value
    typed = {override.key_or_group for override in command_line} | {"seeds"}
    smoke = _smoke(plan.body)
    kept = [one.input_line for one in smoke if not typed & {one.key_or_group, one.key_or_group.partition(".")[0]}]
    claims = [claim for claim in plan.body.get("claims", []) if "variant" not in claim]
    left_out = ("description", "variants", "seeds", "parallel", "study", "claims", "smoke")
    body = {key: value for key, value in plan.body.items() if key not in left_out}
    defaults = [{f"override /{group}": pick} for group, pick in plan.picks.items()]
    return {"defaults": defaults} | body | ({"claims": claims} if claims else {}) | {"smoke": kept}


# What was typed


def _split(texts: list[str], key: str) -> tuple[str | None, list[str]]:
    """The last value given for `key=`, and the other overrides. By hand: Hydra's grammar does not take every path."""
    values = [text.partition("=")[2] for text in texts if text.partition("=")[0] == key]
    if values and "," in values[-1]:
        several = f"for a study write {key}=[...]" if key == "variant" else "for several use the verb sweep"
        raise UserError(f"{key}={values[-1]}: one run has one {key}; {several}")
    return (values[-1] if values else None), [text for text in texts if text.partition("=")[0] != key]


def _parse(texts: list[str]) -> list[Override]:
    """Overrides in Hydra's grammar. Raises UserError that lists those that are malformed or ask for several values."""
    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in texts:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.append(f"'{text}' is not key=value: {reason}; quote what has spaces or commas: \"key='a, b'\"")
            continue
        key = override.key_or_group
        if not key:
            problems.append(f"'{text}' has no key; an override is key=value")
        elif override.is_sweep_override():
            listed = f", or a list: {key}=[...]" if key in LIST_GROUPS else ""
            problems.append(f"{text}: one run takes one value; for several use the verb sweep{listed}")
        elif override.package is not None or "/" in key or key.partition(".")[0] == "hydra":
            problems.append(f"{text}: groups and keys are addressed by name and dots, as in data.limit=8")
        elif key in ("recipe", "variant", "defaults"):
            problems.append(f"{text}: {key} is chosen on the command line only, as {key}=NAME")
        else:
            parsed.append(override)
    if problems:
        raise UserError("\n".join(problems))
    return parsed


# Where it starts from


def _read(name_or_path: str) -> Source:
    path = recipes.find(name_or_path)
    body = {"description": recipes.header(path).sentence} | recipes.load_yaml(path)
    for key in ("recipe", "variant"):
        if key in body:
            raise UserError(f"{path}: {key} is chosen on the command line only, as {key}=NAME")
    defaults = body.pop("defaults", [])
    picks: Picks = {}
    for entry in defaults if isinstance(defaults, list) else [defaults]:
        if entry == "_self_":
            continue
        (key, pick), *more = entry.items() if isinstance(entry, dict) and entry else [(str(entry), None)]
        group = key.removeprefix("override /")
        if more or group == key or group not in GROUPS:
            raise UserError(
                f"{path}: defaults: '{key}' is not understood{nearest(group.rpartition('/')[2], GROUPS)}; "
                f"an entry is '- override /GROUP: OPTION', the groups are {listing(GROUPS)}"
            )
        picks[group] = _pick(group, pick)
    return Source(path.stem, body, picks, recipes.options(path))


def _saved(base: dict[str, Any]) -> Source:
    """A run folder's configuration. Its own `trust` is not honoured: trust is the reader's to give."""
    body = {key: value for key, value in copy.deepcopy(base).items() if key not in ("recipe", "trust")}
    active = re.search(r"\$\{[^}]*:[^}]*\}", str(body))
    if active:
        raise UserError(f"{active[0]}: a saved configuration holds plain values; it may not read the environment")
    return Source(str(base.get("recipe")), body, {}, recipes.options())


def _variant(source: Source, name: str | None) -> list[Override]:
    variants = source.body.get("variants") or {}
    if name is None or not isinstance(variants, dict):
        return []
    if name not in variants:
        known = listing(variants) or "none"
        raise UserError(
            f"variant={name}: {source.name} has no such variant{nearest(name, variants)}; variants: {known}"
        )
    return _list_of_overrides(variants[name], f"variant {name}: ")


def _smoke(body: dict[str, Any]) -> list[Override]:
    """The smoke list without `variant=[...]`, which is for who plans a study."""
    texts = body.get("smoke")
    kept = [text for text in texts if not str(text).startswith("variant=")] if isinstance(texts, list) else texts
    return _list_of_overrides(kept)


def _list_of_overrides(texts: Any, prefix: str = "smoke: ") -> list[Override]:
    """A recipe's list of overrides; of a wrong type, nothing, since the schema reports that."""
    if not fits(texts, "list[str]"):
        return []
    try:
        return _parse(texts)
    except UserError as error:
        raise UserError("\n".join(prefix + line for line in str(error).splitlines())) from error


# The laws


def _settle(source: Source, layers: list[list[Override]]) -> Plan:
    """Apply laws 1 and 2: the last choice of each group, and the values that still hold."""
    plan = Plan(dict(source.picks), copy.deepcopy(source.body))
    for layer in layers:
        for override in layer:
            group = override.key_or_group
            if group not in GROUPS:
                continue
            pick = _pick(group, None if override.is_delete() else override.value())
            if override.is_add() and group in LIST_GROUPS:  # +method=x adds to the list
                plan.picks[group] = [*(plan.picks.get(group) or []), *pick]
                continue
            plan.picks[group] = pick
            _drop(plan, group, override.input_line)
        plan.values += [override for override in layer if override.key_or_group not in GROUPS]
    return plan


def _drop(plan: Plan, group: str, because: str) -> None:
    inside = plan.body.pop(group, None) or {}
    stale = [value for value in plan.values if value.key_or_group.startswith(f"{group}.")]
    plan.values = [value for value in plan.values if value not in stale]
    dropped = [*(inside if isinstance(inside, dict) else []), *(item.key_or_group[len(group) + 1 :] for item in stale)]
    if dropped:
        plan.notices.append(
            f"{because} drops what the recipe had set inside {group}: {listing(dict.fromkeys(dropped))}"
        )


def _pick(group: str, value: Any) -> str | list[str] | None:
    """One option's name, or for a list group the names in order. Raises UserError for anything else."""
    names = value if isinstance(value, list) else [] if value is None else [value]
    names = [str(name) for name in names if not isinstance(name, dict | list)] if names else []
    expected = len(value) if isinstance(value, list) else value is not None
    if len(names) != expected or (group not in LIST_GROUPS and isinstance(value, list)):
        takes = "a list of options" if group in LIST_GROUPS else "one option"
        raise UserError(f"{group}={value}: {group} takes {takes} by name; values inside it are {group}.KEY=VALUE")
    if group in LIST_GROUPS:
        return names
    return names[0] if names else None


def _by_path(source: Source, group: str, pick: str | list[str] | None) -> str | list[str] | None:
    """Options given as a path to a YAML file, known from now on by the file's name."""
    if isinstance(pick, list):
        return [str(_by_path(source, group, name)) for name in pick]
    if pick is None or not pick.endswith(".yaml"):
        return pick
    path = Path(pick).expanduser()
    if not os.path.isfile(path):  # False, where Path.is_file raises, for a name that is too long
        raise UserError(f"{group}={pick}: there is no such file")
    source.options.setdefault(group, {})[path.stem] = path
    return path.stem


def _option_nodes(plan: Plan, source: Source) -> dict[tuple[str, str], dict[str, Any]]:
    """The options picked and those they inherit from, with law 3 applied. Raises UserError that lists unknown ones."""
    nodes: dict[tuple[str, str], dict[str, Any]] = {}
    problems: list[str] = []

    def load(group: str, name: str) -> None:
        known = source.options.get(group, {})
        if name not in known:
            exists = listing(known) or "none"
            problems.append(f"{group}={name}: {group} has no option '{name}'{nearest(name, known)}; options: {exists}")
        elif (group, name) not in nodes:
            node = nodes[group, name] = recipes.load_yaml(known[name])
            parents = node.get("defaults", [])
            inherited = [entry for entry in (parents if isinstance(parents, list) else [parents]) if entry != "_self_"]
            for entry in inherited:
                load(group, str(entry).partition("@")[0])  # NAME@KEY puts the other option at a key of this one
            if inherited and group in LIST_GROUPS:  # else Hydra makes a second entry of it
                placed = (entry if "@" in str(entry) else f"{entry}@_here_" for entry in inherited)
                node["defaults"] = [*placed, "_self_"]
            mine = plan.body.get(group)
            if group in LIST_GROUPS:
                mine = mine.get(name) if isinstance(mine, dict) else None
            _make_way(node, mine)

    for group, pick in plan.picks.items():
        names = pick if isinstance(pick, list) else [pick] if pick else []
        twice = {name for name in names if names.count(name) > 1}
        problems += [f"{group}: '{name}' stands in the list twice" for name in sorted(twice)]
        for name in names:
            load(group, name)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return nodes


def _make_way(node: dict[str, Any], mine: Any) -> None:
    """Empty each mapping of an option that the recipe's own node, having its own `_target_`, replaces."""
    if not isinstance(mine, dict):
        return
    if "_target_" in mine:
        node.clear()
    for key, value in mine.items():
        if isinstance(node.get(key), dict):
            _make_way(node[key], value)


# Hydra


def _attempt(
    source: Source, layers: list[list[Override]], variant: str | None, foreign: bool
) -> tuple[dict[str, Any], list[str], list[str]]:
    """The composed mapping, notices, and problems (as lines, so that several forms can be reported together)."""
    try:
        plan = _settle(source, layers)
        plan.picks = {group: _by_path(source, group, pick) for group, pick in plan.picks.items()}
        plan.body = plan.body | {"recipe": source.name} | ({"variant": variant} if variant else {})
        composed = _hydra(plan, _option_nodes(plan, source))
    except UserError as error:
        return {}, [], str(error).splitlines()
    unresolved: dict[str, str] = {}
    raw = _resolved(composed, "", unresolved)
    if foreign:
        check_trust(raw)  # first: the schema's check may import a target
    others = [line for line in find_problems(raw, source.options) if re.split("[=:]", line)[0] not in unresolved]
    return raw, plan.notices, [*filter(None, unresolved.values()), *others]


def _hydra(plan: Plan, nodes: dict[tuple[str, str], dict[str, Any]]) -> DictConfig:
    """Hand everything to Hydra. Raises UserError for what it refuses."""
    overrides = [f"{group}={_quoted(pick)}" for group, pick in plan.picks.items() if pick]
    for value in plan.values:  # ++: an unknown key is for the schema to report, together with all others
        overrides.append(value.input_line if value.is_delete() else "++" + value.input_line.lstrip("+"))
    with _config_store() as store:
        primary = recipes.load_yaml(recipes.packaged("conf") / "config.yaml")
        try:
            store.store(name="config", node=primary | defaults())
            for (group, name), node in nodes.items():
                package = f"{group}.{name}" if group in LIST_GROUPS else None
                store.store(group=group, name=name, node=node, package=package)
            store.store(group="recipe", name="chosen", node=plan.body, package="_global_")
            with hydra.initialize(version_base="1.3", config_path=None):
                return hydra.compose("config", [*UNUSED, "recipe=chosen", *overrides])
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:  # TypeError: seeds.first=1
            lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
            raise UserError("; ".join(lines[:3])) from error


def _quoted(pick: str | list[str]) -> str:
    return f"[{','.join(map(_quoted, pick))}]" if isinstance(pick, list) else f"'{pick}'"


@contextmanager
def _config_store() -> Iterator[ConfigStore]:
    """Hydra's store, put back as it was: what one composition registers is nobody else's."""
    store = ConfigStore.instance()
    before = store.repo
    store.repo = {name: node for name, node in before.items() if name.startswith(("hydra", "_dummy"))}
    try:
        yield store
    finally:
        store.repo = before


def _resolved(node: DictConfig | ListConfig, path: str, unresolved: dict[str, str]) -> Any:
    """Plain containers, interpolations replaced; those that cannot be go into `unresolved` as {key: sentence}."""
    plain: dict[Any, Any] = {}
    for key in node.keys() if isinstance(node, DictConfig) else range(len(node)):
        where = f"{path}.{key}".lstrip(".")
        if OmegaConf.is_missing(node, key):
            plain[key] = MISSING
            continue
        try:
            value = node[key]
        except InterpolationToMissingValueError:
            unresolved[where], value = "", MISSING  # what it points to is reported as missing
        except OmegaConfBaseException as error:
            written = OmegaConf.to_container(node, resolve=False)[key]
            unresolved[where], value = f"{where}={written}: {str(error).splitlines()[0]}", MISSING
        plain[key] = _resolved(value, where, unresolved) if isinstance(value, DictConfig | ListConfig) else value
    return plain if isinstance(node, DictConfig) else list(plain.values())
