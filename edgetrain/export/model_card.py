"""MODEL_CARD.md: what an exported model is for, from what it was made, how good it is and for whom, and its limits.

The headings are those that Mitchell et al. 2019 (Model Cards for Model Reporting, arXiv 1810.03993, section 4) ask for.
"""

import re
from collections import defaultdict
from typing import Any

from edgetrain.folder import Row

NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial|research (use|only)|academic", re.IGNORECASE)
MOST_GROUPS = 20
JUDGED_ON = {
    "classify": "Judged on data like that of training alone; nothing is known of other microphones, languages or "
    "domains.",
    "segment": "Judged on images like those of training alone; nothing is known of other cameras, places, light or "
    "weather.",
    "language": "Judged on text like that of training alone; what it generates was not checked for truth or harm.",
}
SMALL_GROUP = 30  # items below which a group's accuracy says little


def warnings_of(licences: list[Row]) -> list[str]:
    """One sentence for each input that may not be used commercially, or whose licence nobody said."""
    sentences = []
    for each in licences:
        licence = each.get("licence") or ""
        if NON_COMMERCIAL.search(licence):
            sentences.append(f"{each['what']} {each['name']} ({licence}) is not for commercial use, nor is this model")
        elif not licence:
            sentences.append(f"nobody said under which licence the {each['what']} {each['name']} may be used")
    return sentences


def model_card(manifest: Row, predictions: dict[str, Any], groups: dict[str, list[str]]) -> str:
    """Markdown. predictions: what each form said; groups: what the data says of each judged item."""
    sections = {
        "Use": use(manifest),
        "Made from": made_from(manifest),
        "Judged": judged(manifest),
        **{f"By {name}": by_group(predictions, values) for name, values in groups.items()},
        "Limits": limits(manifest, predictions),
        "Made with": made_with(manifest),
    }
    text = [f"# {manifest['recipe']}, exported to {manifest['target']}"]
    text += [f"## {title}\n\n{body}" for title, body in sections.items() if body]
    return "\n\n".join(text) + "\n"


def use(manifest: Row) -> str:
    files = ", ".join(f"`{file}`" for form in manifest["forms"].values() for file in form["files"])
    inputs = " and ".join(f"{each['type']} {each['shape']}" for each in manifest["inputs"])
    lines = [
        f"Files: {files}.",
        f"Input: {inputs}. Output: {manifest['output']['type']} {manifest['output']['shape']}.",
    ]
    if manifest["labels"]:
        of = " of every pixel" if manifest["task"] == "segment" else ""
        lines.append(f"The output is a score{of} for each of: {', '.join(manifest['labels'])}.")
    if manifest["preprocessing"]:
        lines.append("The input has to be prepared as in training:")
        lines.append(table(["setting", "value"], [[key, value] for key, value in manifest["preprocessing"].items()]))
    lines += [f"Height and width are free: {sizes}." for sizes in dict.fromkeys(free_sizes(manifest))]
    lines.append("Judge it again, on any machine with its runtime: `python -m edgetrain eval artefact=<this folder>`.")
    return "\n\n".join(lines)


def free_sizes(manifest: Row) -> list[str]:
    """What forms of a dynamic size say of it."""
    return [form["sizes"] for form in manifest["forms"].values() if "sizes" in form]


def made_from(manifest: Row) -> str:
    rows = [[each["what"], each["name"], each.get("source"), each.get("licence")] for each in manifest["licences"]]
    notes = [f"**{sentence[0].upper()}{sentence[1:]}.**" for sentence in manifest["warnings"]]
    return "\n\n".join([table(["what", "name", "source", "licence"], rows), *notes])


def judged(manifest: Row) -> str:
    names = list(dict.fromkeys(name for form in manifest["forms"].values() for name in form["metrics"]))
    rows = [
        [
            name,
            *(f"{form['metrics'][metric]:.4g}" for metric in names),
            f"{form['parity']:.2g}",
            f"{form['argmax_agreement']:.2%}",
            f"{form['size_bytes']:,}",
        ]
        for name, form in manifest["forms"].items()
    ]
    heads = ["form", *names, "largest difference from the model", "same answer as the model", "bytes"]
    items = next(iter(manifest["forms"].values()))["judged_items"]
    return f"On {items:,} items of the test split, each form in its own runtime.\n\n{table(heads, rows)}"


def by_group(predictions: dict[str, Any], values: list[str]) -> str:
    """Accuracy of every form for each value, such as each speaker; items without one, as silence, are in no group."""
    items: dict[str, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        if value:
            items[value].append(index)
    worst = sorted(items, key=lambda value: min(each.at(items[value]).accuracy for each in predictions.values()))
    shown = {value: items[value] for value in sorted(worst[:MOST_GROUPS])}
    rows = [
        [value, str(len(places)), *(f"{each.at(places).accuracy:.1%}" for each in predictions.values())]
        for value, places in shown.items()
    ]
    hidden = f"\n\nThe {MOST_GROUPS} least accurate of {len(items)}." if len(items) > MOST_GROUPS else ""
    small = any(len(places) < SMALL_GROUP for places in items.values())
    note = f"\n\nFewer than {SMALL_GROUP} items say little." if small else ""
    return table(["", "items", *(f"accuracy, {form}" for form in predictions)], rows) + hidden + note


def limits(manifest: Row, predictions: dict[str, Any]) -> str:
    lines = [
        JUDGED_ON.get(manifest["task"], JUDGED_ON["language"]),
        "No latency or energy was measured on a device.",
    ]
    if manifest["labels"] and predictions:
        lines.append("It always answers one of its labels, also for inputs that are none of them.")
    return "\n".join(f"- {line}" for line in lines)


def made_with(manifest: Row) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())
    return f"Commit {manifest['commit']}, {manifest['created']}; {packages}."


def table(heads: list[str], rows: list[list[Any]]) -> str:
    """Markdown; None is an empty cell."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)
