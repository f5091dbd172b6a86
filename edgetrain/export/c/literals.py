"""Names, numbers and strings as C99 has them."""

import re
import textwrap
from collections.abc import Iterable

import numpy as np

from edgetrain.errors import UserError

WIDTH = 120  # columns
IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
LONGEST = 31  # characters of an external name that every C99 compiler tells apart, the longest ending included
KEYWORDS = frozenset({
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern", "float",
    "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed", "sizeof",
    "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while",
})  # fmt: skip
OWN_PREFIX = "edgetrain"  # of the kernels


def check_name(name: str) -> None:
    """Raises UserError for what cannot begin the names of a network's functions."""
    problem = ""
    if not IDENTIFIER.fullmatch(name):
        problem = "is no C identifier"
    elif name in KEYWORDS:
        problem = "is a keyword of C"
    elif name.lower().startswith(OWN_PREFIX):
        problem = f"begins like the kernels' own names, {OWN_PREFIX}_"
    elif len(name) > LONGEST - len("_quantize"):
        problem = f"is longer than {LONGEST - len('_quantize')} characters"
    if problem:
        raise UserError(
            f"export.c.name={name!r} {problem}; take a letter, then letters, digits and underscores, such as keywords"
        )


def real(value: float) -> str:
    """A literal that a compiler reads as the float32 nearest to `value`."""
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if set(text) & set(".e") else f"{text}.0f"


def string(text: str) -> str:
    """A literal of these characters, in UTF-8; what does not print is written as its bytes."""
    return '"' + "".join(map(escaped, text)) + '"'


def escaped(character: str) -> str:
    if character in '"\\?':  # a question mark could begin a trigraph
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "replace"))


def comment(text: str) -> str:
    """One line that ends where it is meant to."""
    return f"/* {''.join(filter(str.isprintable, text)).replace('*/', '*|').replace('/*', '|*')} */"


def comment_lines(text: str) -> str:
    """A paragraph, its lines filled."""
    return "\n * ".join(textwrap.wrap(f"/* {text}", WIDTH - 3)) + "\n */"


def array(kind: str, name: str, numbers: Iterable[int]) -> str:
    """A constant array of whole numbers, its lines filled."""
    items = [str(int(number)) for number in numbers]
    return f"static const {kind} {name}[{len(items)}] = {{\n{filled(items)}\n}};\n"


def filled(items: Iterable[str], indent: str = "    ", width: int = WIDTH) -> str:
    """Items with commas, on lines of at most `width` columns."""
    lines, line = [], indent[:-1]
    for item in items:
        if len(line) + len(item) + 2 > width:
            lines.append(line)
            line = indent[:-1]
        line += f" {item},"
    return "\n".join([*lines, line])


def call(function: str, arguments: Iterable[str], indent: str = "    ") -> str:
    """A statement, on several lines where one is too long."""
    arguments = list(arguments)
    line = f"{indent}{function}({', '.join(arguments)});"
    if len(line) <= WIDTH:
        return line
    return f"{indent}{function}(\n{filled(arguments, indent * 2, WIDTH - 1)[:-1]});"
