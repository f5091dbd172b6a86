"""What a sweep found: a row a trial in results.csv, and the tables and figures of its report.

The best of many noisy trials looks better than it is: it was chosen for its luck too. So what is quoted is the best
recipe trained again with seeds that chose nothing, and the sweep's own best value is labelled as what it is.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder, write_atomic
from edgetrain.report.figures import Point, bar_chart, line_chart, parallel_chart
from edgetrain.report.page import write_report
from edgetrain.report.values import parsed
from edgetrain.spread import interval_of_mean, spread
from edgetrain.study.result import numeric_metrics
from edgetrain.sweep.ledger import Ledger
from edgetrain.sweep.plan import Sweep
from edgetrain.sweep.space import shown

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
QUANTILE = 0.25  # importance for being among the best quarter; of Optuna's 0.1 a short sweep has two trials


def summarise(sweep: Sweep, ledger: Ledger, folder: RunFolder, retrained: Sequence[RunFolder] = ()) -> Path:
    """Write results.csv, metrics.json, the tables, the figures and the report.

    metrics.json holds retrained/<metric>, the result, with _deviation, _low and _high, and best_trial/<metric>, the
    value that chose the best trial. Returns the report's path.
    """
    trials, options = ledger.trials(), sweep.options
    rows = [row_of(trial, sweep, ledger) for trial in trials]
    write_atomic(folder.path / "results.csv", csv_text(rows))
    counts = {name: sum(row["state"] == name for row in rows) for name in (*STATES.values(), "running")}
    metrics: Row = {}
    best = ledger.best
    if best:
        metrics = add_result(best, sweep, folder, retrained)
    order = sorted(rows, key=lambda row: goodness(row, options.direction))
    columns = [name for name in rows[0] if name not in ("seconds", "note")] if rows else []
    over = f"mean over {len(sweep.seeds)} seeds" if len(sweep.seeds) > 1 else f"of seed {sweep.seeds[0]}"
    caption = f"Best first; the mean is {options.metric}, {over}; the deviation has n - 1. In full in results.csv."
    folder.add_table("trials", [{name: row[name] for name in columns} for row in order], "Trials", caption)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if done:
        add_figures(done, sweep, ledger, folder)
    stopped = [{"trial": row["trial"], "state": row["state"], "why": row["note"]} for row in rows if row["note"]]
    if stopped:
        folder.add_table("stopped", stopped, "Trials without a value", "A failed one with the end of its log.")
    folder.write_json("metrics.json", metrics | {f"trials_{name}": count for name, count in counts.items() if count})
    return write_report(folder)


def row_of(trial: FrozenTrial, sweep: Sweep, ledger: Ledger) -> Row:
    """A trial as a row of results.csv: its values, mean and deviation over its seeds, state, and folders."""
    facts = trial.user_attrs
    name = f"trial{trial.number}"
    place = "" if ledger.mine(trial) else f"{facts['place']}/"
    runs = " ".join(f"{place}runs/{ledger.folder.child(name, seed).path.name}" for seed in sweep.seeds)
    values = {axis.key: value_of(trial.params.get(axis.key, "")) for axis in sweep.axes}
    return {
        "trial": trial.number,
        "state": STATES.get(trial.state, "running"),
        **values,
        "mean": trial.value if trial.state == TrialState.COMPLETE else None,
        "deviation": facts.get("deviation"),
        "seeds": len(facts.get("metrics", [])),
        "seconds": facts.get("seconds"),
        "folder": runs,
        "note": " / ".join(line.strip() for line in facts.get("note", "").splitlines()),
    }


def value_of(value: Any) -> Any:
    """Choices are kept as typed; the number that one looks like is a number again."""
    return parsed(shown(value)) if isinstance(value, str) else value


def csv_text(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def goodness(row: Row, direction: str) -> tuple[bool, float]:
    """To sort by: those without a value last."""
    mean = row["mean"]
    return mean is None, 0.0 if mean is None else -mean if direction == "maximize" else mean


def add_result(best: FrozenTrial, sweep: Sweep, folder: RunFolder, retrained: Sequence[RunFolder]) -> Row:
    """The table that says which number to quote; returns the same as metrics."""
    name = sweep.options.metric
    metrics: Row = {}
    rows: list[Row] = []
    found = [metric[name] for run in retrained if run.finished and name in (metric := numeric_metrics(run))]
    if found:
        mean, deviation, n = spread(found)
        low, high = interval_of_mean(found) if n > 1 else (None, None)
        measured = {"": mean, "_deviation": deviation, "_low": low, "_high": high}
        metrics = {f"retrained/{name}{end}": value for end, value in measured.items() if value is not None}
        metrics["retrained/seeds"] = n
        what = "best.yaml, trained again with fresh seeds: the result"
        rows.append(result_row(what, mean, deviation, n) | {"95% from": low, "95% to": high})
    what = f"trial {best.number} in the sweep, chosen for this value: not to be quoted"
    rows.append(result_row(what, best.value, best.user_attrs.get("deviation"), len(sweep.seeds)))
    caption = (
        "The best of many trials was chosen for its luck too; seeds that chose nothing say what the recipe is worth."
    )
    folder.add_table("result", rows, f"Result: {name}", caption)
    return metrics | {"best_trial/number": best.number, f"best_trial/{name}": best.value}


def result_row(what: str, mean: float, deviation: float | None, n: int) -> Row:
    return {"measured on": what, "mean": mean, "standard deviation": deviation, "seeds": n}


# Figures


def add_figures(done: list[FrozenTrial], sweep: Sweep, ledger: Ledger, folder: RunFolder) -> None:
    """Best so far, parallel coordinates and importance, each where there is something to draw."""
    metric, low_is_good = sweep.options.metric, sweep.options.direction == "minimize"
    values = [(trial.number, trial.value) for trial in done]
    chart = line_chart(
        {"a trial": values, "best so far": best_so_far(values, low_is_good)}, "trial", metric, dots=["a trial"]
    )
    folder.add_figure("best_so_far", chart, "Best so far", "Every finished trial, and the best of those up to it.")
    columns = {axis.key: [value_of(trial.params[axis.key]) for trial in done] for axis in sweep.axes}
    logarithmic = [axis.key for axis in sweep.axes if axis.log]
    try:
        chart = parallel_chart(
            columns | {metric: [trial.value for trial in done]}, log=logarithmic, low_is_good=low_is_good
        )
    except UserError:
        return
    caption = "A line is a finished trial, dark where it is good; the best is thick."
    folder.add_figure("parallel_coordinates", chart, "What the good trials have in common", caption)
    shares = importance(ledger.study) if len(done) > 1 else {}
    if any(shares.values()):
        caption = (
            f"Shares by PED-ANOVA (arXiv 2304.10255): how much each key tells about being in the best quarter of "
            f"{len(done)} trials" + ("." if len(done) >= 20 else "; with so few trials a hint at most.")
        )
        chart = bar_chart({"": shares}, "importance (share)", value_format=".2f")
        folder.add_figure("importance", chart, "Which keys mattered", caption)


def best_so_far(values: list[Point], low_is_good: bool) -> list[Point]:
    """The corners of a staircase: at every improvement one point at the old level and one at the new."""
    corners: list[Point] = []
    for number, value in values:
        level = corners[-1][1] if corners else value
        better = min(level, value) if low_is_good else max(level, value)
        corners += [(number, level)] if better == level else [(number, level), (number, better)]
    return corners


def importance(study: optuna.Study) -> dict[str, float]:
    """Of every key, summing to 1, or all 0."""
    evaluator = PedAnovaImportanceEvaluator(target_quantile=QUANTILE)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)
