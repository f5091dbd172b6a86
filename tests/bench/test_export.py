"""The bench of artefacts: every one is there, of the size of its file, and its text is PyTorch's."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edgetrain.bench import export as bench
from edgetrain.errors import UserError
from edgetrain.export.language import Session
from edgetrain.folder import RunFolder

Call = Callable[..., tuple[int, str, str]]
LLAMA = ["model=llama", "data.vocab_size=60", "model.dim=16", "model.layers=2", "model.heads=2", "model.kv_heads=1"]
SMALL = [*LLAMA, "model.hidden_dim=32", "family=dnn", "size=s", "prompt_length=4", "new_tokens=12", "repeats=1"]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SLICE", 0.001)


def test_every_artefact_stands_beside_eager_pytorch(edgetrain: Call, workplace: Path) -> None:
    code, out, err = edgetrain("bench", "export", *SMALL, "targets=[onnx,pt2]", "out=bench")
    assert code == 0, err
    assert "A call of DNN-S" in out and "Features of one-second clips" in out
    folder = RunFolder.open("bench")
    names = ["pytorch", "onnx fp32", "onnx int8", "pt2 fp32", "pt2 int8"]
    rows = {row["contender"]: row for row in folder.read_table("keyword")}
    assert list(rows) == names
    weights = 4 * (25 * 10 * 144 + 2 * 144 * 144 + 144 * 12 + 3 * 144 + 12)  # the paper's DNN-S, frames every 40 ms
    assert float(rows["pytorch"]["file, KiB"]) == pytest.approx(weights / 1024)
    assert weights < 1024 * float(rows["onnx fp32"]["file, KiB"]) < weights + 6000
    assert weights / 4 < 1024 * float(rows["onnx int8"]["file, KiB"]) < weights / 3
    assert all(float(row["ms"]) > 0 for row in rows.values())
    assert all(float(rows[name]["conversion, s"]) > 0 for name in names[1:])
    assert [row["contender"] for row in folder.read_table("llama")] == ["pytorch", "onnx fp32", "pt2 fp32"]
    metrics = folder.read_json("metrics.json")
    assert metrics["keyword/onnx_int8/times_eager"] == "not quotable: 1 repeats are fewer than 5"
    assert metrics["features/100/edgetrain/clips_per_s"] > 0
    assert {row["clips at once"] for row in folder.read_table("features")} == {"1", "100"}


def test_a_text_that_is_not_pytorchs_is_no_measurement(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = Session.generate
    monkeypatch.setattr(Session, "generate", lambda *arguments: (said(*arguments) + 1) % 60)
    with pytest.raises(UserError, match="pt2 fp32 decoded another text than PyTorch"):
        bench.export(
            RunFolder(tmp_path), overrides=SMALL[:7], family="dnn", size="s", targets=["pt2"],
            prompt_length=4, new_tokens=12, repeats=1,
        )  # fmt: skip


def test_a_torchaudio_that_does_not_load_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "torchaudio_mfcc", lambda: None)
    metrics = bench.bench_features(RunFolder(tmp_path), repeats=1)
    assert sorted(metrics) == ["features/1/edgetrain/clips_per_s", "features/100/edgetrain/clips_per_s"]
    assert "torchaudio does not load here" in RunFolder(tmp_path).report_items()[0]["caption"]


def test_unknown_targets_and_sizes_are_sentences(edgetrain: Call) -> None:
    for argument, said in (("targets=[tflite]", "choose from executorch, onnx, pt2"), ("size=xl", "is not one of")):
        code, _, err = edgetrain("bench", "export", argument, "llama=false")
        assert code == 2 and said in err and "Traceback" not in err
