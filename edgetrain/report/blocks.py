"""The blocks of a report. Each is a `Part`, its HTML beside its Markdown, so that the two cannot drift apart."""

import base64
import html
import re
from collections.abc import Collection, Sequence
from importlib.resources import files
from typing import NamedTuple
from urllib.parse import quote

from edgetrain.folder import Row, RunFolder
from edgetrain.report.values import cell, escape, inside, mostly_numbers, parsed, read_csv, relative

VERDICTS = {"seen": ("good", "✓ seen"), "not seen": ("bad", "✗ not seen"), "undecided": ("note", "? undecided")}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # no scripts, no network
MOST_ROWS = 40  # a longer table is to unfold
MARKS = {"good": ("{+", "+}"), "bad": ("[~", "~]"), "note": ("(*", "*)")}  # span styles in Markdown


class Part(NamedTuple):
    """One block of the report in both forms."""

    html: str
    markdown: str


def document(title: str, parts: Sequence[Part]) -> Part:
    """Blocks as one self-contained page, and as one Markdown text."""
    style = files("edgetrain").joinpath("report", "style.css").read_text(encoding="utf-8")
    head = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
    )
    body = "\n".join(part.html for part in parts)
    markdown = "\n\n".join(part.markdown for part in parts if part.markdown)
    return Part(f"{head}{body}\n</body>\n</html>\n", f"{markdown}\n")


def heading(level: int, text: str) -> Part:
    return Part(f"<h{level}>{html.escape(text)}</h{level}>", f"{'#' * level} {escape(text)}")


def paragraph(text: str, style: str = "") -> Part:
    return Part(f'<p class="{style}">{html.escape(text)}</p>', escape(text)) if text else Part("", "")


def code(text: str) -> Part:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Part(f"<pre>{html.escape(text.rstrip())}</pre>", f"{fence}\n{text.rstrip()}\n{fence}")


def details(summary: str, part: Part) -> Part:
    fold = f"<details>\n<summary>{html.escape(summary)}</summary>\n"
    return Part(f"{fold}{part.html}\n</details>", f"{fold}\n{part.markdown}\n\n</details>")


def figure(folder: RunFolder, name: str, title: str, caption: str) -> Part:
    path = inside(folder, "figures", f"{name}.png")
    if not path.is_file():
        return paragraph(f"The figure figures/{name}.png is missing.", "quiet")
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
    figcaption = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    link = f"![{escape(title)}]({quote(relative(folder, path))})"
    return Part(f"<figure>{image}{figcaption}</figure>", f"{link}\n\n{escape(caption)}".strip())


def csv_table(folder: RunFolder, name: str, grey: str | None) -> Part:
    path = inside(folder, "tables", f"{name}.csv")
    if not path.is_file():
        return paragraph(f"The table tables/{name}.csv is missing.", "quiet")
    rows = read_csv(path)
    if not rows:
        return paragraph(f"The table tables/{name}.csv is empty.", "quiet")
    greyed = {number for number, row in enumerate(rows) if row.get(grey or "", "").lower() in ("true", "1", "yes")}
    values = [{column: parsed(text) for column, text in row.items()} for row in rows]
    shown = table([column for column in rows[0] if column != grey], values, greyed=greyed)
    if len(rows) > MOST_ROWS:
        shown = details(f"all {len(rows)} rows", shown)
    if not greyed:
        return shown
    note = paragraph(f"Greyed: {grey}.", "caption").html
    return Part(f"{shown.html}\n{note}", f"{shown.markdown}\n\n{escape(f'In italics: {grey}.')}")


def table(
    columns: Sequence[str],
    rows: Sequence[Row],
    *,
    greyed: Collection[int] = (),
    badges: str | None = None,
    right: Collection[str] = (),
) -> Part:
    """Columns of numbers, and those named in `right`, stand right.

    `greyed` holds the numbers of the rows to grey; `badges` names the column of verdicts.
    """
    numeric = {column for column in columns if mostly_numbers([row.get(column) for row in rows])} | set(right)
    classes = {column: ' class="number"' if column in numeric else "" for column in columns}
    head = "".join(f"<th{classes[column]}>{html.escape(column)}</th>" for column in columns)
    lines = [
        "| " + " | ".join(escape(column) for column in columns) + " |",
        "|" + "|".join("---:" if column in numeric else "---" for column in columns) + "|",
    ]
    body = []
    for number, row in enumerate(rows):
        cells = {column: cell(row.get(column)) for column in columns}
        shown = {column: html.escape(text) for column, text in cells.items()}
        if badges:
            style, cells[badges] = VERDICTS.get(cells[badges], ("note", cells[badges]))
            shown[badges] = f'<span class="badge {style}">{html.escape(cells[badges])}</span>'
        row_class = ' class="grey"' if number in greyed else ""
        body.append(f"<tr{row_class}>{''.join(f'<td{classes[c]}>{shown[c]}</td>' for c in columns)}</tr>")
        texts = [escape(cells[column]) for column in columns]
        lines.append("| " + " | ".join(f"*{text}*" if row_class and text else text for text in texts) + " |")
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n</table>"
    return Part(f'<div class="scroll" tabindex="0">{table}</div>', "\n".join(lines))


def spans(spans: Sequence[tuple[str, str]], legend: dict[str, str]) -> Part:
    """Running text; the Markdown has marks around what the HTML colours."""
    coloured, marked = "", ""
    for text, style in spans:
        coloured += f'<span class="{style}">{html.escape(text)}</span>' if style in MARKS else html.escape(text)
        before, after = MARKS.get(style, ("", ""))
        marked += before + text + after
    keys = [f'<span class="{html.escape(style)}">{html.escape(meaning)}</span>' for style, meaning in legend.items()]
    meanings = [
        f"`{'text'.join(MARKS[style])}` {escape(meaning)}" if style in MARKS else f"`text` {escape(meaning)}"
        for style, meaning in legend.items()
    ]
    body = Part(f'<pre class="spans">{coloured}</pre>', code(marked).markdown)
    return Part(f'{body.html}\n<p class="legend">{"".join(keys)}</p>', f"{body.markdown}\n\n{'; '.join(meanings)}")
