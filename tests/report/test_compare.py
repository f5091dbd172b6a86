"""Runs beside each other: what differs, by how much, and how much is equal."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.report.compare import Comparison, compare, write_comparison

Call = Callable[..., tuple[int, str, str]]

CONFIG = {"recipe": "tiny", "seed": 0, "out": None, "model": {"dim": 32, "layers": 4}, "smoke": ["a=1"]}
ENVIRONMENT = {"command": "x", "commit": "abc", "packages": {"torch": "2.13.0", "numpy": "2"}, "finished": "2026-01-02"}


def made(path: Path, config: dict, environment: dict, metrics: dict) -> str:
    folder = RunFolder.create("tiny", str(path))
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG | config))
    folder.write_json("environment.json", ENVIRONMENT | environment)
    folder.write_json("metrics.json", metrics)
    return str(path)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    a = made(tmp_path / "one", {}, {}, {"loss": 2.0, "steps": 10, "precision": "bf16", "only": 1, "none": float("nan")})
    b = made(
        tmp_path / "two",
        {"out": "two", "model": {"dim": 64, "layers": 4}, "method": {"lora": {"rank": 2}}, "smoke": []},
        {"command": "y", "packages": {"torch": "2.14.0", "numpy": "2"}},
        {"loss": 1.5, "steps": 10, "precision": "32", "test": {"documents": 3}, "none": float("nan")},
    )
    return [a, b]


def test_only_what_differs_is_listed_and_the_rest_is_counted(pair: list[str]) -> None:
    found = compare(pair)
    assert found.differing["configuration"] == [
        {"configuration": "model.dim", "a": 32, "b": 64},
        {"configuration": "method.lora.rank", "a": "–", "b": 2},
    ]
    assert found.differing["environment"] == [{"environment": "packages.torch", "a": "2.13.0", "b": "2.14.0"}]
    assert found.equal == {"configuration": 3, "environment": 2, "metrics": 2}  # recipe, seed, layers; ...


def test_metrics_have_difference_and_ratio(pair: list[str]) -> None:
    rows = {row["metrics"]: row for row in compare(pair).differing["metrics"]}
    assert rows["loss"] == {"metrics": "loss", "a": 2.0, "b": 1.5, "b - a": -0.5, "b / a": 0.75}
    assert rows["precision"] == {"metrics": "precision", "a": "bf16", "b": "32", "b - a": None, "b / a": None}
    assert rows["only"]["b"] == "–" and rows["only"]["b - a"] is None
    assert rows["test.documents"]["a"] == "–"
    assert set(rows) == {"loss", "precision", "only", "test.documents"}


def test_every_later_run_stands_against_the_first(tmp_path: Path) -> None:
    paths = [made(tmp_path / str(loss), {}, {}, {"loss": loss}) for loss in (0.0, 2.0, 3.0)]
    (row,) = compare(paths).differing["metrics"]
    assert row == {
        "metrics": "loss", "a": 0.0, "b": 2.0, "c": 3.0, "b - a": 2.0, "b / a": None, "c - a": 3.0, "c / a": None,
    }  # fmt: skip
    assert compare(paths[::-1]).differing["metrics"][0]["b / a"] == pytest.approx(2 / 3)


def test_bad_requests_are_one_sentence(pair: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a run folder"):
        compare([pair[0], "nowhere"])
    with pytest.raises(UserError, match="name two or more"):
        compare(pair[:1])
    (tmp_path / "one" / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot be read"):
        compare(pair)


def test_the_page_holds_what_the_terminal_shows(pair: list[str], tmp_path: Path) -> None:
    comparison: Comparison = compare(pair)
    page = write_comparison(comparison, tmp_path / "out")
    assert page == tmp_path / "out" / "compare.html"
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "| loss | 2 | 1.5 | -0.5 | 0.75 |" in markdown
    assert "| model.dim | 32 | 64 |" in markdown
    assert "configuration: 2 differ, 3 equal" in markdown
    assert "default-src 'none'" in page.read_text()


def test_the_verb_compares_in_the_terminal_and_writes_on_request(edgetrain: Call, pair: list[str]) -> None:
    code, out, err = edgetrain("report", f"compare=[{','.join(pair)}]")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert ["loss", "2", "1.5", "-0.5", "0.75"] in lines
    assert ["environment:", "1", "differs,", "2", "equal"] in lines
    assert not Path("out").exists()
    code, out, err = edgetrain("report", f"compare=[{','.join(pair)}]", "out=out")
    assert code == 0, err
    assert Path("out/compare.html").is_file() and "out/compare.html" in out
    code, _, err = edgetrain("report", f"compare=[{pair[0]},gone]")
    assert code == 2 and "gone is not a run folder" in err
    code, _, err = edgetrain("report", f"compare=[{','.join(pair)}]", "ouput=x")
    assert code == 2 and "takes only out=DIR" in err


def test_comparing_imports_no_torch(pair: list[str], tmp_path: Path) -> None:
    import subprocess
    import sys

    program = "import sys; from edgetrain.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", program, "report", f"compare=[{','.join(pair)}]"]
    assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode == 0
