"""What a `_target_` accepts, found by reading its source instead of importing it.

Importing torch costs about a second and lightning four; a mistyped key should be reported at once. So the target's file
is found by path, parsed with `ast`, and the class or function looked up through re-exports and base classes. Only what
cannot be read that way (compiled modules, lazy packages) is imported and inspected.
"""

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from edgetrain.annotations import fits
from edgetrain.errors import UserError, nearest

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Parameter:
    annotation: str | None
    required: bool


@dataclass(frozen=True)
class Signature:
    """The parameters of one target; `open_ended` when it takes any keyword (**kwargs)."""

    parameters: dict[str, Parameter]
    open_ended: bool = False


@dataclass(frozen=True)
class Source:
    """One parsed module: its top-level definitions, and the modules that it star-imports."""

    name: str
    names: dict[str, ast.AST] = field(default_factory=dict)
    imported: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # local name -> (module, name in it)
    stars: list[str] = field(default_factory=list)
    dynamic: bool = False  # has names that only running it creates


@dataclass(frozen=True)
class Found:
    """A class or function and the module that defines it; `owner` is the class when it is a method."""

    source: Source
    definition: Definition
    owner: ast.ClassDef | None = None


class _Unreadable(Exception):
    """The source alone does not tell; import it instead."""


def signature(target: str) -> Signature:
    """The parameters of the class or function at a dotted path.

    Raises UserError when there is no such package, module or name, or when it has to be imported and that fails.
    """
    try:
        found = _locate(target)
        if isinstance(found.definition, ast.ClassDef):
            return _of_class(found.source, found.definition)
        return _of_function(found.definition, found.owner)
    except _Unreadable:
        return _inspected(target)


def home(target: str) -> str | None:
    """The module whose source defines the target, past all re-exports; None when reading does not tell.

    Never imports, so it can be asked about a target that is not trusted.
    """
    try:
        return _locate(target).source.name
    except (_Unreadable, UserError):
        return None


# Finding


def _locate(target: str) -> Found:
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"'{target}' is not a dotted path such as package.module.Class")
    length = len(parts)
    while length > 1 and _module_file(".".join(parts[:length])) is None:
        length -= 1
    module = ".".join(parts[:length])
    path = _module_file(module)
    if path is None:
        raise _Unreadable(target)  # a package without source, for example a compiled one
    if length == len(parts):  # also the name of a module: the function of that name may still be meant
        module, length = ".".join(parts[:-1]), length - 1
    source = _source(module)
    found = _lookup(source, parts[length])
    if found is None:
        hint = nearest(parts[length], [*_known(source), *_submodules(module)])
        meant_module = parts[length].islower() and length + 1 < len(parts)  # misspelt on the way: no need to import
        if _is_dynamic(source) and not (meant_module and hint):
            raise _Unreadable(target)
        raise UserError(f"{module} has no '{parts[length]}'{hint}")
    for attribute in parts[length + 1 :]:
        found = _attribute(found, attribute, target)
    return found


def _attribute(found: Found, name: str, target: str) -> Found:
    """A method of a class, inherited ones included."""
    if not isinstance(found.definition, ast.ClassDef):
        raise UserError(f"'{target}': {found.definition.name} is a function and has no '{name}'")
    for source, owner in _lineage(found.source, found.definition):
        for item in owner.body:
            if isinstance(item, Definition) and item.name == name:
                return Found(source, item, owner)
    methods = [item.name for item in found.definition.body if isinstance(item, Definition)]
    raise UserError(f"'{target}': {found.definition.name} has no '{name}'{nearest(name, methods)}")


