"""Tables in the terminal: the values as the report shows them, numbers to the right."""

import shutil
import sys
from collections.abc import Collection, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgetrain.folder import Row
from edgetrain.report.values import cell, mostly_numbers

PIPED_WIDTH = 160  # columns where the output is no terminal


def print_table(
    columns: Sequence[str],
    rows: Sequence[Row],
    title: str = "",
    *,
    right: Collection[str] = (),
    width: int | None = None,
) -> None:
    """Print rows on standard output; columns of numbers, and those named in `right`, stand right.

    width: of the page in characters, the terminal's by default; what is longer goes on in the next line.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        number = column in right or mostly_numbers([row.get(column) for row in rows])
        table.add_column(Text(column), justify="right" if number else "left", overflow="fold", header_style="bold")
    for row in rows:
        table.add_row(*(Text(printable(cell(row.get(column)))) for column in columns))
    console = Console(highlight=False, width=width or page_width())
    if title:
        console.print(Text(title, style="bold"))
    console.print(table)


def page_width() -> int:
    """Characters in a line: the terminal's, or PIPED_WIDTH where the output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH


def printable(text: str) -> str:
    """Text on one line without control characters, so that data from strangers cannot steer a terminal."""
    marks = {"\n": "↵", "\t": "→"}
    return "".join(marks.get(letter, letter if letter.isprintable() else "�") for letter in text)
