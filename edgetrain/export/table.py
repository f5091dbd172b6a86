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
from edgetrain.paired import compare
from edgetrain.tasks.predictions import Predictions

FLOAT, QUANTIZED = "float", "quantized"  # names of the predictions of the model itself
CAPTION = (
    "Every row is counted from tables/predictions_ROW.csv. An artefact ran in its own runtime on the same held-out "
    "items; differs counts the items of which it says something else than the float model, change is its accuracy "
    "minus that of the float model, with an interval that holds in at least 95% of samples (Clopper and Pearson's of "
    "the two shares that only one gets right, 97.5% each). Milliseconds are the median of calls "
    "with one input on one thread of the machine that exported, not of a device."
)


def baseline_predictions(trained: Trained) -> dict[str, Predictions]:
    """Of the float model, and of its quantised form, on what artefacts are judged on."""
    models: dict[str, Any] = {FLOAT: float_network(trained.model)}
    if isinstance(trained.model, QuantizedModel):
        models[QUANTIZED] = trained.model
    return {
        name: trained.task.predictions(model, held_out(trained.task, trained.data)) for name, model in models.items()
    }


def identity(baselines: dict[str, Predictions], data: Any) -> str:
    """A hash of the data and the models that artefacts are compared with; others do not stand in one table."""
    parts = [str(data.facts().get("corpus_sha256")) if hasattr(data, "facts") else ""]
    parts += [str((name, each.target.tolist(), each.predicted.tolist())) for name, each in baselines.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write_artefact_table(trained: Trained, baselines: dict[str, Predictions], folder: RunFolder) -> Row:
    """tables/artefacts.csv of what is under export/; returns the metrics `export/<row>/...` of the model's rows.

    What was exported earlier from another model, or judged on other data, is left out and named in the caption.
    """
    manifests = [json.loads(path.read_text()) for path in sorted((folder.path / "export").glob(f"*/{NAME}"))]
    same = identity(baselines, trained.data)
    others = [each["target"] for each in manifests if each.get("judged_sha256") != same]
    manifests = [each for each in manifests if each.get("judged_sha256") == same]
    forms = {f"{each['target']}_{name}": form for each in manifests for name, form in each["forms"].items()}
    reference, _ = read_predictions(folder, FLOAT)
    rows = trivial_rows(trained, len(reference))
    metrics: Row = {}
    for name in (*baselines, *forms):
        predictions, _ = read_predictions(folder, name)
        row = {"row": name, **scores(predictions), **against(predictions, reference, name)}
        if name in forms:
            row |= {"bytes": forms[name]["size_bytes"], "milliseconds": forms[name].get("latency_ms")}
        elif name == FLOAT:
            timed = (form["eager_latency_ms"] for form in forms.values() if "eager_latency_ms" in form)
            row |= {"bytes": manifests[0]["float_bytes"], "milliseconds": next(timed, None)}
        rows.append(row)
        if name in baselines:
            metrics |= {f"export/{name}/{key}": value for key, value in scores(predictions).items()}
    left_out = f" Left out, as exported earlier from another model or judged on other data: {listing(others)}."
    folder.add_table(
        "artefacts", rows, "What was exported, judged on the artefact", CAPTION + (left_out if others else "")
    )
    return metrics


def scores(predictions: Predictions) -> Row:
    return {
        "items": len(predictions),
        "accuracy": predictions.accuracy,
        "loss": predictions.mean_loss,
    }


def against(predictions: Predictions, reference: Predictions, name: str) -> Row:
    """The paired comparison with the float model; empty for that model itself."""
    if name == FLOAT:
        return {}
    compared = compare(reference.right, predictions.right)
    return {
        "differs": int((predictions.predicted != reference.predicted).sum()),
        "change": compared.difference,
        "change_low": compared.low,
        "change_high": compared.high,
    }


def trivial_rows(trained: Trained, items: int) -> list[Row]:
    """What guessing gives, and always saying the most frequent label of training; for data that knows them."""
    facts = trained.data.facts() if hasattr(trained.data, "facts") else {}
    return [{"row": name, "items": items, "accuracy": facts[name]} for name in ("chance", "majority") if name in facts]
