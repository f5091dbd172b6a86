"""What a recipe's targets cannot do is said before training, not after it; and the whole path in one small run."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sets import sets

SMALL = ["recipe=kws_fsdd", "--smoke", "measure=[classification]", "hardware=[]", "trainer.enable_progress_bar=false"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kws(edgetrain: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("EDGETRAIN_DATA", str(sets(workplace)))
    return edgetrain


def test_a_runtime_that_is_not_installed_is_named_with_the_line_that_installs_it(
    kws: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    hidden: Callable[..., Any] = lambda name, *more: None if name == "onnxruntime" else found(name, *more)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", hidden)
    code, _, err = kws(*SMALL, "export=[onnx]", "out=run")
    assert code == 2
    assert 'export.onnx needs onnxruntime, not installed here; pip install -c constraints.txt -e ".[deploy]"' in err
    assert not list(Path("run/checkpoints").glob("*.ckpt"))  # nothing was trained


def test_a_target_for_other_models_is_refused_before_training(kws: Run) -> None:
    code, _, err = kws(*SMALL, "export=[gguf]", "out=run")
    assert code == 2
    assert "export.gguf" in err
    assert not list(Path("run/checkpoints").glob("*.ckpt"))


def test_a_run_ends_with_one_table_that_a_folder_repeats(kws: Run) -> None:
    """Train, quantise, export twice, judge; then judge the folder again, by itself."""
    code, _, err = kws(*SMALL, "out=run")
    assert code == 0, err
    rows = [line.split(",") for line in Path("run/tables/artefacts.csv").read_text().splitlines()]
    names = ["row", "chance", "majority", "float", "quantized"]
    assert [row[0] for row in rows] == [
        *names,
        *(f"{target}_{form}" for target in ("executorch", "onnx") for form in ("fp32", "int8")),
    ]
    code, out, err = kws("eval", "artefact=run/export/onnx")
    assert code == 0, err
    again = dict(line.split() for line in out.splitlines())
    for form in ("fp32", "int8"):
        place = rows[0].index("accuracy")
        said = next(row for row in rows if row[0] == f"onnx_{form}")[place]
        assert float(again[f"{form}/accuracy"]) == pytest.approx(float(said), rel=1e-3)
    assert "manifest.json says" not in err
