"""Everything that follows training on the way to a device: quantise once, export, judge each artefact, write it down.

The folder export/<target>/ appears whole, with its manifest and model card, or not at all.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from edgetrain.build import Trained
from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact, Exporter
from edgetrain.export.judging import (
    check_generation,
    check_parity,
    held_out,
    judge,
    read_predictions,
    write_predictions,
)
from edgetrain.export.latency import latencies
from edgetrain.export.manifest import CARD, NAME, describe, describe_form, file_facts
from edgetrain.export.model_card import model_card, warnings_of
from edgetrain.export.table import groups_of, write_artefact_table, write_baselines
from edgetrain.folder import Row, RunFolder, write_atomic
from edgetrain.methods.quantize import can_quantize, post_training
from edgetrain.models.quantized import QuantizedModel, float_network

console = Console(stderr=True, highlight=False)


def ship(trained: Trained, exporters: dict[str, Exporter], folder: RunFolder, licences: list[Row]) -> dict[str, Any]:
    """export/<target>/ of every exporter, by its name; returns the metrics `export/<target>/<form>/...`.

    Raises UserError when an artefact's output differs from the model's by more than its exporter's tolerance; what that
    target had exported is then removed.
    """
    inputs = trained.task.example_inputs()
    trained = quantized_once(trained, exporters, inputs)
    about = describe(trained, folder, licences)
    write_baselines(trained, folder)
    metrics: dict[str, Any] = {}
    for target, exporter in exporters.items():
        console.print(f"export {target}")
        with appearing(folder.path / "export" / target) as out:
            artefacts = exporter.export(trained.model, inputs, trained.data, out)
            forms = {each.name: judged_form(target, each, trained, folder, out) for each in artefacts}
            manifest = {"target": target, "warnings": warnings_of(licences), **about, "forms": forms}
            predictions = {name: read_predictions(folder, f"{target}_{name}")[0] for name in forms}
            groups = groups_of(trained.data, next(iter(forms.values()))["judged_items"])
            write_atomic(out / CARD, model_card(manifest, predictions, groups))
            write_atomic(out / NAME, json.dumps(manifest | {"files": file_facts(out)}, indent=2) + "\n")
        for name, form in forms.items():
            names = ("size_bytes", "parity", "argmax_agreement", "latency_ms")
            kept = {key: form[key] for key in names if key in form}
            metrics |= {f"export/{target}/{name}/{key}": value for key, value in (kept | form["metrics"]).items()}
    metrics |= write_artefact_table(trained, folder)
    for warning in warnings_of(licences):
        console.print(f"warning: {warning}")
    return metrics


def quantized_once(trained: Trained, exporters: dict[str, Exporter], inputs: tuple[Any, ...]) -> Trained:
    """With the model quantised after training where an exporter may write it in int8 and nobody did before."""
    model: nn.Module = trained.model
    wanted = any(
        getattr(exporter, "formats", ()) is None or "int8" in exporter.formats for exporter in exporters.values()
    )
    if wanted and not isinstance(model, QuantizedModel) and can_quantize(model, inputs):
        console.print("quantise to int8, calibrated on the train split")
        model = post_training(model, inputs, trained.data)
    return Trained(model, trained.task, trained.data, trained.config, trained.plans)


def judged_form(target: str, artefact: Artefact, trained: Trained, folder: RunFolder, out: Path) -> Row:
    """What the manifest says of an artefact that was run on held-out data; its predictions are kept in the run folder.

    Raises UserError when it is not what it is to equal.
    """
    task = trained.task
    judged = judge(artefact, task, held_out(task, trained.data))
    check_parity(target, artefact, judged)
    check_generation(target, artefact, next(iter(held_out(task, trained.data))), task)
    name = f"{target}_{artefact.name}"
    write_predictions(folder, name, judged.predictions, groups_of(trained.data, len(judged.predictions)))
    counted, _ = read_predictions(folder, name)
    metrics = task.score(counted.mean_loss, counted.accuracy)
    form = describe_form(artefact, judged, metrics, out)
    inputs, network = task.example_inputs(), float_network(trained.model)
    if artefact.timed:
        times = latencies({"model": lambda: network(*inputs), "artefact": lambda: artefact.predict(*inputs)})
        form |= {"latency_ms": times["artefact"], "eager_latency_ms": times["model"]}
    step = f", {form['parity_lsb']:.2g} LSB" if artefact.lsb else ""
    console.print(
        f"  {artefact.name}: differs from the model by {judged.parity:.2g}{step}, same answer for "
        f"{judged.agreement:.2%} of {len(judged.predictions):,}"
    )
    return form


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target` when it is whole, and is removed when anything goes wrong.

    Raises UserError when the disk refuses.
    """
    try:
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            out = Path(scratch) / target.name
            out.mkdir()
            yield out
            for path in out.rglob("*"):  # some writers leave files that only their owner may read
                path.chmod(0o755 if path.is_dir() else 0o644)
            if target.exists():
                shutil.rmtree(target)
            out.rename(target)
    except OSError as error:
        raise UserError(
            f"export {target.name}: cannot write {target}: {error.strerror or error}; free some space or choose "
            "another folder with out=DIR"
        ) from error
