"""Set the paper's effects beside what a run measured: seen, not seen, or undecided.

A recipe says `claims: [{effect, paper, metric, above | below, unless, margin}]`. The bound is a number, another
metric's name, or `baseline`: the same metric of the run named by `baseline=`, on the same corpus. A metric measured
with an interval (`<metric>_low`, `<metric>_high`) decides only when the whole interval lies on one side.
"""

from typing import Any

from edgetrain.build import find_source
from edgetrain.config import Config
from edgetrain.folder import RunFolder


def judge(config: Config, folder: RunFolder) -> list[dict[str, Any]]:
    """One row for each claim of the recipe: effect, paper, measured, verdict, note."""
    metrics = folder.read_json("metrics.json", {})
    baseline, why_not = baseline_metrics(config, metrics)
    return [judge_one(claim, metrics, baseline, why_not) for claim in config.claims]


def judge_one(claim: dict[str, Any], metrics: dict[str, Any], baseline: dict[str, Any], why_not: str) -> dict[str, Any]:
    name = claim["metric"]
    above = claim.get("above") is not None
    bound = claim["above"] if above else claim.get("below")
    row = {"effect": claim["effect"], "paper": claim["paper"], "measured": metrics.get(name), "verdict": "undecided"}
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
    margin = claim.get("margin") or 0.0
    if above:
        seen, opposite = low > limit + margin, high <= limit - margin
    else:
        seen, opposite = high < limit - margin, low >= limit + margin
    verdict = "seen" if seen else "not seen" if opposite else "undecided"
    by = f", by {margin:.4g} or more" if margin else ""
    return row | {"verdict": verdict, "note": f"{'above' if above else 'below'} {said} is asked{by}{interval}"}


def baseline_metrics(config: Config, metrics: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Metrics of the run to compare with, or nothing and the reason."""
    if not config.baseline:
        return {}, "no run to compare with was named; add baseline=<run folder>"
    other = RunFolder.open(find_source(config.baseline)).read_json("metrics.json", {})
    if other.get("corpus_sha256") != metrics.get("corpus_sha256"):
        return {}, "the baseline run was made on another corpus"
    return other, ""
