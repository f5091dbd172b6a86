"""What a search found: every proposal in candidates.csv, the trained ones as a table, and the figure of the front."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.jobs.search_board import COUNTED
from edgetrain.jobs.search_candidate import Candidate
from edgetrain.report.figures import Point, line_chart
from edgetrain.spread import wilson_interval
from edgetrain.tasks.predictions import Predictions


@dataclass(frozen=True)
class Aim:
    """What is traded: the most (or with sign -1 the least) of a metric, against the least of a need."""

    metric: str
    sign: int
    against: str

    def score(self, candidate: Candidate) -> float:
        """More is better."""
        return self.sign * candidate.score(self.metric)

    def cost(self, candidate: Candidate) -> float:
        return candidate.verdict.of(self.against)


def front(candidates: Sequence[Candidate], aim: Aim) -> list[Candidate]:
    """Those than which none is better at no more cost, nor as good at less; from the cheapest on."""
    kept: list[Candidate] = []
    for one in sorted(candidates, key=lambda each: (aim.cost(each), -aim.score(each), each.name)):
        if not kept or aim.score(one) > aim.score(kept[-1]):
            kept.append(one)
    return kept


def write_candidates(candidates: Sequence[Candidate], folder: RunFolder) -> None:
    """Every proposal in tables/candidates.csv, in order; the report shows only those that were trained."""
    folder.write_table(
        "candidates", [row_of(one) | {"fits": yes(not why(one)), "why not": why(one)} for one in candidates]
    )


def why(candidate: Candidate) -> str:
    return candidate.verdict.reason or candidate.problem


def yes(value: bool) -> str:
    return "yes" if value else "no"


def row_of(candidate: Candidate) -> Row:
    """What it is and what it needs."""
    needs = {
        f"{name} ({unit})" if unit else name: candidate.verdict.of(name)
        for name, unit in COUNTED.items()
        if candidate.verdict.of(name) is not None
    }
    return {"network": candidate.name, **candidate.values, **needs}


def add_result(
    trained: Sequence[Candidate], references: Sequence[Candidate], aim: Aim, limit: float | None, folder: RunFolder
) -> None:
    """The table and the figure of what was trained."""
    best = {one.name for one in front(trained, aim)}
    everyone = sorted([*trained, *references], key=aim.cost)
    rows = [trained_row(one, one.name in best, aim, folder) for one in everyone]
    n = everyone[0].items
    caption = (
        f"One seed each, {n} validation items; low and high: the 95% interval of an accuracy over that many. The "
        "proposals that did not fit, and why, are in tables/candidates.csv."
    )
    folder.add_table("trained", rows, "Networks that were trained", caption)
    scale, label = (1e-6, "operations an inference (million)") if aim.against == "operations" else (1, "ms, modelled")
    points = {one.name: (scale * aim.cost(one), one.score(aim.metric)) for one in everyone}
    series = {
        "searched": [points[one.name] for one in sorted(trained, key=aim.cost)],
        "front": stairs([points[one.name] for one in front(trained, aim)]),
        **{one.name: [points[one.name]] for one in references},
    }
    try:
        chart = line_chart(
            series,
            label,
            f"validation {aim.metric}",
            log_x=True,
            dots=["searched"],
            boxes=None if limit is None else {"limit": scale * limit},
        )
    except UserError:
        return
    caption = f"A dot is a network of one seed, judged on {n} validation items; the line is the best that a cost buys."
    folder.add_figure("front", chart, f"{aim.metric.capitalize()} against {aim.against}", caption)


def stairs(points: Sequence[Point]) -> list[Point]:
    """With the corner before each point: what a cost buys is what the dearest network below it gives."""
    corners = [(x, y) for (x, _), (_, y) in zip(points[1:], points, strict=False)]
    return [points[0], *(each for pair in zip(corners, points[1:], strict=True) for each in pair)]


def trained_row(candidate: Candidate, on_front: bool, aim: Aim, folder: RunFolder) -> Row:
    row = row_of(candidate)
    row[aim.metric] = candidate.score(aim.metric)
    accuracy = candidate.score("accuracy")
    if accuracy is not None:
        low, high = wilson_interval(accuracy, candidate.items)
        row |= {"accuracy": accuracy, "low": low, "high": high}
    made = "by hand" if candidate.point is None else "front" if on_front else ""
    return row | {
        "kind": made,
        "does not fit": candidate.verdict.reason,
        "seconds": candidate.metrics.get("train_seconds"),
        "run": f"runs/{candidate.folder(folder).path.name}",
    }


def add_comparison(
    best: Candidate, judged: Predictions, references: dict[str, Predictions], folder: RunFolder
) -> dict[str, float]:
    """Best and references on the test split, in pairs. Returns metrics `<reference>/...`."""
    metrics: dict[str, Any] = {}
    rows: list[Row] = [{"network": best.name, "test accuracy": judged.accuracy}]
    for name, other in references.items():
        change = judged.compared_with(other)
        rows.append(
            {"network": name, "test accuracy": other.accuracy}
            | {
                f"{best.name} minus this": change["change"],
                "low": change["change_low"],
                "high": change["change_high"],
                "p": change["p"],
            }
        )
        metrics |= {f"{name}/test/accuracy": other.accuracy} | {
            f"{name}/{key}": change[key] for key in ("change", "change_low", "change_high", "p")
        }
    if references:
        caption = (
            f"{len(judged)} test items, which the search never saw; change with its 95% interval, wider than need "
            "be, and McNemar's exact p, in pairs. One seed each: another training may differ by more."
        )
        folder.add_table("test", rows, "The chosen network on the test split", caption)
    return metrics
