"""Every data test has caches of its own."""

import os
from pathlib import Path

import datasets
import pytest


@pytest.fixture
def shared_data() -> Path | None:
    """The folder of real sets: $EDGETRAIN_DATA, or the one beside the checkout, or None."""
    named = os.environ.get("EDGETRAIN_DATA", Path(__file__).parents[2].parent / "shared" / "data")
    return Path(named) if Path(named).is_dir() else None


@pytest.fixture(autouse=True)
def own_caches(
    shared_data: Path | None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("EDGETRAIN_CACHE", str(folder / "edgetrain"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    monkeypatch.delenv("EDGETRAIN_DATA", raising=False)
    return folder
