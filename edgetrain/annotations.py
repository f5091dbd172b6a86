"""Does a value from a configuration fit a type annotation, given as source text?"""

import ast
from typing import Any


def fits(value: Any, annotation: str | None) -> bool:
    """Whether a value from a configuration fits an annotation, given as text.

    Checked: int, float (an int fits), bool (which is no int), str, None, list, dict, tuple, Literal, unions, paths as
    text. Any other annotation accepts every value, and a node with its own `_target_` fits every annotation.
    """
    if annotation is None or (isinstance(value, dict) and "_target_" in value):
        return True
    try:
        return _fits(value, ast.parse(annotation.strip(), mode="eval").body)
    except SyntaxError:
        return True


def _fits(value: Any, kind: ast.expr) -> bool:
    if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr):
        return _fits(value, kind.left) or _fits(value, kind.right)
    if isinstance(kind, ast.Constant):
        return value is None if kind.value is None else not isinstance(kind.value, str) or fits(value, kind.value)
    if isinstance(kind, ast.Subscript):
        inner = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        return _fits_generic(value, ast.unparse(kind.value).rpartition(".")[2], inner)
    return _fits_name(value, ast.unparse(kind).rpartition(".")[2])


def _fits_name(value: Any, name: str) -> bool:
    if isinstance(value, dict) and "_target_" in value:
        return True
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match name:
        case "int":
            return number and isinstance(value, int)
        case "float":
            return number
        case "bool":
            return isinstance(value, bool)
        case "str" | "Path" | "PathLike":
            return isinstance(value, str)
        case "None":
            return value is None
        case "list" | "List" | "tuple" | "Tuple":
            return isinstance(value, list | tuple)
        case "dict" | "Dict":
            return isinstance(value, dict)
        case "Tensor":  # torch writes `lr: float | Tensor`; no YAML value is a tensor
            return False
    return True


def _fits_generic(value: Any, name: str, inner: list[ast.expr]) -> bool:
    match name:
        case "Optional":
            return value is None or _fits(value, inner[0])
        case "Union":
            return any(_fits(value, part) for part in inner)
        case "Literal":
            return any(isinstance(part, ast.Constant) and part.value == value for part in inner)
        case "Annotated" | "Final" | "InitVar":
            return _fits(value, inner[0])
        case "list" | "List":
            return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
        case "dict" | "Dict":
            items = value.items() if isinstance(value, dict) else [(None, None)]
            return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[-1]) for k, v in items)
        case "tuple" | "Tuple":
            if not isinstance(value, list | tuple):
                return False
            if isinstance(inner[-1], ast.Constant) and inner[-1].value is Ellipsis:
                return all(_fits(item, inner[0]) for item in value)
            return len(value) == len(inner) and all(map(_fits, value, inner))
    return _fits_name(value, name)
