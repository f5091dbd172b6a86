"""Go on with an interrupted run: its own config, with only those changes that cannot alter what was already trained."""

from typing import Any

from edgetrain.build import read_config
from edgetrain.compose import compose
from edgetrain.config import Config
from edgetrain.errors import UserError, listing
from edgetrain.folder import RunFolder

MAY_CHANGE = ("trainer.max_steps", "trainer.max_time", "measure", "export", "logger", "baseline", "trust", "resume")


def resumed_config(path: str, overrides: list[str]) -> tuple[Config, RunFolder]:
    """The config to continue the run at `path` with, and its folder.

    Raises UserError when an override changes the model, the data or anything else that the checkpoint depends on.
    Schedules keep the length that they were started with, also when trainer.max_steps grows.
    """
    folder = RunFolder.open(path)
    saved = read_config(folder)
    config = compose([*overrides, f"++resume={folder.path}"], base=saved)
    changed = [
        key for key in differences(Config(**saved).to_dict(), config.to_dict()) if not key.startswith(MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            f"resume={path}: {listing(changed)} differs from the run that is being resumed; leave it as it was, or "
            f"start a new run with init_from={path}"
        )
    return config, folder


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Dotted keys at which two nested mappings differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [
            found for key in keys for found in differences(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if before == after else [path]
