"""A claim is seen, not seen or undecided, and says why."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from edgetrain.claims import judge
from edgetrain.config import Config
from edgetrain.folder import RunFolder


def verdict(tmp_path: Path, metrics: dict[str, Any], baseline: dict[str, Any] | None = None, **claim: Any) -> dict:
    folder = RunFolder.create("x", str(tmp_path / "run"))
    folder.write_json("metrics.json", {"corpus_sha256": "a"} | metrics)
    named = None
    if baseline is not None:
        other = RunFolder.create("y", str(tmp_path / "other"))
        (other.path / "config.yaml").write_text(yaml.safe_dump({"recipe": "y"}))
        other.write_json("metrics.json", {"corpus_sha256": "a"} | baseline)
        named = str(other.path)
    claims = [{"effect": "faster", "paper": "2x", "metric": "speed"} | claim]
    return judge(Config(recipe="x", baseline=named, claims=claims), folder)[0]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"speed": 1.2}, "seen"),
        ({"speed": 0.9}, "not seen"),
        ({"speed": 1.0}, "not seen"),
        ({"speed": 1.2, "speed_low": 1.1, "speed_high": 1.3}, "seen"),
        ({"speed": 1.2, "speed_low": 0.9, "speed_high": 1.3}, "undecided"),
        ({"speed": 0.8, "speed_low": 0.7, "speed_high": 0.9}, "not seen"),
        ({}, "undecided"),
    ],
)
def test_a_number_above_its_bound(tmp_path: Path, metrics: dict[str, float], expected: str) -> None:
    assert verdict(tmp_path, metrics, above=1.0)["verdict"] == expected


def test_a_figure_that_may_not_be_quoted_decides_nothing(tmp_path: Path) -> None:
    row = verdict(tmp_path, {"speed": 2.0, "collapsed": 1}, above=1.0, unless="collapsed")
    assert row["verdict"] == "undecided"
    assert "not to be quoted" in row["note"]


def test_a_difference_within_the_margin_decides_nothing(tmp_path: Path) -> None:
    assert verdict(tmp_path / "a", {"speed": 0.95}, below=1.0, margin=0.1)["verdict"] == "undecided"
    assert verdict(tmp_path / "b", {"speed": 0.85}, below=1.0, margin=0.1)["verdict"] == "seen"
    assert verdict(tmp_path / "c", {"speed": 1.15}, below=1.0, margin=0.1)["verdict"] == "not seen"


def test_a_number_below_its_bound(tmp_path: Path) -> None:
    assert verdict(tmp_path, {"speed": 0.5}, below=1.0)["verdict"] == "seen"


def test_a_bound_may_be_another_metric(tmp_path: Path) -> None:
    row = verdict(tmp_path, {"speed": 2.0, "other": 3.0}, below="other")
    assert row["verdict"] == "seen"
    assert "other = 3" in row["note"]


def test_without_a_baseline_a_comparison_is_undecided_and_says_how_to_decide_it(tmp_path: Path) -> None:
    row = verdict(tmp_path, {"speed": 2.0}, below="baseline")
    assert row["verdict"] == "undecided"
    assert "baseline=<run folder>" in row["note"]


def test_a_baseline_of_the_same_corpus_decides(tmp_path: Path) -> None:
    assert verdict(tmp_path, {"speed": 2.0}, {"speed": 3.0}, below="baseline")["verdict"] == "seen"


def test_a_baseline_of_another_corpus_is_not_compared(tmp_path: Path) -> None:
    row = verdict(tmp_path, {"speed": 2.0}, {"speed": 3.0, "corpus_sha256": "b"}, below="baseline")
    assert row["verdict"] == "undecided"
    assert "another corpus" in row["note"]
