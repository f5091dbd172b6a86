"""Fixtures of the model tests: the released keyword networks and clips, where they are at hand."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

CLIPS = ("yes", "no", "silence", "noise")


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the released networks, in $EDGETRAIN_DATA or ../shared/data."""
    data = Path(os.environ.get("EDGETRAIN_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not (data / "kws_pretrained").is_dir():
        pytest.skip("set EDGETRAIN_DATA to a folder that holds kws_pretrained")
    monkeypatch.setenv("EDGETRAIN_DATA", str(data))
    return data / "kws_pretrained"


@pytest.fixture
def clips(released: Path) -> dict[str, Tensor]:
    """A second each of somebody who says yes or no, of silence and of noise: samples [1, 16000]."""
    import soundfile

    folder = released.parent / "kws_clips"
    if not folder.is_dir():
        pytest.skip("set EDGETRAIN_DATA to a folder that holds kws_clips")
    read = {name: soundfile.read(folder / f"{name}_1000ms.wav", dtype="float32") for name in CLIPS}
    assert {rate for _, rate in read.values()} == {16000}
    return {name: torch.from_numpy(samples)[None] for name, (samples, _) in read.items()}
