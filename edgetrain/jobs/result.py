"""What a job leaves behind."""

from dataclasses import dataclass, field

from edgetrain.build import Trained


@dataclass
class Result:
    """metrics: name to number. models: what was trained, by name; empty for a simulator. `run.py` goes on from here."""

    metrics: dict[str, float | int | str]
    models: dict[str, Trained] = field(default_factory=dict)
