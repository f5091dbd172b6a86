"""What an exporter hands back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Artefact:
    """An exported file or folder that can be run as it will be shipped.

    predict: the artefact itself, called like the model; tolerance: largest absolute difference of its output from the
    model's that its exporter allows.
    """

    path: Path
    predict: Callable[..., Any]
    tolerance: float
