"""Eyeriss as the baseline of the Bit Fusion paper: published access counts, and what they cost.

The counts are data, not code: `eyeriss_results.csv` of github.com/hsharma35/bitfusion, for 16 images at 16 bits. Its
columns ALU, DRAM, Buffer, Array and RF are energies in units of a MAC's; its column "time(ms)" holds cycles.
"""

import csv
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from edgetrain.errors import UserError, listing
from edgetrain.hardware.cost import check_sources

ON_CHIP = ("ALU", "Buffer", "Array", "RF")
NUMBERS = (*ON_CHIP, "DRAM", "time(ms)")
BITS = 16  # of a word of the baseline


class EyerissRun(NamedTuple):
    """A network on Eyeriss: joules of all but DRAM, and bits that cross to DRAM."""

    cycles: float
    on_chip_joules: float
    dram_bits: float

    def joules(self, dram_pj: float) -> float:
        return self.on_chip_joules + self.dram_bits * dram_pj * 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Eyeriss:
    """Prices of the baseline's counts; conf/job/bitfusion_paper.yaml explains the fields.

    Raises UserError for a constant without a source.
    """

    path: str
    mac_pj: float
    dram_macs: float
    dram_scale: float
    area_mm2: float
    sources: dict[str, str]
    unverified: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        constants = {name: getattr(self, name) for name in ("mac_pj", "dram_macs", "dram_scale", "area_mm2")}
        check_sources("eyeriss", constants, self.sources, self.unverified)

    @property
    def dram_pj(self) -> float:
        """What the paper's comparison lets the baseline pay for a bit of DRAM traffic."""
        return self.mac_pj * self.dram_macs * self.dram_scale / BITS

    def find(self) -> Path | None:
        """The file of counts, looked for as $EDGETRAIN_DATA/<path>, then as a local path."""
        shared = os.environ.get("EDGETRAIN_DATA")
        places = [Path(shared).expanduser() / self.path] if shared else []
        return next((place for place in (*places, Path(self.path).expanduser()) if place.is_file()), None)

    def read(self, path: Path) -> dict[str, EyerissRun]:
        """Every network of a file of counts. Raises UserError, naming file and row, for one that is not valid."""
        totals: dict[str, dict[str, float]] = {}
        for name, counts in rows_of(path):
            total = totals.setdefault(name, dict.fromkeys(NUMBERS, 0.0))
            for column, value in counts.items():
                total[column] += value
        empty = [name for name, total in totals.items() if not (total["time(ms)"] and total["ALU"])]
        if empty:
            raise UserError(f"{path}: {listing(empty)} takes no cycles, or computes nothing")
        return {
            name: EyerissRun(
                cycles=total["time(ms)"],
                on_chip_joules=sum(total[column] for column in ON_CHIP) * self.mac_pj * 1e-12,
                dram_bits=total["DRAM"] / self.dram_macs * BITS,
            )
            for name, total in totals.items()
        }


def rows_of(path: Path) -> Iterable[tuple[str, Mapping[str, float]]]:
    """Benchmark and counts of every layer."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from error
    missing = [column for column in ("Benchmark", *NUMBERS) if not rows or column not in rows[0]]
    if missing:
        raise UserError(f"{path} is no table of access counts: it lacks {listing(missing)}")
    for number, row in enumerate(rows, start=1):
        yield row["Benchmark"], {column: count(row[column], f"{path}: row {number}, {column}") for column in NUMBERS}


def count(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"{where}: '{text}' is not a count; write a number, zero or more")
    return value
