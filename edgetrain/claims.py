"""Set the paper's effects beside what a run measured: seen, not seen, or undecided.

A recipe says `claims: [{effect, paper, metric, above | below, unless, margin}]`. The bound is a number, another
metric's name, or `baseline`: the same metric of the run named by `baseline=`, on the same corpus. A metric measured
with an interval (`<metric>_low`, `<metric>_high`) decides only when the whole interval lies on one side.

In a study `{effect, paper, metric, variant, against, above | below, margin}` compares two variants: the differences of
the metric between runs of the same seed, and the 95% t-interval of their mean, which has to lie on one side whole. One
seed decides only beyond a `margin`. With `study.folds` the differences of a fold are averaged first, and the folds
count instead of the seeds.
"""

from typing import Any

from edgetrain.build import find_source
from edgetrain.config import Config
from edgetrain.folder import Row, RunFolder
from edgetrain.spread import fold_means, interval_of_mean, spread


def judge(config: Config, folder: RunFolder) -> list[Row]:
    """One row for each claim of the recipe: effect, paper, measured, verdict, note."""
    metrics = folder.read_json("metrics.json", {})
    baseline, why_not = baseline_metrics(config, metrics)
    return [
        judge_pair(claim, config, folder) if "variant" in claim else judge_one(claim, metrics, baseline, why_not)
        for claim in config.claims
    ]


def judge_one(claim: dict[str, Any], metrics: Row, baseline: Row, why_not: str) -> Row:
    name = claim["metric"]
    above = claim.get("above") is not None
    bound = claim["above"] if above else claim.get("below")
    row = unjudged(claim) | {"measured": metrics.get(name)}
    if name not in metrics:
        return row | {"note": f"{name} was not measured"}
    if metrics.get(claim.get("unless")):
        return row | {"note": f"not to be quoted: {claim['unless']}"}
    if bound == "baseline":
        if name not in baseline:
            return row | {"note": why_not or f"the baseline run has no {name}"}
        limit, said = baseline[name], f"{baseline[name]:.4g} of the baseline run"
    elif isinstance(bound, str):
        if bound not in metrics:
            return row | {"note": f"{bound} was not measured"}
        limit, said = metrics[bound], f"{bound} = {metrics[bound]:.4g}"
    else:
        limit, said = bound, f"{bound:.4g}"
    low, high = metrics.get(f"{name}_low", metrics[name]), metrics.get(f"{name}_high", metrics[name])
    interval = f" (interval {low:.4g} to {high:.4g})" if low != high else ""
    return row | {"verdict": verdict(claim, limit, low, high), "note": f"{asked(claim, said)}{interval}"}


def judge_pair(claim: dict[str, Any], config: Config, study: RunFolder) -> Row:
    """A claim about two variants, from the study's finished runs of the same seed."""
    variant, against, name = claim["variant"], claim["against"], claim["metric"]
    row = unjudged(claim)
    if not (study.path / "runs").is_dir():
        return row | {"note": f"compares {variant} with {against}; only the whole study can"}
    differences: dict[int, float] = {}
    for seed in config.seeds:
        pair = [study.child(side, seed) for side in (variant, against)]
        mine, theirs = (run.read_json("metrics.json", {}) if run.finished else {} for run in pair)
        if name not in mine or name not in theirs:
            continue
        if mine.get("corpus_sha256") != theirs.get("corpus_sha256"):
            return row | {"note": f"{variant} and {against} were measured on different corpora"}
        if mine.get(claim.get("unless")) or theirs.get(claim.get("unless")):
            return row | {"note": f"not to be quoted: {claim['unless']}"}
        differences[seed] = mine[name] - theirs[name]
    if not differences:
        return row | {"note": f"no seed has a finished run of both {variant} and {against} with {name}"}
    folds = config.study.get("folds")
    independent = fold_means(differences, folds)
    mean, _, n = spread(independent)
    row["measured"] = mean
    bound = claim["below"] if claim.get("above") is None else claim["above"]
    said = f"{variant} minus {against}, {asked(claim, f'{bound:.4g}')}"
    if n == 1:
        decided = verdict(claim, bound, mean, mean) if claim.get("margin") else "undecided"
        return row | {"verdict": decided, "note": f"{said}; one {'fold' if folds else 'seed'}"}
    low, high = interval_of_mean(independent)
    note = f"{said}; {n} {'folds' if folds else 'seeds'}, 95% interval {low:.4g} to {high:.4g}"
    return row | {"verdict": verdict(claim, bound, low, high), "note": note}


def unjudged(claim: dict[str, Any]) -> Row:
    return {"effect": claim["effect"], "paper": claim["paper"], "measured": None, "verdict": "undecided"}


def verdict(claim: dict[str, Any], limit: float, low: float, high: float) -> str:
    """Where the whole interval lies: on the side that the claim asks for, on the other, or on neither."""
    margin = claim.get("margin") or 0.0
    if claim.get("above") is not None:
        seen, opposite = low > limit + margin, high <= limit - margin
    else:
        seen, opposite = high < limit - margin, low >= limit + margin
    return "seen" if seen else "not seen" if opposite else "undecided"


def asked(claim: dict[str, Any], bound: str) -> str:
    margin = claim.get("margin")
    side = "above" if claim.get("above") is not None else "below"
    return f"{side} {bound} is asked" + (f", by {margin:.4g} or more" if margin else "")


def baseline_metrics(config: Config, metrics: Row) -> tuple[Row, str]:
    """Metrics of the run to compare with, or nothing and the reason."""
    if not config.baseline:
        return {}, "no run to compare with was named; add baseline=<run folder>"
    other = RunFolder.open(find_source(config.baseline)).read_json("metrics.json", {})
    if other.get("corpus_sha256") != metrics.get("corpus_sha256"):
        return {}, "the baseline run was made on another corpus"
    return other, ""
