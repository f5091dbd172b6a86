"""The verb: benches by name, keys checked against their signatures, one folder for each."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edgetrain.bench.catalogue import benches, checked, parsed
from edgetrain.bench.results import run_bench, show_rows, timing_rows
from edgetrain.bench.side_by_side import Timing
from edgetrain.errors import UserError

Call = Callable[..., tuple[int, str, str]]


def test_every_bench_is_listed_with_a_sentence_and_its_keys(edgetrain: Call) -> None:
    code, out, _ = edgetrain("bench")
    assert code == 0
    assert "train_language  Tokens a second in training" in out
    assert "recipe=layerskip_llama steps=20 repeats=7" in out
    assert all(bench.sentence.endswith(".") for bench in benches().values())
    assert "side_by_side" not in benches()


def test_listing_and_bad_requests_import_no_torch(tmp_path: Path) -> None:
    program = "import sys; from edgetrain.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for arguments in ([], ["train_languag"], ["train_language", "stepz=3"]):
        ended = subprocess.run([sys.executable, "-c", program, "bench", *arguments], capture_output=True, cwd=tmp_path)
        assert ended.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train_languag"], ["there is no bench 'train_languag' (did you mean 'train_language'?)"]),
        (["train_language", "stepz=3"], ["has no parameter 'stepz' (did you mean 'steps'?)"]),
        (["train_language", "steps=many", "repeats=1.5"], ["steps='many': expected int", "repeats=1.5: expected int"]),
        (["train_language", "steps"], ["'steps' is not key=value"]),
        (["train_language", "steps=1,2"], ["a bench takes one value a key"]),
        (["train_language", "model.dimm=3"], ["model.dimm=3", "did you mean 'dim'?"]),
        (["train_language", "recipe=nothing"], ["recipe=nothing: no such recipe"]),
    ],
)
def test_bad_requests_are_sentences(edgetrain: Call, arguments: list[str], words: list[str]) -> None:
    code, _, err = edgetrain("bench", *arguments)
    assert code == 2, err
    assert all(word in err for word in words), err
    assert "Traceback" not in err


def test_values_are_read_as_a_recipe_reads_them() -> None:
    assert parsed(["a=1", "b=1e-3", "c=[1,2]", "d=null", "e=true", "f=a b"]) == {
        "a": 1, "b": 1e-3, "c": [1, 2], "d": None, "e": True, "f": "a b",
    }  # fmt: skip


def test_what_is_addressed_to_the_recipe_is_passed_on_as_it_stands() -> None:
    values = checked("train_language", ["steps=3", "model.dim=32", "data=text", "+trainer.x=1"])
    assert values == {"steps": 3, "overrides": ["model.dim=32", "data=text", "+trainer.x=1"]}
    with pytest.raises(UserError, match="no parameter 'out'"):
        checked("train_language", ["out=x"])


def timing(name: str, seconds: list[float]) -> Timing:
    return Timing(name, units=[12] * len(seconds), seconds=seconds, cores=2.0, others=[0.0] * len(seconds))


def test_a_row_holds_median_quartiles_and_the_ratio_or_why_there_is_none() -> None:
    peer = timing("peer", [3.0, 4.0, 6.0, 4.0, 4.0])
    rows = timing_rows([timing("twice", [1.5, 2.0, 3.0, 2.0, 2.0]), peer, timing("same", peer.seconds)], peer, "tokens")
    assert rows[0] == {
        "contender": "twice", "tokens/s": 6.0, "lower quartile": 6.0, "upper quartile": 6.0, "repeats": 5,
        "times peer": "2 (2 to 2)",
    }  # fmt: skip
    assert rows[1]["times peer"] == ""
    assert rows[2]["times peer"] == "not quotable: the quartiles 1 and 1 are on both sides of 1"


def test_a_bench_becomes_a_folder_with_everything(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bench(folder, *, steps):
        peer = timing("peer", [3.0] * 5)
        show_rows(folder, "speeds", timing_rows([timing("one", [1.0] * 5), peer], peer, "tokens"), "Speeds", "Fake.")
        return {"steps": steps}

    monkeypatch.setattr("edgetrain.bench.train_language.train_language", bench)
    folder = run_bench("train_language", {"steps": 4})
    assert folder.path.parent == workplace / "outputs" / "bench_train_language"
    assert yaml.safe_load((folder.path / "config.yaml").read_text())["bench"] == {"name": "train_language", "steps": 4}
    environment = json.loads((folder.path / "environment.json").read_text())
    assert {"processor", "usable_cores", "threads", "commit", "finished"} <= environment.keys()
    assert folder.read_json("metrics.json") == {"steps": 4}
    assert folder.read_table("speeds")[0]["times peer"] == "3 (3 to 3)"
    page = (folder.path / "report.html").read_text()
    assert "Speeds" in page and "3 (3 to 3)" in page
    assert "3 (3 to 3)" in capsys.readouterr().out
