"""What a study found: its children's numbers side by side, with their spread, and the figures that the recipe asks for.

Reads only finished runs, and from them only metrics.json, tables/*.csv and the logged curves.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any

from rich.console import Console

from edgetrain.config import Config, StudyFigure
from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.report.figures import Point, bar_chart, line_chart
from edgetrain.report.values import parsed
from edgetrain.spread import fold_means, interval_of_mean, spread
from edgetrain.study.plan import Study

USUAL = ("test/loss", "exits/loss_*", "*_per_s")  # shown beside the metrics of the claims

Arms = dict[str, dict[int, RunFolder]]  # a variant's name -> its finished runs by their seeds

console = Console(stderr=True, highlight=False)


def summarise(config: Config, folder: RunFolder) -> None:
    """Write the tables `variants` and `runs`, the figures, and metrics.json.

    metrics.json holds <variant>/<metric>, the mean over the seeds, and its 95% interval as <variant>/<metric>_low and
    _high; a lone variant's have no prefix.
    """
    arms = finished_arms(config, folder)
    numbers = {arm: {seed: numeric_metrics(run) for seed, run in runs.items()} for arm, runs in arms.items()}
    names = shown_metrics(config, [metrics for rows in numbers.values() for metrics in rows.values()])
    folds = config.study.get("folds")
    rows: list[Row] = []
    means: Row = {}
    intervals: Row = {}
    for name in names:
        for arm, metrics in numbers.items():
            values = fold_means({seed: row[name] for seed, row in metrics.items() if name in row}, folds)
            if not values:
                continue
            mean, deviation, n = spread(values)
            counted = "folds" if folds else "seeds"
            rows.append({"metric": name, "variant": arm, "mean": mean, "standard deviation": deviation, counted: n})
            key = f"{arm}/{name}" if config.variants else name
            means[key] = mean
            if n > 1:
                intervals[f"{key}_low"], intervals[f"{key}_high"] = interval_of_mean(values)
    listed: list[Row] = []
    for arm, seed, run in every_run(config, folder):
        metrics = numeric_metrics(run) if run.finished else {}
        place = {"variant": arm, "seed": seed, "finished": run.finished, "folder": f"runs/{run.path.name}"}
        listed.append(place | {name: value for name, value in metrics.items() if name in names})
    over = folds_said(arms, folds) if folds else "the seeds"
    folder.add_table("variants", rows, "Variants", f"Mean and standard deviation (n - 1) over {over}.")
    if folds:
        add_folds(config, folder, folds)
    for wanted in config.study.get("figures", []):
        add_figure(wanted, arms, folder, folds)
    folder.add_table("runs", listed, "Runs", "Each is a run folder of its own, with its own report.")
    counts = {"runs": len(listed), "runs_finished": sum(row["finished"] for row in listed)}
    folder.write_json("metrics.json", means | intervals | counts | common_facts(arms))


def add_folds(config: Config, folder: RunFolder, folds: int) -> None:
    """A table and a figure for each metric of a claim: every variant on every fold, averaged over the fold's seeds."""
    for metric in dict.fromkeys(claim["metric"] for claim in config.claims):
        found: dict[str, dict[str, list[float]]] = {}
        for arm, seed, run in every_run(config, folder):
            metrics = run.read_json("metrics.json", {}) if run.finished else {}
            if metric in metrics:
                fold = str(metrics.get("held_out", f"fold {seed % folds}"))
                found.setdefault(arm, {}).setdefault(fold, []).append(metrics[metric])
        if not found:
            continue
        means = {arm: {fold: spread(values).mean for fold, values in places.items()} for arm, places in found.items()}
        rows = [
            {"held out": fold} | {arm: means[arm].get(fold) for arm in means}
            for fold in dict.fromkeys(fold for places in means.values() for fold in places)
        ]
        name, title = "folds_" + re.sub(r"\W+", "_", metric), f"{metric} by what was held out"
        caption = "Mean over the seeds of each fold."
        folder.add_table(name, rows, title, caption)
        deviations = {
            arm: {fold: spread(values).deviation or 0.0 for fold, values in places.items()}
            for arm, places in found.items()
        }
        chart = bar_chart(means, metric, spread=deviations, value_format=".3g")
        folder.add_figure(name, chart, title, f"{caption} The error bars are one standard deviation to each side.")


