"""A whole sweep of a bowl whose lowest point is known: rate 0.01, width 3, loss 0."""

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import yaml
from conftest import ROOT, SMALL

from edgetrain.compose import compose
from edgetrain.folder import RunFolder
from edgetrain.recipes import header
from edgetrain.spread import interval_of_mean
from edgetrain.sweep.ledger import JOURNAL, Ledger
from edgetrain.sweep.plan import plan_sweep

Call = Callable[..., tuple[int, str, str]]

GRID = ("job.rate=choice(0.001,0.01,1)", "job.width=range(2,5)")
LINE = "job.rate=tag(log,interval(1e-4,1))"


def rows(place: str) -> list[dict[str, str]]:
    with (Path(place) / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def metrics(place: str) -> dict:
    return json.loads((Path(place) / "metrics.json").read_text())


def table(place: str, name: str) -> list[dict[str, str]]:
    return RunFolder(Path(place)).read_table(name)


def starts(place: str, name: str) -> list[str]:
    return (Path(place) / "runs" / f"{name}.starts").read_text().split()


def test_every_point_of_a_small_space_is_tried_once_and_the_lowest_found(sweep: Call) -> None:
    code, out, err = sweep(*GRID, "trials=20", "retrain=0", "out=s")
    assert code == 0, err
    tried = [(float(row["job.rate"]), int(row["job.width"])) for row in rows("s")]
    assert tried == [(rate, width) for rate in (0.001, 0.01, 1) for width in (2, 3, 4)]
    for row, (rate, width) in zip(rows("s"), tried, strict=True):
        assert float(row["mean"]) == pytest.approx((math.log10(rate) + 2) ** 2 + (width - 3) ** 2 / 10)
    assert metrics("s") == {"best_trial/number": 4, "best_trial/test/loss": 0.0, "trials_complete": 9}
    assert "run folder  s" in out
    best = yaml.safe_load(Path("s/best.yaml").read_text())
    assert (best["job"]["rate"], best["job"]["width"]) == (0.01, 3)
    assert [row["trial"] for row in table("s", "trials")][:3] == ["4", "3", "5"]  # best first


def test_the_highest_is_found_as_well(sweep: Call) -> None:
    assert sweep(*GRID, "direction=maximize", "retrain=0", "out=s")[0] == 0
    best = yaml.safe_load(Path("s/best.yaml").read_text())
    assert (best["job"]["rate"], best["job"]["width"]) == (1, 2)
    assert table("s", "trials")[0]["trial"] == "6"


def test_optuna_closes_in_on_the_lowest_point_of_an_interval(computed: None, sweep: Call) -> None:
    assert sweep(LINE, "trials=40", "retrain=0", "out=s")[0] == 0
    assert len(rows("s")) == 40
    assert math.log10(yaml.safe_load(Path("s/best.yaml").read_text())["job"]["rate"]) == pytest.approx(-2, abs=0.1)
    later = [abs(math.log10(float(row["job.rate"])) + 2) for row in rows("s")][20:]
    assert sorted(later)[len(later) // 2] < 0.75  # of uniform draws half would be further than 1


def test_a_trials_value_is_the_mean_over_its_seeds(sweep: Call) -> None:
    """At rate 0.01 and width 3 the losses of the seeds 0 and 2 are 0 and 1; of width 4 0.1 and 1.1."""
    assert sweep("job.rate=0.01", "job.width=3,4", "job.noise=0.5", "seed=0,2", "retrain=0", "out=s")[0] == 0
    first, second = rows("s")
    assert float(first["mean"]) == pytest.approx(0.5)
    assert float(second["mean"]) == pytest.approx(0.6)
    for row in (first, second):
        assert float(row["deviation"]) == pytest.approx(math.sqrt(0.5))
        assert (row["seeds"], row["state"]) == ("2", "complete")
    assert first["folder"] == "runs/trial0_seed0 runs/trial0_seed2"
    run = RunFolder.open("s/runs/trial1_seed2")
    assert run.finished
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (config["seed"], config["job"]["width"], config["recipe"]) == (2, 4, "bowl")


def test_the_best_is_a_recipe_that_gives_the_same_and_runs(sweep: Call, edgetrain: Call) -> None:
    """The smoke list loses what the sweep has chosen, or --smoke would take the choice back."""
    typed = ["variant=deep,flat", "job.steps=0,2", LINE, "trials=3", "logger=[csv]", "job.noise=0.25"]
    assert sweep(*typed, "retrain=0", "out='it\\'s a sweep'")[0] == 0
    path = Path("it's a sweep/best.yaml")
    number = metrics("it's a sweep")["best_trial/number"]
    saved = yaml.safe_load((path.parent / "runs" / f"trial{number}_seed0" / "config.yaml").read_text())
    mine = compose([f"recipe={path}"]).to_dict()
    for key in ("job", "logger", "seed", "model", "data"):
        assert mine[key] == saved[key]
    assert mine["variants"] == {}
    assert mine["seeds"] == []
    assert [claim["effect"] for claim in mine["claims"]] == ["It is not flat"]
    assert mine["smoke"] == []
    found = header(path)
    assert found.sentence.endswith(f"Trial {number}, the best of 3 by test/loss.")
    assert found.paper == "none"
    assert found.run == "python -m edgetrain 'recipe=it'\"'\"'s a sweep/best.yaml'"
    assert edgetrain(f"recipe={path}", "out=again")[0] == 0
    value = metrics("it's a sweep")["best_trial/test/loss"]
    assert metrics("again")["test/loss"] == pytest.approx(value)
    assert edgetrain(f"recipe={path}", "--smoke", "out=small")[0] == 0


def test_what_is_quoted_comes_from_seeds_that_chose_nothing(sweep: Call) -> None:
    """At the lowest point the loss is the seed times the noise: 0, 1 in the sweep, then 2, 3, 4."""
    assert sweep(*GRID, "seed=0,1", "job.noise=1", "out=s")[0] == 0
    found = metrics("s")
    assert found["best_trial/test/loss"] == 0.5
    assert found["retrained/test/loss"] == 3.0
    assert found["retrained/test/loss_deviation"] == 1.0
    low, high = interval_of_mean([2.0, 3.0, 4.0])
    assert (found["retrained/test/loss_low"], found["retrained/test/loss_high"]) == (low, high)
    assert found["retrained/seeds"] == 3
    study = RunFolder.open("s/runs/best_trial4")
    assert study.is_study
    assert [path.name for path in sorted((study.path / "runs").glob("seed?"))] == ["seed2", "seed3", "seed4"]
    result, chosen = table("s", "result")
    assert "fresh seeds: the result" in result["measured on"]
    assert result["mean"] == "3.0"
    assert "not to be quoted" in chosen["measured on"]
    assert chosen["mean"] == "0.5"


def test_the_report_has_its_figures_and_no_claims(sweep: Call) -> None:
    assert sweep(*GRID, "retrain=2", "out=s")[0] == 0
    page = Path("s/report.html").read_text()
    titles = (
        "Result: test/loss",
        "Trials",
        "Best so far",
        "What the good trials have in common",
        "Which keys mattered",
    )
    assert all(f"<h2>{title}</h2>" in page for title in titles)
    assert page.count("data:image/png") == 3
    assert "It is not flat" not in page.partition("How it was run")[0]
    assert not RunFolder(Path("s/runs/best_trial4/runs")).is_study


def test_a_failed_trial_is_recorded_and_passed_over(sweep: Call) -> None:
    code, _, err = sweep("job.rate=0.01", "job.width=1,2,3", "job.end=fails", "retrain=0", "out=s")
    assert code == 0, err
    assert [row["state"] for row in rows("s")] == ["failed", "complete", "complete"]
    assert "RuntimeError: the width is unplugged" in rows("s")[0]["note"]
    assert rows("s")[0]["mean"] == ""
    assert metrics("s")["trials_failed"] == 1
    assert table("s", "stopped")[0]["trial"] == "0"
    assert starts("s", "trial0_seed0") == ["new"]


def test_a_loss_that_is_no_number_is_a_failure(sweep: Call) -> None:
    assert sweep("job.rate=0.01", "job.width=1,2", "job.end=is_nan", "retrain=0", "out=s")[0] == 0
    assert rows("s")[0]["state"] == "failed"
    assert "test/loss=nan" in rows("s")[0]["note"]


def test_only_when_every_trial_fails_the_exit_code_says_so(sweep: Call) -> None:
    code, _, err = sweep("job.width=1", "job.rate=0.1,0.2", "job.end=fails", "out=s")
    assert code == 1
    assert "no trial has a value" in err
    assert [row["state"] for row in rows("s")] == ["failed", "failed"]
    assert not Path("s/best.yaml").exists()


def test_a_metric_that_no_run_has_ends_the_sweep_after_one_trial(sweep: Call) -> None:
    code, _, err = sweep("job.width=1,2,3", "metric=test/los", "direction=minimize", "out=s")
    assert code == 2
    assert "trial0_seed0 has no such metric (did you mean 'test/loss'?)" in err
    assert not (Path("s") / "runs" / "trial1_seed0").exists()


def test_a_curve_that_no_run_logs_ends_a_pruned_sweep_after_one_trial(sweep: Call) -> None:
    code, _, err = sweep("job.width=1,2,3", "pruner=median", "out=s")
    assert code == 2
    assert "pruner=median: trial0_seed0 logged no validation/loss" in err


# Going on


def test_a_stopped_sweep_proposes_what_an_unbroken_one_proposes(computed: None, sweep: Call, edgetrain: Call) -> None:
    typed = (LINE, "job.width=range(2,6)", "retrain=0")
    assert sweep(*typed, "trials=13", "out=whole")[0] == 0
    assert sweep(*typed, "trials=4", "out=parts")[0] == 0
    for trials in (11, 13):
        assert edgetrain("resume=parts", f"trials={trials}", "trust=[bowl_job]")[0] == 0
    keys = ("trial", "job.rate", "job.width", "mean", "state")
    assert [[row[key] for key in keys] for row in rows("parts")] == [
        [row[key] for key in keys] for row in rows("whole")
    ]
    assert all(starts("parts", f"trial{number}_seed0") == ["new"] for number in range(13))


def test_a_trial_that_was_claimed_and_not_begun_is_begun(computed: None, sweep: Call, edgetrain: Call) -> None:
    """As a kill leaves it between two writes: claimed, with the first of two values, the second cut short."""
    typed = (LINE, "job.width=range(2,6)", "retrain=0")
    assert sweep(*typed, "trials=2", "out=s")[0] == 0
    place = RunFolder.open("s")
    planned = plan_sweep(["recipe=bowl", *typed, "trials=3"])
    _, values = Ledger(planned, place, place.read_json("sweep.json")["worker"]).claim(set())
    lines = (place.path / JOURNAL).read_text().splitlines(keepends=True)
    (place.path / JOURNAL).write_text("".join(lines[:-1]) + lines[-1][:20])
    assert edgetrain("resume=s", "trials=3", "trust=[bowl_job]")[0] == 0
    assert [row["state"] for row in rows("s")] == ["complete"] * 3
    assert float(rows("s")[2]["job.rate"]) == values["job.rate"]
    assert 2 <= int(rows("s")[2]["job.width"]) <= 5


def test_a_finished_run_is_not_run_again_when_its_trial_goes_on(sweep: Call, edgetrain: Call) -> None:
    """As a kill leaves it between the run's end and the ledger's: the journal loses the trial's end."""
    assert sweep(LINE, "trials=1", "retrain=0", "out=s")[0] == 0
    journal = Path("s") / JOURNAL
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"op_code":6' not in line))  # 6: a trial's end
    study = optuna.load_study(storage=optuna.storages.JournalStorage(backend(journal)), study_name="bowl")
    assert [trial.state.name for trial in study.trials] == ["RUNNING"]
    assert edgetrain("resume=s", "trust=[bowl_job]")[0] == 0
    assert starts("s", "trial0_seed0") == ["new"]
    assert [row["state"] for row in rows("s")] == ["complete"]


def backend(path: Path) -> optuna.storages.journal.JournalFileBackend:
    return optuna.storages.journal.JournalFileBackend(str(path))


def test_a_sweep_goes_on_only_as_what_it_was(sweep: Call, edgetrain: Call, workplace: Path) -> None:
    assert sweep(LINE, "trials=1", "retrain=0", "out=s")[0] == 0
    resume = ("sweep", "resume=s", "trust=[bowl_job]")
    for changed, word in (
        ("seed=1", "seeds"),
        ("job.noise=1", "noise"),
        ("job.width=2,3", "space.job.width"),
        ("metric=test/size", "metric"),
        ("pruner=median", "pruner"),
        ("storage=sqlite:///x.db", "storage"),
    ):
        code, _, err = edgetrain(*resume, changed, *(["direction=minimize"] if "metric" in changed else []))
        assert code == 2, changed
        assert word in err
        assert "differs from the sweep that is being resumed" in err
    assert "trust=[bowl_job]" in edgetrain("resume=s")[2]
    shutil.copytree("s", "copy")
    Path("copy/sweep.json").write_text("[]")
    assert "does not hold a command line" in edgetrain("resume=copy")[2]
    assert not Path("x.db").exists()


def test_the_report_is_drawn_again_from_the_ledger(sweep: Call, edgetrain: Call) -> None:
    assert sweep(*GRID, "retrain=2", "out=s")[0] == 0
    before = metrics("s")
    for name in ("results.csv", "report.html", "metrics.json"):
        Path("s", name).unlink()
    assert edgetrain("report", "run=s", "trust=[bowl_job]")[0] == 0
    assert metrics("s") == before
    assert len(rows("s")) == 9
    assert Path("s/report.html").is_file()
    assert "is a study; name one of its runs" in edgetrain("eval", "run=s", "trust=[bowl_job]")[2]


def test_a_folder_in_use_is_refused(sweep: Call, edgetrain: Call) -> None:
    assert sweep(LINE, "trials=1", "retrain=0", "out=s")[0] == 0
    program = (
        "import sys, pathlib; from edgetrain.folder import RunFolder\n"
        "with RunFolder(pathlib.Path('s').resolve()).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=None, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        code, _, err = edgetrain("resume=s", "trials=2", "trust=[bowl_job]")
        holder.stdin.close()
    assert code == 2
    assert "is in use by process" in err
    assert len(rows("s")) == 1


# Many machines


def test_machines_that_share_a_storage_reach_the_total_together(sweep: Call) -> None:
    shared = (LINE, "storage=sqlite:///sweep.db", "retrain=2")
    assert sweep(*shared, "trials=2", "retrain=0", "out=one")[0] == 0
    code, _, err = sweep(*shared, "trials=5", "out=two")
    assert code == 0, err
    assert [row["state"] for row in rows("two")] == ["complete"] * 5
    assert [row["folder"].startswith("runs/") for row in rows("two")] == [False, False, True, True, True]
    assert rows("two")[0]["folder"].endswith(f"{Path('one').resolve()}/runs/trial0_seed0")
    assert [row["mean"] for row in rows("two")][:2] == [row["mean"] for row in rows("one")]
    assert not Path("one", JOURNAL).exists()
    assert metrics("two")["retrained/seeds"] == 2


def test_a_shared_storage_holds_one_space_under_a_name(sweep: Call) -> None:
    shared = ("storage=sqlite:///sweep.db", "trials=1", "retrain=0")
    assert sweep(LINE, *shared, "out=one")[0] == 0
    code, _, err = sweep("job.rate=tag(log,interval(1e-4,2))", *shared, "out=two")
    assert code == 2
    assert "holds a study 'bowl' whose space.job.rate.high differs; choose another with name=NAME" in err
    assert not Path("two").exists()
    assert sweep("job.rate=tag(log,interval(1e-4,2))", *shared, "name=wider", "out=two")[0] == 0


def test_the_last_trial_is_claimed_by_one_machine_alone(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see room for one more, and both claim it: the later claim does not count and does not run."""
    planned = plan_sweep(["recipe=bowl", LINE, "trials=1", "storage=sqlite:///sweep.db"])
    one, two = (Ledger(planned, RunFolder(workplace / name), name) for name in ("one", "two"))
    seen_before = two.trials()
    assert one.claim(set()) is not None
    answers = [seen_before] * 2  # what it looks at before it claims
    usual = Ledger.trials
    monkeypatch.setattr(Ledger, "trials", lambda self: answers.pop() if answers else usual(self))
    assert two.claim(set()) is None
    assert [trial.user_attrs["worker"] for trial in two.trials()] == ["one"]
    assert two.running(mine=True) == []


def test_the_machine_that_ends_last_retrains(sweep: Call, workplace: Path) -> None:
    shared = (LINE, "storage=sqlite:///sweep.db", "trials=2", "retrain=2")
    planned = plan_sweep(["recipe=bowl", *shared])
    assert Ledger(planned, RunFolder(workplace / "other"), "other").claim(set()) is not None
    code, _, err = sweep(*shared, "out=s")
    assert code == 0, err
    assert "still running elsewhere: 1, in" in err
    assert not list(Path("s/runs").glob("best*"))
    assert [row["state"] for row in rows("s")] == ["running", "complete"]


# A real model


def test_a_real_model_is_swept(here: None, edgetrain: Call, workplace: Path) -> None:
    fixed = [*SMALL, "measure=[]", "export=[]", "pruner=median", "retrain=1"]
    code, _, err = edgetrain("sweep", "recipe=layerskip_llama", *fixed, "optimizer.lr=1e-5,1e-2", "trials=2", "out=s")
    assert code == 0, err
    low, high = rows("s")
    assert float(high["mean"]) < float(low["mean"])  # in six steps hardly anything is learnt at the low rate
    best = compose(["recipe=s/best.yaml"])
    assert (best.optimizer["lr"], best.model["dim"], best.data["path"]) == (1e-2, 32, "texts")
    storage = optuna.storages.JournalStorage(backend(Path("s") / JOURNAL))
    study = optuna.load_study(storage=storage, study_name="layerskip_llama")
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[2, 5], [2, 5]]  # every third step
    assert metrics("s")["retrained/seeds"] == 1
    assert ROOT not in Path("s").resolve().parents
