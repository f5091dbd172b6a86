"""How often a classifier is right: beside chance, by label, by group such as speaker, and what quantising changed."""

from typing import Any

import torch
from torch import Tensor

from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.models.quantized import QuantizedModel, float_network
from edgetrain.report.figures import heatmap
from edgetrain.spread import wilson_interval
from edgetrain.tasks.predictions import Predictions, trivial_accuracies

MOST_LABELS = 20  # more than this are not drawn
FEWEST = 30  # items of a group that can be the worst: of fewer, chance decides which one is
CAPTION = (
    "Share of the test split that is labelled right, with its 95% interval (Wilson); loss in nats. chance: one label "
    "in so many; majority: always the most frequent label of training. differs: items of which the quantised model "
    "says something else than the float model; change: its accuracy minus the float model's, with an interval that "
    "holds in at least 95% of samples (Clopper and Pearson's of the two shares that only one gets right, 97.5% each); "
    "p: McNemar's, exact."
)


class Classification:
    """The measure `classification`, on the test split of data with `labels`. No settings."""

    def measure(self, trained: Any, folder: RunFolder) -> dict[str, float]:
        """Tables `classification`, `classification_labels`, `classification_<group>`; a figure of the confusions.

        classification/accuracy, _low, _high, loss, chance, majority and <group>_worst, of groups of at least 30; of a
        quantised model also
        float_accuracy, differs, p and what accuracy it lost: lost, lost_low, lost_high. Raises UserError for data
        without labels, and for answers that are none of them.
        """
        data = trained.data
        if not hasattr(data, "labels"):
            raise UserError(
                "measure.classification needs data with labels, as data=audio_folder has; "
                f"{type(data).__name__} has none"
            )
        data.setup("test")
        models = {"float": float_network(trained.model)}
        if isinstance(trained.model, QuantizedModel):
            models[trained.model.scheme.name] = trained.model
        judged = {
            name: trained.task.predictions(model.eval(), data.test_dataloader()) for name, model in models.items()
        }
        for each in judged.values():
            check_answers(each, len(data.labels))
        shipped = list(judged.values())[-1]
        trivial = trivial_accuracies(data)
        rows: list[Row] = [
            {"model": name, "n": len(shipped), "accuracy": accuracy} for name, accuracy in trivial.items()
        ]
        rows += [{"model": name} | scores(each.right) | {"loss": each.mean_loss} for name, each in judged.items()]
        metrics = {
            "accuracy": rows[-1]["accuracy"],
            "accuracy_low": rows[-1]["low"],
            "accuracy_high": rows[-1]["high"],
            "loss": rows[-1]["loss"],
        }
        metrics |= trivial
        if len(judged) > 1:
            change = shipped.compared_with(judged["float"])
            rows[-1] |= change
            metrics |= {"float_accuracy": judged["float"].accuracy, "differs": change["differs"], "p": change["p"]}
            metrics |= {
                "lost": 0 - change["change"],
                "lost_low": 0 - change["change_high"],
                "lost_high": 0 - change["change_low"],
            }
        folder.add_table("classification", rows, "Accuracy on held-out data", CAPTION)
        by_label = grouped([data.labels[target] for target in shipped.target.tolist()], shipped, data.labels)
        folder.add_table("classification_labels", by_label, "Accuracy of each label", "Of the last model above.")
        for group, values in (data.groups("test") if hasattr(data, "groups") else {}).items():
            by_group = grouped(values, shipped, sorted(set(values) - {""}))
            folder.add_table(
                f"classification_{group}", by_group, f"Accuracy of each {group}", "Of the last model above."
            )
            enough = [row["accuracy"] for row in by_group if row["n"] >= FEWEST]
            metrics |= {f"{group}_worst": min(enough)} if enough else {}
        if len(data.labels) <= MOST_LABELS:
            draw_confusion(folder, shipped, data.labels)
        return {f"classification/{name}": value for name, value in metrics.items()}


def scores(right: Tensor) -> Row:
    """n, accuracy and its interval: low, high. right: bool [n]."""
    share = right.double().mean().item()
    low, high = wilson_interval(share, len(right))
    return {"n": len(right), "accuracy": share, "low": low, "high": high}


def grouped(values: list[str], judged: Predictions, order: list[str]) -> list[Row]:
    """A row of scores for each value of the order that an item has; an item with another one is in no group.

    Raises UserError when there are not as many values as items.
    """
    if len(values) != len(judged):
        raise UserError(f"the data names {len(values)} groups for {len(judged)} test items; its `groups` is wrong")
    places: dict[str, list[int]] = {value: [] for value in order}
    for place, value in enumerate(values):
        if value in places:
            places[value].append(place)
    return [{"value": value} | scores(judged.right[where]) for value, where in places.items() if where]


def confusion(judged: Predictions, labels: int) -> Tensor:
    """Items of each label (row) that were taken for each label (column): int64 [labels, labels]."""
    check_answers(judged, labels)
    return (judged.target * labels + judged.predicted).bincount(minlength=labels**2).view(labels, labels)


def check_answers(judged: Predictions, labels: int) -> None:
    """Raises UserError for an answer, or a target, that is none of the labels."""
    for numbers, what in ((judged.predicted, "the model answers"), (judged.target, "the data has")):
        outside = numbers[(numbers < 0) | (numbers >= labels)]
        if len(outside):
            raise UserError(
                f"{what} class {int(outside[0])}, but data.labels are {labels}; give the model as many classes"
            )


def draw_confusion(folder: RunFolder, judged: Predictions, labels: list[str]) -> None:
    counts = confusion(judged, len(labels))
    totals = counts.sum(1, keepdim=True)
    shares = torch.where(totals > 0, counts / totals.clamp(min=1), torch.nan)
    figure = heatmap(shares.tolist(), labels, labels, "taken for", "label", value_label="share of the label")
    caption = "Share of the test items of each label (row) that the model takes for each label; a row adds up to 1."
    folder.add_figure("classification", figure, "What is taken for what", caption)
