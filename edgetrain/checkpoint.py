"""Read weights and checkpoints from anywhere without running anything that is stored in them."""

import json
import os
import pickle
import re
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgetrain.errors import UserError, listing
from edgetrain.folder import RunFolder
from edgetrain.processes import is_first

RANGES = ("input_range", "output_range")  # names of the buffers [2] that training with rounding adds to layers
MODEL_PREFIX = "model."  # of the plain model's keys inside a task's state dict
AVERAGED = "averaged"  # in the state of a method: weights by the model's keys, which stand for those that train
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # a run's newest checkpoint, and the one before it


class DamagedCheckpoint(UserError):
    """The file is not what was written."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint as plain containers.

    Raises UserError when it is missing or holds code, DamagedCheckpoint when it is cut short or a byte has changed.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no checkpoint at {path}; train first, or name another run")
    try:
        if zipfile.is_zipfile(path):
            _check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search("Unsupported (global|class)", str(error)):
            raise UserError(
                f"cannot load {path}: it holds code or objects, which are never loaded; "
                "use a checkpoint of plain weights"
            ) from error
        raise DamagedCheckpoint(f"cannot load {path}: it is damaged; use a checkpoint of plain weights") from error
    except (RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedCheckpoint(
            f"cannot load {path}: the file is cut short or damaged; use an older one of its folder"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"cannot load {path}: it holds a {type(checkpoint).__name__}, not a checkpoint's mapping")
    return checkpoint


def _check_sums(path: Path) -> None:
    """torch.load does not look at the checksums that torch.save writes. Raises ValueError when one differs."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise ValueError("checksum")


def kept_checkpoints(folder: RunFolder) -> list[Path]:
    """A run's checkpoints, the newest first. By name: times of files follow a clock that may be set back."""
    return [path for name in (LAST, PREVIOUS) if (path := folder.checkpoints / name).is_file()]


def last_checkpoint(folder: RunFolder) -> Path:
    """The newest checkpoint of a run. Raises UserError when it has none."""
    found = kept_checkpoints(folder)
    if not found:
        raise UserError(f"{folder.path} holds no checkpoint: the run ended before its first one; start it again")
    return found[0]


def resume_point(folder: RunFolder) -> tuple[Path | None, dict[str, Any]]:
    """The newest whole checkpoint and its contents; (None, {}) when the run ended before its first one.

    A newer one that is damaged is put aside as <name>.damaged, and said so on stderr. Raises UserError when all are.
    """
    found = kept_checkpoints(folder)
    damaged = []
    for path in found:
        try:
            state = read_checkpoint(path)
        except DamagedCheckpoint:
            damaged.append(path)
            continue
        for other in damaged if is_first() else ():  # it must not become the previous one of the next that is written
            other.rename(other.with_name(f"{other.name}.damaged"))
            print(
                f"{other} is damaged; going on from the one before it, of step {state.get('global_step')}",
                file=sys.stderr,
            )
        return path, state
    if damaged:
        raise UserError(
            f"no checkpoint of {folder.path} can be read: {listing(path.name for path in damaged)} "
            f"{'are' if len(damaged) > 1 else 'is'} damaged; start the run again"
        )
    return None, {}


def model_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The plain model's part of a task's checkpoint."""
    state = checkpoint.get("state_dict", {})
    return {key.removeprefix(MODEL_PREFIX): value for key, value in state.items() if key.startswith(MODEL_PREFIX)}


def shipped_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The same, as a run ships them: a method may keep an average of those that train."""
    states = checkpoint.get("edgetrain", {}).get("methods", {})
    weights = model_weights(checkpoint)
    for state in states.values():
        averaged = state.get(AVERAGED, {})
        weights |= {key: value.to(weights[key].dtype) for key, value in averaged.items() if key in weights}
    return weights


def read_weights(source: str) -> dict[str, Tensor]:
    """The plain model's state dict, as it is shipped: of a run folder, a .ckpt or .safetensors file, or a Hugging Face
    folder.
    """
    path = Path(source)
    if os.path.isfile(path / "config.yaml"):  # False, where Path.is_file raises, for a name that is too long
        path = last_checkpoint(RunFolder.open(path))
    if path.suffix == ".ckpt":
        return shipped_weights(read_checkpoint(path))
    if path.suffix == ".safetensors":
        files = [path]
    else:
        files = sorted(path.glob("*.safetensors")) if os.path.isdir(path) else []
    if not files or not all(map(os.path.isfile, files)):
        raise UserError(
            f"init_from={source}: no weights there; name a run folder, a .ckpt or .safetensors file, "
            "or a Hugging Face folder with *.safetensors"
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot load {file}: {error}; the file is damaged, copy it again") from error
    return weights


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy weights into a model, strictly; a key may miss only where its tensor is tied to one that is there.

    Ranges that quantisation-aware training added are left out for a model without them, which they say nothing about.

    Raises UserError naming the first keys or shapes that do not fit, and the two tensors that the model has as one.
    """
    own = model.state_dict()
    weights = {key: value for key, value in weights.items() if key in own or key.rpartition(".")[2] not in RANGES}
    tied = {
        key for key, value in own.items() if any(value is own[k] or same(value, own[k]) for k in weights if k in own)
    }
    missing = [key for key in own if key not in weights and key not in tied]
    unknown = [key for key in weights if key not in own]
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in weights
        if key in own and weights[key].shape != own[key].shape
    ]
    for what, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes for", shapes)):
        if names:
            raise UserError(
                f"the weights of {source} do not fit this model: the file {what} {listing(names, 3)}; "
                f"use the model settings that it was made with{other_architecture(source)}"
            )
    held: dict[int, str] = {}
    for key in weights:
        twin = held.setdefault(own[key].data_ptr() or id(own[key]), key)
        if twin != key and not torch.equal(weights[key], weights[twin]):
            raise UserError(
                f"the weights of {source} do not fit this model: {twin} and {key} differ, and the model has one tensor "
                "for both; set model.tied=false"
            )
    model.load_state_dict(weights, strict=False)


def other_architecture(source: str) -> str:
    """What a Hugging Face folder says it holds, to follow a sentence; empty where it is a Llama, or says nothing."""
    try:
        kind = json.loads((Path(source) / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "" if kind in ("llama", "mobilellm") else f"; its config.json says {kind}, which is model=transformers here"


def same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.device.type != "meta"
