"""Draw how far our cycles are from published ones: .venv/bin/python tests/maestro_error.py FIGURE.png

Needs XRBench's layer tables and costs in $EDGETRAIN_DATA or ../shared/data.
"""

import sys
from collections import Counter
from pathlib import Path

from maestro_published import ROWS, our_cycles
from xrbench_costs import NAMES, dataflow, published, tables

from edgetrain.folder import write_atomic
from edgetrain.hardware import maestro, maestro_xrbench
from edgetrain.report.figures import bar_chart

CLASSES = {"exact": 0.0, "to 0.1 %": 0.001, "to 1 %": 0.01, "to 10 %": 0.1, "to 50 %": 0.5, "more": float("inf")}


def error_class(ours: int, theirs: int) -> str:
    return next(name for name, most in CLASSES.items() if abs(ours / theirs - 1) <= most)


def errors() -> dict[str, Counter]:
    """Layers by error of their cycles, for each comparison."""
    found: dict[str, Counter] = {}
    for row in ROWS:
        name = f"MAESTRO, {row['network']}, {row['pes']} PEs"
        found.setdefault(name, Counter())[error_class(our_cycles(row), int(row["cycles"]))] += int(row["layers"])
    networks, flows = tables(), {name: dataflow(name) for name in NAMES}
    for row in published():
        shape = networks[row["model"]][int(row["layer"])]
        if shape.macs:
            where = (flows[row["dataflow"]], shape, int(row["pes"]), int(row["noc_bw"]))
            for label, analyse in (("xrbench", maestro_xrbench.analyse), ("maestro", maestro.analyse)):
                name = f"XRBench {row['dataflow']}, analysis {label}"
                found.setdefault(name, Counter())[error_class(analyse(*where).cycles, int(row["cycles"]))] += 1
    return found


def main(path: Path) -> None:
    found = errors()
    for name, counts in found.items():
        print(f"{name}: {counts.total():,} layers, " + ", ".join(f"{kind} {counts[kind]:,}" for kind in CLASSES))
    shares = {
        kind: {name: 100 * counts[kind] / counts.total() for name, counts in found.items() if counts[kind]}
        for kind in CLASSES
    }
    figure = bar_chart({kind: share for kind, share in shares.items() if share}, "layers (%)", stacked=True)
    write_atomic(path, figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
