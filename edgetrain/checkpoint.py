"""Read weights and checkpoints from anywhere without running anything that is stored in them."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgetrain.errors import UserError, listing
from edgetrain.folder import RunFolder

MODEL_PREFIX = "model."  # of the plain model's keys inside a task's state dict


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint as plain containers. Raises UserError when it is missing, cut short or holds code."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}; train first, or name another run")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds code or objects, which are never loaded" if "Unsupported" in str(error) else "it is damaged"
        raise UserError(f"cannot load {path}: {reason}; use a checkpoint of plain weights") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"cannot load {path}: the file is cut short or damaged; use an older one of its folder"
        ) from error


def last_checkpoint(folder: RunFolder) -> Path:
    """The newest checkpoint of a run. Raises UserError when it has none."""
    found = sorted(folder.checkpoints.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"{folder.path} holds no checkpoint: the run ended before its first one; start it again")
    return found[-1]


def model_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The plain model's part of a task's checkpoint."""
    state = checkpoint.get("state_dict", {})
    return {key.removeprefix(MODEL_PREFIX): value for key, value in state.items() if key.startswith(MODEL_PREFIX)}


def read_weights(source: str) -> dict[str, Tensor]:
    """The plain model's state dict from a run folder, a .ckpt or .safetensors file, or a Hugging Face folder."""
    path = Path(source)
    if (path / "config.yaml").is_file():
        path = last_checkpoint(RunFolder.open(path))
    if path.suffix == ".ckpt":
        return model_weights(read_checkpoint(path))
    files = [path] if path.suffix == ".safetensors" else sorted(path.glob("*.safetensors"))
    if not files or not all(file.is_file() for file in files):
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

    Raises UserError naming the first keys or shapes that do not fit.
    """
    own = model.state_dict()
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
                "use the model settings that it was made with"
            )
    model.load_state_dict(weights, strict=False)


def same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.device.type != "meta"