def folds_said(arms: Arms, folds: int) -> str:
    """The folds that have finished runs, which are fewer than `folds` in a study that was narrowed or not ended."""
    there = len({seed % folds for runs in arms.values() for seed in runs})
    if there == folds:
        return f"the {folds} folds, each averaged over its seeds"
    return f"{there} of the {folds} folds, the others have no finished runs; each averaged over its seeds"


def every_run(config: Config, folder: RunFolder) -> Iterable[tuple[str, int, RunFolder]]:
    """(variant, seed, folder) of every run, seed by seed; a lone variant bears the recipe's name."""
    for child in Study(config, []).children:
        yield child.variant or config.recipe, child.seed, folder.child(child.variant, child.seed)


def finished_arms(config: Config, folder: RunFolder) -> Arms:
    arms: Arms = {}
    for arm, seed, run in every_run(config, folder):
        arms.setdefault(arm, {}).update({seed: run} if run.finished else {})
    return arms


def numeric_metrics(run: RunFolder) -> dict[str, float]:
    metrics = run.read_json("metrics.json", {})
    return {k: v for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def common_facts(arms: Arms) -> dict[str, str]:
    """What is text in metrics.json, such as the corpus's hash, and the same in every run."""
    found = [run.read_json("metrics.json", {}).items() for runs in arms.values() for run in runs.values()]
    first = found[0] if found else ()
    return {k: v for k, v in first if isinstance(v, str) and all((k, v) in items for items in found)}


def shown_metrics(config: Config, runs: list[dict[str, float]]) -> list[str]:
    """The names that the recipe lists, or the claims' and the usual ones, or, where there are none of them, all."""
    there = list(dict.fromkeys(name for metrics in runs for name in metrics))
    wanted = config.study.get("metrics") or [*(claim["metric"] for claim in config.claims), *USUAL]
    chosen = [name for pattern in wanted for name in there if fnmatch(name, pattern)]
    return list(dict.fromkeys(chosen)) or there


# Figures


def add_figure(wanted: StudyFigure, arms: Arms, folder: RunFolder, folds: int | None) -> None:
    """Draw one figure, with folds of their means; where no run has what it asks for, say so and leave it out."""
    name = re.sub(r"\W+", "_", wanted["title"].lower()).strip("_")
    try:
        if "bars" in wanted:
            png, caption = bars(wanted, arms, folds)
        elif "points" in wanted:
            png, caption = points(wanted, arms, folds)
        else:
            png, caption = lines(wanted, arms, folds)
    except UserError as error:
        console.print(f"figure '{wanted['title']}' is left out: {error}")
        return
    folder.add_figure(name, png, wanted["title"], caption)


def lines(wanted: StudyFigure, arms: Arms, folds: int | None) -> tuple[bytes, str]:
    """Means over the seeds or folds, with a band from the lowest to the highest."""
    points = {
        arm: by_fold({s: run_points(wanted, run) for s, run in runs.items()}, folds) for arm, runs in arms.items()
    }
    counts = [count for count in (sum(map(bool, runs)) for runs in points.values()) if count]
    drawn = {arm: averaged(runs) for arm, runs in points.items()}  # those without a point too, for their colour's place
    chart = line_chart(
        {arm: means for arm, (means, _) in drawn.items()},
        wanted.get("x_label", wanted["x"]),
        wanted.get("y_label") or wanted.get("y") or wanted["curve"],
        log_y=wanted.get("log_y", False),
        markers="table" in wanted,
        bands={arm: band for arm, (_, band) in drawn.items()} if max(counts, default=0) > 1 else None,
    )
    return chart, over_repeats(counts, "the band reaches from the lowest to the highest", folds)


def run_points(wanted: StudyFigure, run: RunFolder) -> list[Point]:
    """(x, y) of one run, from its table or its logged curve; empty where it has none."""
    if "table" in wanted:
        if not (run.path / "tables" / f"{wanted['table']}.csv").is_file():
            return []
        rows: Iterable[Row] = ({k: parsed(v) for k, v in row.items()} for row in run.read_table(wanted["table"]))
        x, y = wanted["x"], wanted["y"]
    else:
        rows = (values | {"step": step} for step, values in run.training_curves())
        x, y = wanted["x"], wanted["curve"]
    pairs = ((row.get(x), row.get(y)) for row in rows)
    return [(a, b) for a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float)]


