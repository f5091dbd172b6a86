"""Which benches there are and what they accept, read from their source: nothing here imports torch."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetrain.config import GROUPS, node_problems
from edgetrain.errors import UserError, listing, nearest

RUNTIME = {"folder"}  # passed to every bench, so that no command line names it


@dataclass(frozen=True)
class Bench:
    """One bench: its module in this folder, a sentence, and its keys with their defaults as one types them."""

    name: str
    sentence: str
    keys: dict[str, str]


def benches() -> dict[str, Bench]:
    """Every module of this folder that defines a function of its own name, by name, sorted."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == path.stem:
                sentence = (ast.get_docstring(node) or "").partition("\n")[0]
                defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                keys = {key.arg: _shown(value) for key, value in defaults if value is not None}
                found[path.stem] = Bench(path.stem, sentence, keys)
    return found


def checked(name: str, arguments: list[str]) -> dict[str, Any]:
    """The keyword arguments of a bench from `key=value` in Hydra's grammar.

    A bench that has `overrides` gets there, as text, what is addressed to a recipe: groups and dotted keys.
    Raises UserError for an unknown bench, and for all unknown keys and wrong types at once.
    """
    known = benches()
    if name not in known:
        raise UserError(f"there is no bench '{name}'{nearest(name, known)}; benches: {listing(known)}")
    passed_on = [text for text in arguments if "overrides" in known[name].keys and is_override(text)]
    values = parsed([text for text in arguments if text not in passed_on])
    if passed_on:
        values["overrides"] = passed_on
    problems = node_problems(name, {"_target_": f"edgetrain.bench.{name}.{name}", **values}, RUNTIME)
    if problems:
        raise UserError("\n".join(problems))
    return values


def is_override(text: str) -> bool:
    """Whether `key=value` names a recipe's group or a key inside one."""
    key = text.partition("=")[0].lstrip("+~")
    return key.partition(".")[0] in GROUPS


def parsed(arguments: list[str]) -> dict[str, Any]:
    """Plain values from `key=value`. Raises UserError for what is not of that form."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    parser, values = OverridesParser.create(), {}
    for text in arguments:
        try:
            override = parser.parse_override(text)
            value = override.value()
        except HydraException as error:
            raise UserError(f"'{text}' is not key=value: {str(error).splitlines()[0]}") from error
        if override.is_sweep_override() or override.is_delete() or override.is_add():
            raise UserError(f"'{text}' is not key=value: a bench takes one value a key; a list is key=[a,b]")
        values[override.key_or_group] = value
    return OmegaConf.to_container(OmegaConf.create(values))


def _shown(default: ast.expr) -> str:
    """A default as one types it; what is no literal stands as it is written."""
    try:
        return _typed(ast.literal_eval(default))
    except ValueError:
        return ast.unparse(default)


def _typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_typed, value))}]" if isinstance(value, list | tuple) else str(value)
