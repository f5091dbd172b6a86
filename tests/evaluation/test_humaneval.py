"""The real problems with their own solutions, the estimator against its definition, and a model's text as it is cut."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetrain.errors import UserError
from edgetrain.evaluation import humaneval
from edgetrain.evaluation.generation import cut
from edgetrain.evaluation.humaneval import STOP, HumanEval, Problem, outcome_rows, pass_at_k
from edgetrain.evaluation.sandbox import Outcome, run_program
from edgetrain.folder import RunFolder

PLACES = [os.environ.get("EDGETRAIN_DATA"), Path(__file__).resolve().parents[3] / "shared" / "data"]
REAL = next((Path(place) / "humaneval" for place in PLACES if place and (Path(place) / "humaneval").is_dir()), None)


def confines() -> bool:
    try:
        return run_program("").passed
    except UserError:
        return False


confined = pytest.mark.skipif(not confines(), reason="this machine gives no user namespaces")
real = pytest.mark.skipif(REAL is None, reason="HumanEval is not in $EDGETRAIN_DATA")


def problems(count: int | None = None) -> list[Problem]:
    return HumanEval(path=str(REAL), limit=count).problems()


@real
@confined
def test_canonical_solutions_pass_and_others_fail() -> None:
    for problem in problems(5):
        assert run_program(problem.program(problem.canonical_solution)).passed
        assert run_program(problem.program("    return None\n")).status == "failed"
        assert run_program(problem.program("    return (\n")).status == "syntax error"
        assert run_program(problem.program("    import sys; sys.exit(0)\n")).status == "failed"


@real
@confined
@pytest.mark.slow
def test_all_164_canonical_solutions_pass() -> None:
    everything = problems()
    assert len(everything) == 164
    failed = [p.task_id for p in everything if not run_program(p.program(p.canonical_solution), seconds=10.0).passed]
    assert failed == []


@real
def test_stop_sequences_leave_every_canonical_solution_whole() -> None:
    """Of the 164 only those whose solution itself goes on after a dedent would be cut; there is none."""
    assert [
        p.task_id for p in problems() if cut(p.canonical_solution, STOP).strip() != p.canonical_solution.strip()
    ] == []


@pytest.mark.parametrize(("samples", "passed", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 4), (7, 5, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(samples: int, passed: int, k: int) -> None:
    outcomes = [True] * passed + [False] * (samples - passed)
    subsets = list(itertools.combinations(outcomes, k))
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def small_set(folder: Path) -> Path:
    """Two problems: one that an empty completion solves, and one that nothing does. And one that is too long."""
    rows = [
        Problem("t/0", "def f():\n    return 1\n", "", "def check(g):\n    assert g() == 1\n", "f"),
        Problem("t/1", "def f():\n", "    return 1\n", "def check(g):\n    assert False, 'no'\n", "f"),
        Problem("t/2", "x" * 3000, "", "", "f"),
    ]
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    return folder


@confined
def test_the_measure_reports_outcomes_and_an_interval(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model whose every text is a comment, so that the problems' own code decides."""
    comment = "    # nothing\n    pass\n"
    monkeypatch.setattr(
        humaneval,
        "continuations",
        lambda model, tokenizer, prompts, *_, **__: ((index, comment) for index in range(len(prompts))),
    )
    run = RunFolder(tmp_path / "run")
    metrics = HumanEval(path=str(small_set(tmp_path / "set")), new_tokens=4).measure(loaded, run)
    assert metrics["humaneval/pass@1"] == pytest.approx(1 / 3)
    assert (metrics["humaneval/pass@1_low"], metrics["humaneval/pass@1_high"]) == (
        pytest.approx(0.0615, abs=1e-4),  # Wilson, 1 of 3
        pytest.approx(0.7923, abs=1e-4),
    )
    outcomes = {row["outcome"]: int(row["programs"]) for row in run.read_table("humaneval")}
    assert outcomes["passed"] == outcomes["failed"] == outcomes["prompt too long"] == 1
    assert [row["detail"] for row in run.read_table("humaneval_samples")] == ["", "AssertionError: no", ""]


@confined
def test_it_runs_on_a_real_model(loaded: Any, tmp_path: Path) -> None:
    measure = HumanEval(path=str(small_set(tmp_path / "set")), new_tokens=8, samples=2, temperature=0.8, pass_at=(1, 2))
    run = RunFolder(tmp_path / "run")
    metrics = measure.measure(loaded, run)
    assert 0 <= metrics["humaneval/pass@1"] <= metrics["humaneval/pass@2"] <= 1
    assert len(run.read_table("humaneval_samples")) == 6
    again = measure.measure(loaded, RunFolder(tmp_path / "again"))
    assert again == metrics  # the seed decides


def test_outcomes_are_counted_with_those_that_did_not_happen() -> None:
    rows = outcome_rows([Outcome("passed"), Outcome("failed"), Outcome("failed"), None])
    assert {row["outcome"]: row["programs"] for row in rows} == {
        "passed": 1,
        "failed": 2,
        "timed out": 0,
        "out of memory": 0,
        "syntax error": 0,
        "too much output": 0,
        "prompt too long": 1,
    }
    assert sum(row["share"] for row in rows) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"samples": 2}, "samples=2 would be alike at temperature=0"),
        ({"pass_at": (2,)}, r"pass_at=\[2\] must name numbers from 1 to samples=1"),
        ({"pass_at": ()}, r"pass_at=\[\] must name"),
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({"seconds": 0.0}, "seconds=0.0 must be above 0"),
    ],
)
def test_bad_values_are_sentences(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=f"measure.humaneval.*{sentence}"):
        HumanEval(**settings)


@confined
def test_what_does_not_fit_is_said_before_training(loaded: Any, tmp_path: Path) -> None:
    for settings, sentence in (
        ({"new_tokens": 32}, "new_tokens=32 leaves no room in the model's context of 32"),
        ({"new_tokens": 4, "exit_layer": 9}, "exit_layer=9: the model has layers 1 to 4"),
        ({"new_tokens": 4, "path": str(tmp_path / "none")}, "path=.*none does not exist"),
    ):
        with pytest.raises(UserError, match=f"measure.humaneval: {sentence}"):
            HumanEval(**settings).check(loaded.model)
    with pytest.raises(UserError, match=r"an empty program does not pass in the sandbox \(timed out: \); give it more"):
        HumanEval(new_tokens=4, seconds=1e-4, path=str(small_set(tmp_path / "set"))).check(loaded.model)
    with pytest.raises(UserError, match="decoding needs model=llama"):
        HumanEval().check(torch.nn.Linear(1, 1))
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "test.jsonl").write_text('{"task_id": "a", "prompt": "b"}\n')
    with pytest.raises(UserError, match="measure.humaneval: column=canonical_solution is not in path="):
        HumanEval(new_tokens=4, path=str(tmp_path / "short")).check(loaded.model)
