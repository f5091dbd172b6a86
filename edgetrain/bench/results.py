"""One bench becomes one folder and one page: outputs/bench_<name>/<time>-<id>/, laid out as a run folder is."""

import importlib
import time
from collections.abc import Sequence
from typing import Any

from edgetrain.bench.catalogue import benches
from edgetrain.bench.load import usable_cores
from edgetrain.bench.side_by_side import Timing, ratio
from edgetrain.build import write_config
from edgetrain.environment import describe, now
from edgetrain.folder import Row, RunFolder
from edgetrain.report.page import write_report
from edgetrain.report.terminal import print_table


def run_bench(name: str, values: dict[str, Any], out: str | None = None) -> RunFolder:
    """Carry out a bench with checked arguments; returns its folder, with metrics, tables and report.html."""
    folder = RunFolder.create(f"bench_{name}", out)
    started = time.monotonic()
    config = {"recipe": f"bench_{name}", "description": benches()[name].sentence, "bench": {"name": name, **values}}
    write_config(config, folder)
    environment = describe() | {"usable_cores": usable_cores()}
    folder.write_json("environment.json", environment)
    bench = getattr(importlib.import_module(f"edgetrain.bench.{name}"), name)
    folder.update_metrics(bench(folder, **values))
    finished = now()
    environment |= {"finished": finished, "wall_seconds": round(time.monotonic() - started, 1)}
    folder.write_json("environment.json", environment)
    write_report(folder)
    return folder


def timing_rows(timings: Sequence[Timing], against: Timing, unit: str) -> list[Row]:
    """A row a contender: `unit` a second (median, quartiles), and its ratio to `against`, or why none may be quoted."""
    rows = []
    for timing in timings:
        lower, middle, upper = timing.quartiles
        row = {"contender": timing.name, f"{unit}/s": middle, "lower quartile": lower, "upper quartile": upper}
        compared = "" if timing is against else str(ratio(timing, against))
        rows.append(row | {"repeats": len(timing.rates), f"times {against.name}": compared})
    return rows


def show_rows(folder: RunFolder, name: str, rows: list[Row], title: str, caption: str = "") -> None:
    """Print a table, and put it into the folder's tables and report."""
    print_table(list(dict.fromkeys(key for row in rows for key in row)), rows, title)
    folder.add_table(name, rows, title, caption)
