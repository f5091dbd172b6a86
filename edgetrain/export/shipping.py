"""Everything that follows training on the way to a device: quantise once, export, judge each artefact, write it down.

The folder export/<target>/ appears whole, with its manifest and model card, or not at all.
"""

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from edgetrain.build import Trained
from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact, Exporter
from edgetrain.export.emulated import Emulated, emulate, remove_instructions, write_instructions
from edgetrain.export.judging import (
    check_called,
    check_generation,
    check_parity,
    groups_of,
    held_out,
    judge,
    write_predictions,
)
from edgetrain.export.latency import latencies
from edgetrain.export.manifest import CARD, NAME, describe, describe_form, file_facts
from edgetrain.export.model_card import model_card, warnings_of
from edgetrain.export.table import FLOAT, QUANTIZED, Said, baseline_predictions, identity, write_artefact_table
from edgetrain.folder import Row, RunFolder, write_atomic
from edgetrain.methods.quantize import check_post_training, post_training
from edgetrain.models.quantized import QuantizedModel, float_network

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}

console = Console(stderr=True, highlight=False)


def ship(trained: Trained, exporters: dict[str, Exporter], folder: RunFolder, licences: list[Row]) -> None:
    """export/<target>/ of every exporter, by its name, and in the run folder its predictions, metrics and the table.

    Raises UserError when an artefact's output differs from the model's by more than its exporter's tolerance; of that
    target nothing is changed then, in export/ or elsewhere.
    """
    inputs = trained.task.example_inputs()
    for exporter in exporters.values():
        check_called(exporter, trained.task, trained.data)
    trained = quantized_once(trained, exporters, inputs)
    warnings = [*warnings_of(licences), *other_data(trained, folder)]
    baselines = baseline_predictions(trained)
    about = describe(trained, folder, licences, warnings) | {"judged_sha256": identity(baselines, trained.data)}
    for target, exporter in exporters.items():
        console.print(f"export {target}")
        with appearing(folder.path / "export" / target) as out:
            artefacts = exporter.export(trained.model, inputs, trained.data, out)
            forms, predictions, emulated = {}, {}, {}
            for artefact in artefacts:
                forms[artefact.name], predictions[artefact.name] = judged_form(target, artefact, trained, out)
                emulated[artefact.name] = emulate(target, artefact, trained.task, trained.data)
                forms[artefact.name]["emulated"] = [each.facts() for each in emulated[artefact.name]]
            manifest = {"target": target, **about, "forms": forms}
            groups = groups_of(trained.data, len(baselines[FLOAT]))
            write_atomic(out / CARD, model_card(manifest, predictions, groups))
            write_atomic(out / NAME, json.dumps(manifest | {"files": file_facts(out)}, indent=2) + "\n")
        record(target, forms, predictions, emulated, baselines, trained, folder)
    for warning in warnings:
        console.print(f"warning: {warning}")


def record(
    target: str,
    forms: dict[str, Row],
    predictions: dict[str, Said],
    emulated: dict[str, list[Emulated]],
    baselines: dict[str, Said],
    trained: Trained,
    folder: RunFolder,
) -> None:
    """What the run folder says of a target, in place of what it said of an earlier export to it."""
    remove_predictions(target, folder)
    kept = baselines | {f"{target}_{form}": each for form, each in predictions.items()}
    for form, runs in emulated.items():
        for each in runs:  # of several kernels the first, the others gave the same numbers
            kept.setdefault(f"{target}_{form}_{each.emulation.processor}", each.predictions)
    for name, each in kept.items():
        write_predictions(folder, name, each, trained.data)
    stale = tuple(f"export/{name}/" for name in (target, FLOAT, QUANTIZED))
    metrics = {key: value for key, value in folder.read_json("metrics.json", {}).items() if not key.startswith(stale)}
    for name, form in forms.items():
        names = ("size_bytes", "parity", "argmax_agreement", "latency_ms")
        found = {key: form[key] for key in names if key in form} | form["metrics"]
        metrics |= {f"export/{target}/{name}/{key}": value for key, value in found.items()}
        for each in emulated[name]:
            metrics[f"export/{target}/{name}/{each.emulation.processor}/{each.emulation.kernels}/instructions"] = (
                each.instructions
            )
    folder.write_json("metrics.json", metrics | write_artefact_table(trained, baselines, folder))
    remove_instructions(target, folder)
    for name, runs in emulated.items():
        write_instructions(target, name, runs, folder)


def remove_predictions(target: str, folder: RunFolder) -> None:
    """Of an earlier export; those of a target whose name begins alike, as c_q7's with c's, stay."""
    longer = [path.name for path in (folder.path / "export").glob(f"{target}_*")]
    for path in (folder.path / "tables").glob(f"predictions_{target}_*.csv"):
        if not path.name.startswith(tuple(f"predictions_{name}_" for name in longer)):
            path.unlink()


def other_data(trained: Trained, folder: RunFolder) -> list[str]:
    """A warning where the data is not the run's own: what is held out now may have been trained on then."""
    before = folder.read_json("metrics.json", {}).get("corpus_sha256")
    now = trained.data.facts().get("corpus_sha256") if hasattr(trained.data, "facts") else None
    if before is None or before == now:
        return []
    return ["it was judged on other data than the run's own, and the run may have learned from parts of it"]


def quantized_once(trained: Trained, exporters: dict[str, Exporter], inputs: tuple[Any, ...]) -> Trained:
    """With the model quantised after training where an exporter may write it in int8 and nobody did before."""
    model: nn.Module = trained.model
    wanted = any(exporter.formats is None or "int8" in exporter.formats for exporter in exporters.values())
    if wanted and not isinstance(model, QuantizedModel):
        try:
            check_post_training(model, inputs)
        except UserError as error:
            console.print(f"no int8: {error}")
        else:
            console.print("quantise to int8, calibrated on the train split")
            model = post_training(model, inputs, trained.data)
    return replace(trained, model=model)


def judged_form(target: str, artefact: Artefact, trained: Trained, out: Path) -> tuple[Row, Said]:
    """What the manifest says of an artefact that was run on held-out data, and what it said of each item.

    Raises UserError when it is not what it is to equal.
    """
    task = trained.task
    judged = judge(artefact, task, held_out(task, trained.data))
    check_parity(target, artefact, judged)
    check_generation(target, artefact, task, trained.data)
    metrics = task.score(judged.predictions)
    form = describe_form(artefact, judged, metrics, out)
    inputs, network = task.example_inputs(), float_network(trained.model)
    if artefact.timed:
        times = latencies({"model": lambda: network(*inputs), "artefact": lambda: artefact.predict(*inputs)})
        form |= {"latency_ms": times["artefact"], "eager_latency_ms": times["model"]}
    step = f", {form['parity_lsb']:.2g} LSB" if artefact.lsb else ""
    console.print(
        f"  {artefact.name}: differs from the model by {judged.parity:.2g}{step}, same answer for "
        f"{judged.agreement:.2%} of {judged.answers:,}"
    )
    return form, judged.predictions


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
        if error.errno not in UNWRITABLE:  # something else in the block, such as a recording that is gone
            raise
        raise UserError(
            f"export {target.name}: cannot write {target}: {error.strerror or error}; free some space or choose "
            "another folder with out=DIR"
        ) from error
