"""A look at a data set before training on it: samples, counts, lengths, duplicates.

Any data module takes part with one method, `preview() -> Preview`; what a sample is, and what has a length, is its own
matter.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from rich.cells import cell_len, set_cell_size

from edgetrain.build import build
from edgetrain.config import Config
from edgetrain.errors import UserError
from edgetrain.folder import Row
from edgetrain.report.terminal import page_width, print_table, printable
from edgetrain.report.values import cell

QUANTILES = {"least": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "most": 1.0}
BARS = 10  # of a histogram with equal steps
FAR_APART = 16  # lengths whose largest is more than this many times the smallest are counted by powers of two
BAR_WIDTH = 40  # characters


@dataclass(frozen=True)
class Preview:
    """samples: one text each. splits: a row a split. lengths: of every item of every split, in `length_unit`.

    duplicates: rows of `duplicate_rows`. notes: sentences that stand at the end.
    """

    samples: list[str]
    splits: list[Row]
    lengths: dict[str, np.ndarray]
    length_unit: str
    duplicates: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def preview_of(config: Config) -> Preview:
    """The preview of a run's data, read and split as the run does it. Raises UserError for data that gives none."""
    if config.data is None:
        raise UserError(f"recipe={config.recipe} has no data to preview; pick some with data=NAME")
    data = build(config.data)
    if not hasattr(data, "preview"):
        raise UserError(f"{config.data['_target_']} has no preview; give it a method preview() -> Preview")
    data.prepare_data()
    data.setup("fit")
    return data.preview()


def duplicate_rows(kind: str, keys: dict[str, np.ndarray]) -> list[Row]:
    """A row a split: how many items repeat another of the split, and how many an earlier split holds too.

    keys: for each split, in order, one number an item, equal for equal items.
    """
    rows: list[Row] = []
    seen = np.array([], dtype=np.uint64)
    for split, items in keys.items():
        repeats = len(items) - len(np.unique(items))
        row = {"kind": kind, "split": split, "in all": len(items), "repeats": repeats}
        rows.append(row | {"in an earlier split": int(np.isin(items, seen).sum())})
        seen = np.union1d(seen, items)
    return rows


def content_keys(contents: Iterable[bytes]) -> np.ndarray:
    """64 bits of a hash of each content: uint64 [items]."""
    digests = (int.from_bytes(blake2b(content, digest_size=8).digest()) for content in contents)
    return np.fromiter(digests, dtype=np.uint64)


def histogram(lengths: Sequence[int] | np.ndarray) -> list[tuple[int, int, int]]:
    """(shortest, longest, count) of each bar; in equal steps, or by powers of two where lengths are far apart."""
    least, most = int(np.min(lengths)), int(np.max(lengths))
    if most > FAR_APART * max(least, 1):
        first = int(math.log2(least)) if least else 0
        edges = [2**power for power in range(first, most.bit_length() + 1)]
        edges = edges if least else [0, *edges]
    else:
        step = math.ceil((most - least + 1) / BARS)
        edges = list(range(least, most + step + 1, step))
    counts, _ = np.histogram(lengths, edges)
    return [(low, high - 1, int(count)) for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)]


def print_preview(preview: Preview, origin: Sequence[str] = (), width: int | None = None) -> None:
    """Write a preview to standard output; `origin`: lines on where the data is from; width: of the page, characters."""
    width = width or page_width()
    for line in origin:
        print(line)
    print(f"\n{len(preview.samples)} samples")
    for number, sample in enumerate(preview.samples, start=1):
        print(f"{number:3}  {shortened(sample, width - 5)}")
    print()
    print_table(list(preview.splits[0]), preview.splits, width=width)
    print(f"\nlengths, {preview.length_unit}")
    known = {split: lengths for split, lengths in preview.lengths.items() if len(lengths)}
    levels = [
        {"split": split} | {name: float(np.quantile(lengths, at)) for name, at in QUANTILES.items()}
        for split, lengths in known.items()
    ]
    print_table(["split", *QUANTILES], levels, width=width)
    if known:
        split = next(iter(known))
        print(f"\n{split} by length, {preview.length_unit}")
        for line in bars(histogram(known[split])):
            print(line)
    if preview.duplicates:
        print("\nexact duplicates")
        columns = list(dict.fromkeys(key for row in preview.duplicates for key in row))
        print_table(columns, preview.duplicates, width=width)
    for note in preview.notes:
        print(note)


def bars(counts: list[tuple[int, int, int]]) -> list[str]:
    """A line a bar of a histogram; the longest bar is BAR_WIDTH characters."""
    labels = [f"{cell(low)} to {cell(high)}" if high > low else cell(low) for low, high, _ in counts]
    longest, most = max(map(len, labels)), max(count for *_, count in counts)
    shown = [cell(count) for *_, count in counts]
    widest = max(map(len, shown))
    return [
        f"{label:>{longest}}  {number:>{widest}}  {'█' * round(BAR_WIDTH * count / most)}".rstrip()
        for label, number, (*_, count) in zip(labels, shown, counts, strict=True)
    ]


def shortened(text: str, width: int) -> str:
    """Text on one line of at most `width` terminal cells, runs of spaces as one, … where it was cut."""
    line = printable(re.sub(" +", " ", text))
    return line if cell_len(line) <= width else f"{set_cell_size(line, width - 1).rstrip()}…"
