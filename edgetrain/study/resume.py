"""Go on with a study: its finished runs stay, the others go on from their checkpoints or start."""

from edgetrain.build import read_config
from edgetrain.config import Config
from edgetrain.errors import UserError, listing
from edgetrain.folder import RunFolder
from edgetrain.resume import differences
from edgetrain.study.plan import Study, key_of, plan

MAY_CHANGE = ("parallel", "trust")


def resumed_study(path: str, overrides: list[str]) -> tuple[Study, RunFolder]:
    """The study of the folder at `path`, composed again from the recipe and the command line that made it.

    Raises UserError when that no longer gives the same configuration, because of an override or since the recipe was
    edited, and when it names what is not trusted.
    """
    folder = RunFolder.open(path)
    saved = folder.read_json("study.json")
    typed = saved.get("arguments") if isinstance(saved, dict) else None
    if not isinstance(typed, list) or not all(isinstance(text, str) for text in typed):
        raise UserError(f"{folder.path / 'study.json'} does not hold a command line; the file was damaged")
    kept = [text for text in typed if key_of(text) != "trust"]  # trust is the reader's to give
    study = plan([*kept, *overrides], smoke=bool(saved.get("smoke")), foreign=True)
    before, after = Config(**read_config(folder)).to_dict(), study.config.to_dict()
    changed = [key for key in differences(before, after) if key.partition(".")[0] not in MAY_CHANGE]
    if changed:
        raise UserError(
            f"resume={path}: {listing(changed)} differs from the study that is being resumed; put the recipe, its "
            "options and the command line back as they were, or start a new study"
        )
    return study, folder