def by_fold(runs: dict[int, list[Point]], folds: int | None) -> list[list[Point]]:
    """The curve of each fold, the mean of its seeds' (keys); without folds every seed's own."""
    if not folds:
        return list(runs.values())
    places = dict.fromkeys(seed % folds for seed in runs)
    return [averaged([points for seed, points in runs.items() if seed % folds == place])[0] for place in places]


def averaged(runs: Sequence[list[Point]]) -> tuple[list[Point], list[Point]]:
    """The mean at every x, and (lowest, highest) there, over the runs that have a point at that x."""
    at: dict[float, list[float]] = {}
    for points in runs:
        for x, y in points:
            at.setdefault(x, []).append(y)
    ordered = sorted(at.items())
    return [(x, spread(values).mean) for x, values in ordered], [(min(values), max(values)) for _, values in ordered]


def bars(wanted: StudyFigure, arms: Arms, folds: int | None) -> tuple[bytes, str]:
    """A bar for each metric and variant: the mean, with one standard deviation to each side."""
    found: dict[str, dict[str, Any]] = {}
    for arm, runs in arms.items():
        numbers = {seed: numeric_metrics(run) for seed, run in runs.items()}
        values = {
            metric: fold_means({seed: row[metric] for seed, row in numbers.items() if metric in row}, folds)
            for metric in wanted["bars"]
        }
        found[arm] = {metric: spread(repeats) for metric, repeats in values.items() if repeats}
    chart = bar_chart(
        {arm: {metric: one.mean for metric, one in metrics.items()} for arm, metrics in found.items()},
        wanted.get("x_label", ""),
        spread={
            arm: {metric: one.deviation or 0.0 for metric, one in metrics.items()} for arm, metrics in found.items()
        },
        value_format=".4g",
    )
    counts = [one.n for metrics in found.values() for one in metrics.values()]
    return chart, over_repeats(counts, "the error bars are one standard deviation to each side", folds)


def points(wanted: StudyFigure, arms: Arms, folds: int | None) -> tuple[bytes, str]:
    """A point for each variant: the means of two metrics. Sizes of one family, such as net_s and net_m, are joined."""
    families: dict[str, list[Point]] = {}
    counts = []
    for arm, runs in arms.items():
        numbers = {seed: numeric_metrics(run) for seed, run in runs.items()}
        both = {seed: row for seed, row in numbers.items() if row.keys() >= {*wanted["points"]}}
        axes = [fold_means({seed: row[metric] for seed, row in both.items()}, folds) for metric in wanted["points"]]
        family = families.setdefault(family_of(arm), [])  # one without a point keeps its colour's place
        if both:
            x, y = (spread(values).mean for values in axes)
            family.append((x, y))
            counts.append(len(axes[0]))
    chart = line_chart(
        {family: sorted(found) for family, found in families.items()},
        wanted.get("x_label", wanted["points"][0]),
        wanted.get("y_label", wanted["points"][1]),
        log_x=wanted.get("log_x", False),
        log_y=wanted.get("log_y", False),
        markers=True,
        boxes=wanted.get("boxes"),
    )
    joined = " Sizes of one family are joined." if len(families) < len(arms) else ""
    return chart, over_repeats(counts, "the spread is in the table", folds) + joined


def family_of(arm: str) -> str:
    """Of a size, as net of net_s and of net_b2, the name without it; others are families of their own."""
    size = re.fullmatch(r"(.+)_(?:[smlx]+|[a-z]*\d+[a-z]*)", arm)
    return size[1] if size else arm


def over_repeats(counts: Sequence[int], spread_is: str, folds: int | None) -> str:
    low, high = min(counts), max(counts)
    one, many = ("fold", "folds, each averaged over its seeds") if folds else ("seed", "seeds")
    if high == 1:
        return f"One {one}: no spread is known."
    return f"Mean over {high if low == high else f'{low} to {high}'} {many}; {spread_is}."
