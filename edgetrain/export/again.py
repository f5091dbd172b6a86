"""Judge an exported folder again, on any machine that has its runtime: what is needed stands in its manifest."""

from pathlib import Path
from typing import Any

from torch import nn

from edgetrain.build import build
from edgetrain.config import Config
from edgetrain.errors import UserError, listing
from edgetrain.export.judging import held_out
from edgetrain.folder import Row


def judge_again(folder: Path, manifest: Row, config: Config, form: str | None = None) -> dict[str, float]:
    """Metrics `<form>/...` of each form, or of one, in its own runtime on the test split that `config` names.

    folder, manifest: as `manifest.read_manifest` found them whole. Raises UserError for a form that is not there, and
    when the runtime is not installed.
    """
    forms = manifest["forms"]
    if form is not None and form not in forms:
        raise UserError(f"form={form} is not in {folder}; it holds {listing(forms)}")
    target = manifest["target"]
    exporter = build(config.export[target])
    if exporter.opening_runs_code and target not in config.trust:
        raise UserError(
            f"opening {folder} may run code that is in it; if you trust where it comes from, add trust=[{target}]"
        )
    data = build(config.data)
    data.prepare_data()
    node = {key: value for key, value in config.task.items() if key != "exit_layers"}  # of the model's; here is none
    task: Any = build(node, model=nn.Identity(), methods=[], optimizer=None)
    metrics = {}
    for name in [form] if form else forms:
        predict = exporter.load(folder, name, tuple(forms[name]["files"]))
        found = task.evaluate(predict, held_out(task, data))
        metrics |= {f"{name}/{key}": value for key, value in found.items()}
    return metrics