def _lookup(source: Source, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Found | None:
    """The definition behind a module-level name, following re-exports. None when the module has no such name."""
    if (source.name, name) in seen:
        return None
    seen |= {(source.name, name)}
    if name in source.names:
        node = source.names[name]
        if isinstance(node, Definition):
            return Found(source, node)
        if isinstance(node, ast.Name) and node.id != name:
            return _lookup(source, node.id, seen)
        raise _Unreadable(name)
    if name in source.imported:
        module, original = source.imported[name]
        if original is None or _module_file(module) is None:
            raise _Unreadable(name)
        found = _lookup(_source(module), original, seen)
        if found is None:  # imported here, so it exists: made when that module runs
            raise _Unreadable(name)
        return found
    for module in source.stars:
        found = _lookup(_source(module), name, seen)
        if found is not None:
            return found
    return None


def _module_file(module: str) -> Path | None:
    """The .py file of a module, or the folder of a package without __init__.py. Nothing of the package is run.

    Raises UserError when the top package is not installed.
    """
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module without a spec, such as __main__
        return None
    if spec is None:
        raise UserError(f"no package '{top}' is installed")
    if not rest:
        if spec.origin and spec.origin.endswith(".py"):
            return Path(spec.origin)
        return next(map(Path, spec.submodule_search_locations or ()), None)
    for root in map(Path, spec.submodule_search_locations or ()):
        base = root.joinpath(*rest)
        for candidate in (base / "__init__.py", base.with_name(base.name + ".py"), base):
            if candidate.is_file() or (candidate == base and base.is_dir()):
                return candidate
    return None


def _is_dynamic(source: Source, depth: int = 3) -> bool:
    """Whether a name that was not found may exist all the same, star imports included."""
    if source.dynamic or not depth:
        return source.dynamic
    return any(_module_file(module) is None or _is_dynamic(_source(module), depth - 1) for module in source.stars)


def _known(source: Source, depth: int = 3) -> set[str]:
    """Names to suggest, star imports included."""
    stars = (_known(_source(module), depth - 1) for module in source.stars if depth and _module_file(module))
    return {*source.names, *source.imported}.union(*stars)


def _submodules(module: str) -> list[str]:
    path = _module_file(module)
    if path is None or (path.is_file() and path.name != "__init__.py"):
        return []
    folder = path.parent if path.is_file() else path
    inside = [item for item in folder.iterdir() if item.suffix == ".py" or item.is_dir()]
    return sorted(item.stem for item in inside if not item.name.startswith(("_", ".")))


def _source(module: str) -> Source:
    """The parsed module; an empty one for a folder. Raises UserError for a syntax error in it."""
    path = _module_file(module)
    if path is None or path.is_dir():
        return Source(module)
    return _parsed(module, path, path.stat().st_mtime_ns)


@cache
def _parsed(module: str, path: Path, modified: int) -> Source:
    source = Source(module)
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from error
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _statements(tree.body):
        if isinstance(node, Definition):
            source.names[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            source.names[node.targets[0].id] = node.value
        elif isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                source.imported[name] = (alias.name if alias.asname else name, None)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            for alias in node.names:
                if alias.name == "*":
                    source.stars.append(origin)
                else:
                    source.imported[alias.asname or alias.name] = (origin, alias.name)
    dynamic = any(word in text for word in ("__getattr__", "sys.modules[", "globals()"))
    return Source(module, source.names, source.imported, source.stars, dynamic)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those inside if and try included."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            for part in (node.body, node.orelse, *(handler.body for handler in getattr(node, "handlers", []))):
                yield from _statements(part)
        else:
            yield node


# Reading parameters


def _of_class(source: Source, definition: ast.ClassDef) -> Signature:
    """The parameters of __init__, own or inherited; of a dataclass, its fields.

    An __init__ that hands its **settings on as they are has the parameters of the next class's too.
    """
    fields: dict[str, Parameter] = {}
    own: dict[str, Parameter] = {}
    given, keywords = 0, set[str | None]()  # what the __init__ before gives to the next one itself
    for _, owner in _lineage(source, definition):
        if _is_dataclass(owner):
            fields = _fields(owner) | fields
        elif not fields:
            maker = next((item for item in owner.body if getattr(item, "name", "") in ("__init__", "__new__")), None)
            if not isinstance(maker, ast.FunctionDef):
                continue
            found = _of_function(maker, owner, bound=True)
            left = list(found.parameters.items())[given:]
            own |= {name: parameter for name, parameter in left if name not in {*own, *keywords}}
            call = _handing_on(maker)
            if call is None:
                return Signature(own, found.open_ended)
            given, keywords = len(call.args), {keyword.arg for keyword in call.keywords}
    return Signature(fields | own, bool(own))


def _handing_on(maker: ast.FunctionDef) -> ast.Call | None:
    """The `super().__init__(..., **settings)` that is the only use of the **settings of an __init__."""
    if maker.args.kwarg is None:
        return None
    name, nodes = maker.args.kwarg.arg, list(ast.walk(maker))
    uses = [node for node in nodes if isinstance(node, ast.Name) and node.id == name]
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
            handed = [keyword.value for keyword in node.keywords if keyword.arg is None]
            if len(uses) == 1 and handed == uses:
                return node
    return None


def _lineage(source: Source, definition: ast.ClassDef) -> Iterator[tuple[Source, ast.ClassDef]]:
    """The class, then its bases depth first, left to right."""
    yield source, definition
    for base in definition.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)  # Generic[T] -> Generic
        if name in ("object", "ABC", "Generic", "Protocol", "abc.ABC", "typing.Generic", "typing.Protocol"):
            continue
        first, *rest = name.split(".")
        if first in source.imported and rest:
            module, original = source.imported[first]
            found = _locate(".".join(filter(None, [module, original, *rest])))
        else:
            found = _lookup(source, first)
        if found is None or not isinstance(found.definition, ast.ClassDef):
            raise _Unreadable(name)
        yield from _lineage(found.source, found.definition)


def _is_dataclass(definition: ast.ClassDef) -> bool:
    names = (ast.unparse(item.func if isinstance(item, ast.Call) else item) for item in definition.decorator_list)
    return any(name.rpartition(".")[2] == "dataclass" for name in names)


def _fields(definition: ast.ClassDef) -> dict[str, Parameter]:
    fields = {}
    for item in definition.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = _text(item.annotation, item.value)
        default, required = item.value, item.value is None
        if isinstance(default, ast.Call) and ast.unparse(default.func).rpartition(".")[2] == "field":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in default.keywords}
            if options.get("init") == "False":
                continue
            required = not {"default", "default_factory"} & options.keys()
        if annotation and not annotation.startswith(("ClassVar", "typing.ClassVar")) and "KW_ONLY" not in annotation:
            fields[item.target.id] = Parameter(annotation, required)
    return fields


