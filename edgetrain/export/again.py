"""Judge an exported folder again, on any machine that has its runtime: what is needed stands in its manifest."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetrain.build import build
from edgetrain.config import Config
from edgetrain.errors import UserError, listing
from edgetrain.export.judging import held_out
from edgetrain.folder import Row


def judge_again(folder: Path, manifest: Row, config: Config, form: str | None = None) -> dict[str, float]:
    """Metrics `<form>/...` of each form, or of one, in its own runtime on the test split that `config` names.

    folder, manifest: as `manifest.read_manifest` found them whole. Raises UserError for a form that is not there, when
    the runtime is not installed, and for data with other labels, other preprocessing or inputs of another shape.
    """
    forms, target = manifest["forms"], manifest["target"]
    if form is not None and form not in forms:
        raise UserError(f"form={form} is not in {folder}; it holds {listing(forms)}")
    if target not in config.export:
        raise UserError(f"{folder} is for {target}; leave out export= to judge it")
    exporter = build(config.export[target])
    if exporter.opening_runs_code and target not in config.trust:
        raise UserError(
            f"opening {folder} may run code that is in it; if you trust where it comes from, add trust=[{target}]"
        )
    data = build(config.data)
    data.prepare_data()
    node = {key: value for key, value in config.task.items() if key != "exit_layers"}  # of the model's; here is none
    task: Any = build(node, model=nn.Identity(), methods=[], optimizer=None)
    check_data(data, called_with(task, next(iter(held_out(task, data)))), manifest)
    metrics = {}
    for name in [form] if form else forms:
        predict = exporter.load(folder, name, tuple(forms[name]["files"]))
        found = task.evaluate(predict, held_out(task, data))
        metrics |= {f"{name}/{key}": value for key, value in found.items()}
    return metrics


def called_with(task: Any, batch: Any) -> tuple[Tensor, ...]:
    """What judging a batch calls the artefact with: its inputs, or one of each size that is made of them."""
    if hasattr(task, "called_with"):
        return tuple(torch.empty(1, *shape) for shape in sorted(task.called_with(batch)))
    return task.inputs(batch)


def check_data(data: Any, inputs: tuple[Tensor, ...], manifest: Row) -> None:
    """Raises UserError for data that the artefact was not made for. inputs: of a batch."""
    labels = list(getattr(data, "labels", []))
    if labels != manifest["labels"]:
        raise UserError(
            f"the artefact answers {listing(manifest['labels'])}, in this order, and the data has {listing(labels)}; "
            "give data with the same labels, in the same order"
        )
    mine, theirs = manifest["preprocessing"], data.preprocessing() if hasattr(data, "preprocessing") else {}
    for key in {**mine, **theirs}:
        if mine.get(key) != theirs.get(key):
            raise UserError(
                f"the artefact's inputs were prepared with {key}={mine.get(key)}, and the data's are with "
                f"{key}={theirs.get(key)}; judge it with data that is prepared alike"
            )
    free = any("sizes" in form for form in manifest["forms"].values())
    if manifest["labels"] and not free:  # of text the length is free too
        shapes = [list(value.shape[1:]) for value in inputs]
        made_for = [each["shape"][1:] for each in manifest["inputs"]]
        if shapes != made_for:
            raise UserError(f"the artefact takes inputs of {made_for}, and the data gives {shapes}; prepare it alike")
