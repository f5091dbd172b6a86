"""manifest.json: what an exported folder holds, from what it was made, and how it was judged."""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgetrain.build import Trained
from edgetrain.checkpoint import last_checkpoint
from edgetrain.environment import commit, now
from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact
from edgetrain.export.judging import Judged
from edgetrain.folder import Row, RunFolder
from edgetrain.hardware.activation_memory import plan
from edgetrain.hardware.folding import deployed
from edgetrain.hardware.formats import parse_format
from edgetrain.models.quantized import QuantizedModel, float_network
from edgetrain.tasks.predictions import logits_of

SCHEMA = 1
NAME, CARD = "manifest.json", "MODEL_CARD.md"
PACKAGES = ("edgetrain", "torch", "torchao", "executorch", "onnx", "onnxruntime", "gguf", "transformers")


def describe_form(artefact: Artefact, judged: Judged, metrics: dict[str, float], out: Path) -> Row:
    """What the manifest says of one form. metrics: of the artefact, counted from its predictions."""
    quantum = {"lsb": artefact.lsb, "parity_lsb": judged.parity / artefact.lsb} if artefact.lsb else {}
    return {
        "files": list(artefact.files),
        "size_bytes": sum((out / file).stat().st_size for file in artefact.files),
        "parity": judged.parity,
        "tolerance": artefact.tolerance,
        **quantum,
        "argmax_agreement": judged.agreement,
        "judged_items": len(judged.predictions),
        "metrics": metrics,
        **dict(artefact.facts),
    }


def describe(trained: Trained, folder: RunFolder, licences: list[Row], warnings: list[str]) -> Row:
    """What holds for every form: origin, interface, preprocessing, size of the model."""
    config = trained.config.to_dict()
    network = float_network(trained.model)
    inputs = trained.task.example_inputs()
    with torch.inference_mode():
        output = logits_of(trained.model(*inputs))
    scheme = trained.model.scheme if isinstance(trained.model, QuantizedModel) else None
    return {
        "schema": SCHEMA,
        "created": now(),
        "commit": commit(),
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "recipe": config["recipe"],
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "checkpoint_sha256": checkpoint_sha256(folder),
        "licences": licences,
        "warnings": warnings,
        "task": type(trained.task).__name__.lower(),
        "inputs": [{"shape": list(value.shape), "type": str(value.dtype).removeprefix("torch.")} for value in inputs],
        "output": {"shape": list(output.shape), "type": str(output.dtype).removeprefix("torch.")},
        "labels": list(getattr(trained.data, "labels", [])),
        "preprocessing": trained.data.preprocessing() if hasattr(trained.data, "preprocessing") else {},
        "quantization": None if scheme is None else {"scheme": scheme.name, **scheme_facts(scheme)},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "float_bytes": sum(value.numel() * value.element_size() for value in network.parameters()),
        **workload_facts(network, inputs),
        "config": config,
    }


def scheme_facts(scheme: Any) -> Row:
    return {"output_scale": scheme.output_scale, "calibration": dict(scheme.calibration), "layers": scheme.layers}


def workload_facts(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Row:
    """MACs of one call, and the most bytes of activations that live at once; empty for what cannot be traced."""
    try:
        workload = deployed(network, inputs, "exported")
    except UserError:
        return {}
    parts = [workload.component(name) for name in workload.components]
    peaks = {
        "float32": max(plan(part).peak for part in parts),
        "int8": max(plan(part.assuming(parse_format("int8"))).peak for part in parts),
    }
    return {"macs": sum(layer.macs for layer in workload), "peak_activation_bytes": peaks}


def checkpoint_sha256(folder: RunFolder) -> str | None:
    try:
        return sha256(last_checkpoint(folder))
    except UserError:  # a job that keeps none
        return None


def file_facts(out: Path) -> Row:
    """Size and hash of every file but the manifest itself."""
    return {name: {"bytes": (out / name).stat().st_size, "sha256": sha256(out / name)} for name in files_of(out)}


def files_of(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and path.name != NAME)


def read_manifest(folder: Path) -> Row:
    """The manifest of an exported folder whose files are those that were judged.

    Raises UserError when there is none, when it is damaged, and when a file is missing, changed or not listed.
    """
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"artefact={folder} is not an exported folder: there is no {NAME} in it")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); export again") from error
    check_schema(manifest, path)
    for name, facts in manifest["files"].items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} names {name}, which is outside of the folder; do not use it")
        if not file.is_file():
            raise UserError(f"{file} is missing, though {NAME} lists it; copy the whole folder again")
        if sha256(file) != facts["sha256"]:
            raise UserError(f"{file} is not the file that was judged: its sha256 differs from the one in {NAME}")
    unlisted = [name for name in files_of(folder) if name not in manifest["files"]]
    if unlisted:
        raise UserError(f"{folder / unlisted[0]} is not listed in {NAME}: it was not judged; take it out")
    return manifest


def check_schema(manifest: Any, path: Path) -> None:
    """Raises UserError unless everything that `eval artefact=` reads is there and of its type."""
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise UserError(f"{path} is damaged (it holds no schema); export again")
    if manifest["schema"] != SCHEMA:
        raise UserError(f"{path} has schema {manifest['schema']}, this version reads {SCHEMA}; export again")
    kinds = {"target": str, "files": dict, "forms": dict, "config": dict, "labels": list, "inputs": list}
    wrong = [key for key, kind in (kinds | {"preprocessing": dict}).items() if not isinstance(manifest.get(key), kind)]
    if not wrong:
        files = [facts.get("sha256") if isinstance(facts, dict) else None for facts in manifest["files"].values()]
        wrong += [] if all(isinstance(value, str) for value in files) else ["files"]
        forms = manifest["forms"].items()
        wrong += [f"forms.{name}" for name, form in forms if not whole_form(form, manifest["files"])]
        node = (manifest["config"].get("export") or {}).get(manifest["target"])
        wrong += [] if isinstance(node, dict) else ["config.export"]
    if wrong:
        raise UserError(f"{path} is damaged ({', '.join(wrong)} is not what it was); export again")


def whole_form(form: Any, listed: Row) -> bool:
    """Whether a form names files that the manifest lists, and its metrics are numbers."""
    if not isinstance(form, dict) or not isinstance(form.get("files"), list) or not form["files"]:
        return False
    metrics = form.get("metrics")
    numbers = isinstance(metrics, dict) and all(isinstance(value, int | float) for value in metrics.values())
    return numbers and all(isinstance(name, str) and name in listed for name in form["files"])


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