def _of_function(definition: Definition, owner: ast.ClassDef | None, bound: bool = False) -> Signature:
    arguments = definition.args
    names = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(names) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(names, defaults, strict=True))
    decorators = {ast.unparse(item) for item in definition.decorator_list}
    if owner is not None and (bound or "classmethod" in decorators):
        pairs = pairs[1:]  # self, cls
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters = {name.arg: Parameter(_text(name.annotation, default), default is None) for name, default in pairs}
    return Signature(parameters, arguments.kwarg is not None)


def _text(annotation: ast.expr | None, default: ast.expr | None) -> str | None:
    """The annotation as written; `x: int = None` also allows None."""
    if annotation is None:
        return None
    quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    text = annotation.value if quoted else ast.unparse(annotation)
    implicit = isinstance(default, ast.Constant) and default.value is None and not fits(None, text)
    return f"{text} | None" if implicit else text


def _inspected(target: str) -> Signature:
    """The same by importing, for what cannot be read."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            value: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if length > 1 and error.name and module.startswith(error.name):
                continue  # the last part is a class, not a module
            raise UserError(f"cannot import {module}: {error}") from error
        except Exception as error:  # whatever a module does when it runs
            raise UserError(f"cannot import {module}: {type(error).__name__}: {error}") from error
        for name in parts[length:]:
            if not hasattr(value, name):
                owner = getattr(value, "__name__", module)
                raise UserError(f"{owner} has no '{name}'{nearest(name, dir(value))}")
            value = getattr(value, name)
        break
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):  # some compiled callables do not say
        return Signature({}, open_ended=True)
    kinds = inspect.Parameter
    plain = {k: p for k, p in parameters.items() if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)}
    texts = {
        k: None if p.annotation is kinds.empty else inspect.formatannotation(p.annotation) for k, p in plain.items()
    }
    found = {
        k: Parameter(f"{texts[k]} | None" if texts[k] and p.default is None else texts[k], p.default is kinds.empty)
        for k, p in plain.items()
    }
    return Signature(found, any(p.kind is kinds.VAR_KEYWORD for p in parameters.values()))
