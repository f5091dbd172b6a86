"""Finds recipes and configuration options. Nobody else knows where they are.

Recipes: the package's own, then ./recipes, then each folder of $EDGETRAIN_RECIPES; later wins. Or any path that ends in
.yaml. Options (conf/<group>/<option>.yaml): the package's own, then `conf` beside the recipe or beside its recipes
folder, then ./conf; later wins.
"""

import itertools
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgetrain.errors import UserError, listing, nearest
from edgetrain.folder import write_atomic

VARIABLE = "EDGETRAIN_RECIPES"


@dataclass(frozen=True)
class Header:
    """The leading comment of a recipe: a sentence, then labelled lines."""

    sentence: str = ""
    paper: str = ""
    claim: str = ""
    needs: str = ""
    run: str = ""


def packaged(name: str) -> Path:
    """The package's own `recipes` or `conf`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    return package / name if (package / name).is_dir() else package.parent / name


def find(name_or_path: str) -> Path:
    """The file of a recipe. Says so on stderr when a user's recipe stands in for one of the same name.

    Raises UserError for an unknown recipe.
    """
    if name_or_path.endswith(".yaml"):
        path = Path(name_or_path).expanduser()
        if not os.path.isfile(path):  # False, where Path.is_file raises, for a name that is too long
            raise UserError(f"recipe={name_or_path}: there is no such file")
        return path.resolve()
    places = [folder / f"{name_or_path}.yaml" for folder in _folders()]
    found = [path for path in places if os.path.isfile(path)]
    if not found or Path(name_or_path).name != name_or_path:
        known = sorted(all_recipes())
        raise UserError(
            f"recipe={name_or_path}: no such recipe{nearest(name_or_path, known)}; recipes: {listing(known) or 'none'}"
        )
    if len(found) > 1:
        print(f"recipe {name_or_path}: {found[-1]} takes the place of {found[-2]}", file=sys.stderr)
    return found[-1]


def all_recipes() -> dict[str, Path]:
    """Every recipe by name, sorted. Raises UserError when $EDGETRAIN_RECIPES names something that is no folder."""
    found = {path.stem: path for folder in _folders() for path in folder.glob("*.yaml")}
    return dict(sorted(found.items()))


def _folders() -> list[Path]:
    named = [Path(entry).expanduser() for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
    for folder in named:
        if not folder.is_dir():
            raise UserError(f"{VARIABLE}: {folder} is not a folder")
    return _existing([packaged("recipes"), Path("recipes"), *named])


def _existing(folders: list[Path]) -> list[Path]:
    """The folders that exist, each once (the working directory is often the checkout)."""
    return list(dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir()))


def copy_recipe(source: str, name: str) -> Path:
    """Write recipes/<name>.yaml here as a copy of a recipe, to be edited; its Run: line names the copy.

    Raises UserError for an unknown source, a name that is not a plain word, or one that is taken.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise UserError(f"'{name}' cannot name a recipe; use letters, digits and _")
    path = Path("recipes") / f"{name}.yaml"
    if path.exists():
        raise UserError(f"{path} is there already; choose another name, or edit it")
    original = find(source)
    write_atomic(path, _read(original).replace(f"recipe={original.stem}", f"recipe={name}"))
    return path


def options(recipe: Path | None = None) -> dict[str, dict[str, Path]]:
    """Every option: {group: {option: file}}. `recipe`: the file whose neighbouring conf folders count too."""
    beside = [recipe.parent / "conf"] if recipe else []
    if recipe and recipe.parent.name == "recipes":
        beside.append(recipe.parent.parent / "conf")
    found: dict[str, dict[str, Path]] = {}
    for folder in _existing([packaged("conf"), *beside, Path("conf")]):
        for path in sorted(folder.glob("*/*.yaml")):
            found.setdefault(path.parent.name, {})[path.stem] = path
    return found


def provenance(recipe: str, node: dict[str, Any], group: str = "data") -> list[str]:
    """What the option file of a node says of its source and licence: its leading comment, line by line.

    That file is the one with the node's target and path, else one whose path is left open. Empty where there is none.
    """
    fitting: dict[Any, Path] = {}
    for path in options(find(recipe)).get(group, {}).values():
        option = load_yaml(path)
        if option.get("_target_") == node.get("_target_"):
            fitting.setdefault(option.get("path"), path)
    path = fitting.get(node.get("path"), fitting.get("???"))
    if path is None:
        return []
    comment = itertools.takewhile(lambda line: line.startswith("#"), _read(path).splitlines())
    return [line.lstrip("#").strip() for line in comment]


def header(path: Path) -> Header:
    """Read from the leading comment lines, without parsing YAML. A line without a label continues the one above it."""
    texts = {"sentence": ""}
    current = "sentence"
    for line in _read(path).splitlines():
        if not line.startswith("#"):
            break
        line = line.lstrip("#").strip()
        label = re.match(r"(Paper|Claim|Needs|Run):\s*", line)
        if label:
            current, line = label[1].lower(), line[label.end() :]
        texts[current] = f"{texts.get(current, '')} {line}".strip()
    return Header(**texts)


class _Loader(yaml.CSafeLoader):
    """YAML as OmegaConf reads it, 40 times faster: floats as in YAML 1.2, no dates, no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands here twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":float", ":timestamp"))]
    for letter, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",  # YAML 1.1, PyYAML's default, reads 1e-3 as text
    re.compile(
        r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises UserError with file and line when it cannot be read, is not UTF-8, is not YAML, or is not a mapping.
    """
    text = _read(path)
    try:
        value = yaml.load(text, _Loader)  # a subclass of the safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected keys and values at the top level, found a {type(value).__name__}")
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
