"""What `eval tasks=` does where the harness is not installed, and with what it gives back."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetrain.errors import UserError
from edgetrain.evaluation.benchmarks import benchmark, metrics_of, report, result_rows, typed_names
from edgetrain.folder import RunFolder

RESULTS = {
    "results": {
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.25,
            "exact_match_stderr,strict-match": 0.1,
            "exact_match,flexible-extract": 0.5,
            "exact_match_stderr,flexible-extract": "N/A",
        },
        "boolq": {"alias": "boolq", "acc,none": 1, "acc_stderr,none": 0.0},
    },
    "n-shot": {"gsm8k": 5, "boolq": 0},
    "n-samples": {"gsm8k": {"original": 1319, "effective": 20}, "boolq": {"original": 9, "effective": 9}},
}


def test_names_tell_filters_exits_and_errors_apart() -> None:
    assert metrics_of(result_rows(RESULTS, None)) == {
        "eval/gsm8k/exact_match_strict-match": 0.25,
        "eval/gsm8k/exact_match_strict-match_stderr": 0.1,
        "eval/gsm8k/exact_match_flexible-extract": 0.5,
        "eval/boolq/acc": 1.0,
        "eval/boolq/acc_stderr": 0.0,
    }
    assert metrics_of(result_rows(RESULTS, 4)).keys() >= {"eval/exit_4/boolq/acc", "eval/exit_4/boolq/acc_stderr"}


def test_the_table_keeps_other_rows_and_replaces_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    report(folder, result_rows(RESULTS, None), "harness")
    report(folder, [row | {"value": 0.75} for row in result_rows(RESULTS, 4)], "harness")
    report(folder, [row | {"value": 0.5} for row in result_rows(RESULTS, None) if row["task"] == "boolq"], "harness")
    values = {(row["task"], row["exit"], row["metric"]): row["value"] for row in folder.read_table("eval")}
    assert len(values) == 6
    assert (values["boolq", "last", "acc"], values["boolq", "4", "acc"]) == ("0.5", "0.75")
    assert values["gsm8k", "last", "exact_match_strict-match"] == "0.25"
    assert {row["samples"] for row in folder.read_table("eval") if row["task"] == "gsm8k"} == {"20"}


def test_tasks_are_typed_with_brackets_or_without() -> None:
    assert typed_names("[boolq, piqa]") == typed_names("boolq,piqa") == ["boolq", "piqa"]
    with pytest.raises(UserError, match="tasks= is empty"):
        typed_names("[ ]")


def test_without_the_extra_one_sentence_says_how_to_install_it(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r'install it with: pip install -c constraints\.txt -e "\.\[eval\]"'):
        benchmark(loaded, RunFolder(tmp_path), "boolq")


def test_a_run_without_a_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"asks a language model, and this run's data \(SimpleNamespace\) has no tokeni"
    ):
        benchmark(SimpleNamespace(data=SimpleNamespace()), RunFolder(tmp_path), "boolq")
