"""One table of all that a run exported, counted from the predictions that it kept, beside chance and the model."""

import hashlib
import json
from typing import Any

from edgetrain.build import Trained
from edgetrain.errors import listing
from edgetrain.export.judging import held_out, read_predictions
from edgetrain.export.manifest import NAME
from edgetrain.folder import Row, RunFolder
from edgetrain.models.quantized import QuantizedModel, float_network
from edgetrain.tasks.mask_predictions import MaskPredictions
from edgetrain.tasks.predictions import Predictions, trivial_accuracies

Said = Predictions | MaskPredictions
FLOAT, QUANTIZED = "float", "quantized"  # names of the predictions of the model itself
JUDGED = (
    "Every row is counted from tables/predictions_ROW.csv. An artefact ran in its own runtime on the same held-out "
    "items; differs counts the items of which it says something else than the float model, "
)
CHANGE = (
    "change is its accuracy "
    "minus that of the float model, with an interval that holds in at least 95% of samples (Clopper and Pearson's of "
    "the two shares that only one gets right, 97.5% each). "
)
MASK_CHANGE = (
    "be it in one pixel; change is its mean_iou minus that of the float model, with the 95% interval of a percentile "
    "bootstrap over images. mean_iou is the mean over classes of the share of the pixels in a class's truth or "
    "prediction that are in both, of all images together; accuracy and loss (nats) are of a pixel. "
)
COST = (
    "Milliseconds are the median of calls "
    "with one input on one thread of the machine that exported, not of a device; instructions are of one input on a "
    "processor under emulation, which ran the first items only, since it is slow."
)


def baseline_predictions(trained: Trained) -> dict[str, Said]:
    """Of the float model, and of its quantised form, on what artefacts are judged on."""
    models: dict[str, Any] = {FLOAT: float_network(trained.model)}
    if isinstance(trained.model, QuantizedModel):
        models[QUANTIZED] = trained.model
    return {
        name: trained.task.predictions(model, held_out(trained.task, trained.data)) for name, model in models.items()
    }


def identity(baselines: dict[str, Said], data: Any) -> str:
    """A hash of the data and the models that artefacts are compared with; others do not stand in one table."""
    parts = [str(data.facts().get("corpus_sha256")) if hasattr(data, "facts") else ""]
    parts += [str((name, *each.identity())) for name, each in baselines.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write_artefact_table(trained: Trained, baselines: dict[str, Said], folder: RunFolder) -> Row:
    """tables/artefacts.csv of what is under export/; returns the metrics `export/<row>/...` of the model's rows.

    What was exported earlier from another model, or judged on other data, is left out and named in the caption.
    """
    manifests = [json.loads(path.read_text()) for path in sorted((folder.path / "export").glob(f"*/{NAME}"))]
    same = identity(baselines, trained.data)
    others = [each["target"] for each in manifests if each.get("judged_sha256") != same]
    manifests = [each for each in manifests if each.get("judged_sha256") == same]
    forms = {f"{each['target']}_{name}": form for each in manifests for name, form in each["forms"].items()}
    reference = read_predictions(folder, FLOAT)
    rows = trivial_rows(reference, trained.data)
    timed = (form["eager_latency_ms"] for form in forms.values() if "eager_latency_ms" in form)
    columns: dict[str, Row] = {name: {} for name in baselines}
    columns[FLOAT] = {"bytes": manifests[0]["float_bytes"], "milliseconds": next(timed, None)}
    for name, form in forms.items():
        columns[name] = {"bytes": form["size_bytes"], "milliseconds": form.get("latency_ms")}
        for run in form.get("emulated", ()):
            columns.setdefault(f"{name}_{run['processor']}", {"instructions": run["instructions"]})
    for name, each in columns.items():
        predictions = read_predictions(folder, name)
        counts = {"items": len(predictions)} | predictions.scores() | against(predictions, reference, name)
        rows.append({"row": name} | counts | each)
    counted = ("items", *reference.scores())
    metrics = {f"export/{row['row']}/{key}": row[key] for row in rows if row["row"] in baselines for key in counted}
    left_out = f" Left out, as exported earlier from another model or judged on other data: {listing(others)}."
    caption = JUDGED + (MASK_CHANGE if isinstance(reference, MaskPredictions) else CHANGE) + COST
    title = "What was exported, judged on the artefact"
    folder.add_table("artefacts", rows, title, caption + (left_out if others else ""))
    return metrics


def trivial_rows(reference: Said, data: Any) -> list[Row]:
    """What needs no model, on the same items: a guess, and always the most frequent class of training."""
    rows = {name: {"accuracy": accuracy} for name, accuracy in trivial_accuracies(data).items()}
    if isinstance(reference, MaskPredictions) and hasattr(data, "class_pixels"):
        always = reference.always(int(data.class_pixels("train").argmax()))
        rows["majority"] = {"mean_iou": always.mean_iou, "accuracy": always.accuracy}
    return [{"row": name, "items": len(reference), **values} for name, values in rows.items()]


def against(predictions: Said, reference: Said, name: str) -> Row:
    """The paired comparison with the float model on the same items; empty for that model itself."""
    if name == FLOAT:
        return {}
    compared = predictions.compared_with(reference.first(len(predictions)))
    return {key: value for key, value in compared.items() if key != "p"}
