"""One recipe becomes many runs and one result: what is planned, what runs and runs again, what is concluded."""

import fcntl
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from edgetrain.build import find_source
from edgetrain.claims import judge
from edgetrain.cli import main
from edgetrain.config import Config
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.study import result
from edgetrain.study.plan import Study, plan

Call = Callable[..., tuple[int, str, str]]
RECIPES = ROOT / "tests" / "recipes"


@pytest.fixture(autouse=True, scope="module")
def recipes() -> Iterator[None]:
    """The recipes of tests/recipes and their jobs, here and in the children."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGETRAIN_RECIPES", str(RECIPES))
        patch.setenv("PYTHONPATH", str(RECIPES))
        patch.syspath_prepend(str(RECIPES))
        yield


# What a command line asks for


def names(*overrides: str) -> list[str]:
    study = plan(list(overrides))
    assert isinstance(study, Study)
    return [child.name for child in study.children]


def test_a_recipe_with_seeds_is_a_study_of_every_variant_seed_by_seed() -> None:
    assert names("recipe=two_queues") == ["calm_seed0", "busy_seed0", "calm_seed1", "busy_seed1"]


def test_lists_narrow_a_study() -> None:
    assert names("recipe=two_queues", "variant=[busy]", "seeds=[3,4]") == ["busy_seed3", "busy_seed4"]
    assert names("recipe=two_queues", "variant=busy", "seeds=[3]") == ["busy_seed3"]


def test_lists_make_a_study_of_a_recipe_without_seeds() -> None:
    assert names("recipe=hello_simulation", "seeds=[0,1]") == ["seed0", "seed1"]
    assert names("recipe=layerskip_paper", "variant=[llama2_7b]") == ["llama2_7b_seed0"]


@pytest.mark.parametrize("picks", [["variant=busy"], ["seed=1"], ["variant=busy", "seed=1"], ["seeds=[]"]])
def test_one_variant_or_one_seed_is_an_ordinary_run(picks: list[str]) -> None:
    config = plan(["recipe=two_queues", *picks])
    assert isinstance(config, Config)
    assert config.job["load"] == (0.9 if "variant=busy" in picks else 0.5)
    assert config.job["seed"] == ("seed=1" in picks)


def test_a_recipe_with_variants_alone_is_a_catalogue() -> None:
    assert isinstance(plan(["recipe=layerskip_paper"]), Config)


def test_a_child_is_made_by_its_own_command_line() -> None:
    study = plan(["recipe=two_queues", "job.frames=50", "out=here", "seeds=[7]"], smoke=True)
    assert isinstance(study, Study)
    arguments = ["recipe=two_queues", "job.frames=50", "variant=busy", "seed=7", "--smoke"]
    assert study.arguments_of(study.children[1]) == arguments


def test_a_smoke_list_may_name_the_variants_that_are_enough() -> None:
    families = ["recipe=kws_families"]
    assert [child.variant for child in plan(families, smoke=True).children] == ["dnn_s", "gru_s"]
    assert len(plan(families).children) == 21
    assert [child.variant for child in plan([*families, "variant=[crnn_l]"], smoke=True).children] == ["crnn_l"]
    assert plan([*families, "variant=crnn_l"], smoke=True).variant == "crnn_l"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["variant=[calm,bsy]"], "two_queues has no such variant (did you mean 'busy'?); variants: calm, busy"),
        (["variant=[]"], "expected names of variants"),
        (["variant=[calm,calm]"], "variant: calm stands in the list twice"),
        (["variant=calm,busy"], "for a study write variant=[...]"),
        (["seeds=[1,2,1]"], "seeds: 1 stands in the list twice"),
        (["seeds=[one]"], "expected list[int]"),
        (["seeds=3"], "expected list[int]"),
        (["seed=1", "seeds=[0,1]"], "seed=1 picks one run"),
        (["seed=1", "variant=[calm]"], "seed=1 picks one run"),
        (["parallel=0"], "parallel=0: at least one run at a time"),
        (["++study.figures=[{title: t}]"], "study.figures.0: draws one of table, curve, bars or points; it has none"),
        (["++study.figures=[{title: t, table: a, x: b}]"], "study.figures.0.y: missing"),
        (["++study.metric=[a]"], "study.metric=['a']: no such key (did you mean 'metrics'?)"),
        (["++claims=[{effect: e, paper: p, metric: m, variant: busy}]"], "claims.0.against: missing"),
        (["++claims=[{effect: e, paper: p, metric: m, variant: busy, against: calm}]"], "takes one number"),
        (
            ["++claims=[{effect: e, paper: p, metric: m, variant: busi, against: calm, below: 0}]"],
            "claims.0.variant=busi: two_queues has no such variant (did you mean 'busy'?)",
        ),
    ],
)
def test_a_bad_study_is_refused_before_anything_starts(
    edgetrain: Call, workplace: Path, overrides: list[str], words: str
) -> None:
    code, _, err = edgetrain("recipe=two_queues", *overrides, "out=bad")
    assert code == 2, err
    assert words in err
    assert "Traceback" not in err
    assert not (workplace / "bad").exists()


def test_every_bad_variant_is_named_at_once(workplace: Path) -> None:
    text = (RECIPES / "two_queues.yaml").read_text()
    (workplace / "recipes").mkdir()
    changed = text.replace("calm: []", "calm: [job.lod=1.0]").replace("job.load=0.9", "job.load=high")
    (workplace / "recipes" / "wrong.yaml").write_text(changed)
    with pytest.raises(UserError) as error:
        plan(["recipe=wrong"])
    lines = str(error.value).splitlines()
    assert "calm_seed0: job.lod=1.0: HelloSimulation has no parameter 'lod' (did you mean 'load'?)" in lines
    assert "busy_seed0: job.load='high': expected float" in lines


def test_show_lists_the_runs_above_the_configuration(edgetrain: Call) -> None:
    code, out, _ = edgetrain("show", "recipe=two_queues", "variant=[calm,busy]", "seeds=[5]")
    assert code == 0
    assert "# a study of 2 runs, 2 at a time" in out
    assert "#   busy_seed5: job.load=0.9 seed=5" in out
    assert yaml.safe_load(out)["seeds"] == [5]


# A whole study, from its command line to its report


@pytest.fixture(scope="module")
def queues(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    place = tmp_path_factory.mktemp("queues") / "it's a study"
    assert main(["recipe=two_queues", f'out="{place}"']) == 0
    return RunFolder.open(place)


def waiting(folder: RunFolder, variant: str, seed: int) -> float:
    return folder.child(variant, seed).read_json("metrics.json")["waiting_over_service"]


def test_children_are_ordinary_run_folders_with_logs(queues: RunFolder) -> None:
    for name in ("calm_seed0", "busy_seed0", "calm_seed1", "busy_seed1"):
        child = RunFolder.open(queues.path / "runs" / name)
        assert child.finished
        assert (child.path / "report.html").is_file()
        assert "run folder" in (queues.path / "runs" / f"{name}.log").read_text()
    assert queues.finished
    config = yaml.safe_load((queues.path / "runs" / "busy_seed1" / "config.yaml").read_text())
    assert (config["variant"], config["seed"], config["job"]["load"]) == ("busy", 1, 0.9)


def test_the_table_has_each_variants_mean_and_deviation(queues: RunFolder) -> None:
    rows = {row["variant"]: row for row in queues.read_table("variants")}
    for variant in ("calm", "busy"):
        first, second = waiting(queues, variant, 0), waiting(queues, variant, 1)
        assert float(rows[variant]["mean"]) == pytest.approx((first + second) / 2)
        assert float(rows[variant]["standard deviation"]) == pytest.approx(abs(first - second) / math.sqrt(2))
        assert rows[variant]["seeds"] == "2"
        assert queues.read_json("metrics.json")[f"{variant}/waiting_over_service"] == float(rows[variant]["mean"])
    assert [row["folder"] for row in queues.read_table("runs")][1] == "runs/busy_seed0"


def test_the_claim_is_judged_on_differences_of_the_same_seed(queues: RunFolder) -> None:
    (claim,) = queues.read_json("claims.json")
    differences = [waiting(queues, "busy", seed) - waiting(queues, "calm", seed) for seed in (0, 1)]
    assert claim["measured"] == pytest.approx(sum(differences) / 2)
    assert "2 seeds, 95% interval" in claim["note"]
    (alone,) = queues.child("busy", 0).read_json("claims.json")
    assert (alone["verdict"], alone["note"]) == ("undecided", "compares busy with calm; only the whole study can")


def test_the_report_shows_table_and_figures(queues: RunFolder) -> None:
    page = (queues.path / "report.html").read_text()
    assert all(words in page for words in ("Variants", "First waits", "Mean waits", "runs/busy_seed1"))
    assert "Mean over 2 seeds; the band reaches from the lowest to the highest." in page
    assert "<h2>Never logged" not in page  # a curve that no run has
    assert page.count("data:image/png") == 2
    assert "No training curve was logged" not in page


def test_report_is_drawn_again_from_the_children(edgetrain: Call, queues: RunFolder, workplace: Path) -> None:
    (queues.path / "report.html").unlink()
    (queues.path / "tables" / "variants.csv").unlink()
    assert edgetrain("report", f"run={queues.path}", "trust=[hello_simulation_job]")[0] == 0
    assert (queues.path / "tables" / "variants.csv").is_file()
    assert (queues.path / "report.html").is_file()


def test_a_study_has_no_model_of_its_own(edgetrain: Call, queues: RunFolder, workplace: Path) -> None:
    code, _, err = edgetrain("eval", f"run={queues.path}", "trust=[hello_simulation_job]")
    assert code == 2
    assert "is a study; name one of its runs" in err
    for name in ("early_run", "late_study"):
        run = RunFolder.create("r", str(workplace / "outputs" / "r" / name))
        (run.path / "config.yaml").write_text("recipe: r")
        run.write_json("environment.json", {"finished": "yes"})
    run.write_json("study.json", {})
    assert Path(find_source("recipe:r")).name == "early_run"


# Runs that die


def starts(folder: Path, name: str) -> list[str]:
    return (folder / "runs" / f"{name}.starts").read_text().split()


def test_dead_children_go_on_and_finished_ones_are_not_run_again(edgetrain: Call, workplace: Path) -> None:
    code, _, err = edgetrain("recipe=fragile", "variant=[well,early,late,broken]", "out=study")
    folder = RunFolder.open("study")
    assert code == 1
    assert starts(folder.path, "well_seed0") == ["new"]
    assert starts(folder.path, "early_seed0") == ["new", "new"]  # nothing to go on from
    assert not (folder.path / "runs" / "early_seed0" / "half.txt").exists()
    assert starts(folder.path, "late_seed0") == ["new", "resumed"]
    assert folder.child("late", 0).read_json("metrics.json")["reached"] == 7
    assert starts(folder.path, "broken_seed0") == ["new", "new"]
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "broken_seed0 failed 2 times, at last with exit code 1" in sentence
    assert "RuntimeError: the sensor is unplugged" in err
    assert "try them again with: python -m edgetrain resume=study" in err
    assert not folder.finished
    finished = {row["variant"]: row["finished"] for row in folder.read_table("runs")}
    assert finished == {"well": "True", "early": "True", "late": "True", "broken": "False"}

    (workplace / "mended").touch()
    code, _, err = edgetrain("resume=study", "parallel=1", "trust=[fragile_job]")
    assert code == 0, err
    assert [len(starts(folder.path, f"{name}_seed0")) for name in ("well", "early", "late", "broken")] == [1, 2, 2, 3]
    assert folder.finished
    assert folder.read_json("metrics.json")["runs_finished"] == 4


def test_a_study_goes_on_only_as_what_it_was(edgetrain: Call, workplace: Path, queues: RunFolder) -> None:
    resume = [f"resume={queues.path}", "trust=[hello_simulation_job]", "parallel=3"]
    code, _, err = edgetrain(*resume, "job.frames=9")
    assert code == 2
    assert "job.frames differs from the study that is being resumed" in err
    code, _, err = edgetrain(resume[0])
    assert code == 2
    assert "trust=[hello_simulation_job]" in err
    copy = workplace / "copy"
    copy.mkdir()
    for name in ("config.yaml", "study.json"):
        (copy / name).write_bytes((queues.path / name).read_bytes())
    (copy / "study.json").write_text(json.dumps({"arguments": "recipe=two_queues"}))
    assert "does not hold a command line" in edgetrain("resume=copy")[2]


def started(place: Path, *arguments: str) -> subprocess.Popen:
    log = place.with_suffix(".err").open("a")
    command = [sys.executable, "-m", "edgetrain", *arguments]
    return subprocess.Popen(command, cwd=place.parent, stdout=log, stderr=log)


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_ctrl_c_stops_the_children_and_says_how_to_go_on(tmp_path: Path) -> None:
    place = tmp_path / "study"
    process = started(place, "recipe=fragile", "variant=[slow]", "out=study")
    log = place / "runs" / "slow_seed0.log"
    wait_for((place / "runs" / "slow_seed0.starts").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "interrupted; resume with: python -m edgetrain resume=study" in place.with_suffix(".err").read_text()
    with log.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody runs there any more
    assert "interrupted" in log.read_text()


def test_a_killed_studys_children_are_waited_for_and_not_started_twice(tmp_path: Path) -> None:
    place = tmp_path / "study"
    process = started(place, "recipe=fragile", "variant=[slow]", "out=study")
    wait_for((place / "runs" / "slow_seed0.starts").exists)
    process.kill()
    process.wait()
    again = started(place, "resume=study", "trust=[fragile_job]")
    wait_for(lambda: "running  slow_seed0, which an earlier process" in place.with_suffix(".err").read_text())
    (tmp_path / "go").touch()
    assert again.wait(60) == 0, place.with_suffix(".err").read_text()
    assert starts(place, "slow_seed0") == ["new"]
    assert RunFolder(place).finished


# What is concluded, on folders written by hand


def by_hand(place: Path, values: dict[str, list[float]], claim: dict[str, Any] | None = None, **more: Any) -> tuple:
    """Config and folder of a finished study whose runs measured `loss`, a list of one value a seed for each variant."""
    count = max(map(len, values.values()))
    claims = [{"effect": "e", "paper": "p", "metric": "loss", "variant": "both", "against": "none"} | (claim or {})]
    config = Config(recipe="r", variants={name: [] for name in values}, seeds=list(range(count)), claims=claims, **more)
    folder = RunFolder.create("r", str(place))
    for variant, losses in values.items():
        for seed, loss in enumerate(losses):
            run = folder.child(variant, seed)
            run.write_json("metrics.json", {"loss": loss, "corpus_sha256": "a", "other": 1})
            run.write_json("environment.json", {"finished": "yes"})
            rows = [{"layer": 1, "loss": loss + 1}, {"layer": 2, "loss": loss}]
            run.add_table("exits", rows, "Exits")
    return config, folder


def verdict(place: Path, values: dict[str, list[float]], **claim: Any) -> tuple[str, str]:
    (row,) = judge(*by_hand(place, values, claim))
    return row["verdict"], row["note"]


@pytest.mark.parametrize(
    ("both", "claim", "expected"),
    [
        ([3.1, 2.0, 0.9], {"below": 0}, "seen"),  # differences -1.9, -2, -2.1: interval -2.248 to -1.752
        ([3.1, 2.0, 0.9], {"above": 0}, "not seen"),
        ([3.1, 2.0, 0.9], {"below": -1.8}, "undecided"),
        ([3.1, 2.0, 0.9], {"below": -1.7}, "seen"),
        ([3.1, 2.0, 0.9], {"below": 0, "margin": 1.7}, "seen"),
        ([3.1, 2.0, 0.9], {"below": 0, "margin": 1.8}, "undecided"),
        ([4.0, 2.0, 0.0], {"below": 0}, "undecided"),  # differences -1, -2, -3: interval -4.484 to 0.484
        ([4.0, 2.0, 0.0], {"below": 0.5}, "seen"),
        ([4.0, 2.0, 0.0], {"below": 0.4}, "undecided"),
    ],
)
def test_a_comparison_is_judged_by_the_whole_interval_of_paired_differences(
    tmp_path: Path, both: list[float], claim: dict[str, float], expected: str
) -> None:
    """The variants' own spread over the seeds (deviation 0.5 and more) is far wider than that of the differences."""
    assert verdict(tmp_path / "s", {"none": [5.0, 4.0, 3.0], "both": both}, **claim)[0] == expected


def test_the_note_says_the_seeds_and_the_interval(tmp_path: Path) -> None:
    _, note = verdict(tmp_path / "s", {"none": [5.0, 4.0, 3.0], "both": [3.1, 2.0, 0.9]}, below=0)
    assert note == "both minus none, below 0 is asked; 3 seeds, 95% interval -2.248 to -1.752"


def test_one_seed_decides_nothing_without_a_margin(tmp_path: Path) -> None:
    one = {"none": [5.0], "both": [1.0]}
    assert verdict(tmp_path / "a", one, below=0) == ("undecided", "both minus none, below 0 is asked; one seed")
    assert verdict(tmp_path / "b", one, below=0, margin=0.1)[0] == "seen"
    assert verdict(tmp_path / "c", one, above=0, margin=0.1)[0] == "not seen"
    assert verdict(tmp_path / "d", one, below=0, margin=5.0)[0] == "undecided"


def test_only_seeds_that_both_variants_finished_count(tmp_path: Path) -> None:
    config, folder = by_hand(tmp_path / "s", {"none": [5.0, 4.0, 3.0], "both": [3.1, 2.0, 0.9]}, {"below": 0})
    folder.child("both", 2).write_json("environment.json", {})
    (row,) = judge(config, folder)
    assert row["measured"] == pytest.approx(-1.95)
    assert "2 seeds" in row["note"]
    for seed in (0, 1):
        folder.child("both", seed).write_json("environment.json", {})
    assert "no seed has a finished run of both both and none with loss" in judge(config, folder)[0]["note"]


def test_variants_on_different_corpora_are_not_compared(tmp_path: Path) -> None:
    config, folder = by_hand(tmp_path / "s", {"none": [5.0], "both": [3.1]}, {"below": 0})
    folder.child("both", 0).update_metrics({"corpus_sha256": "b"})
    assert "different corpora" in judge(config, folder)[0]["note"]


def test_the_metrics_shown_are_those_listed_or_the_claims_or_all(tmp_path: Path) -> None:
    config, _ = by_hand(tmp_path / "s", {"none": [1.0]})
    runs = [{"other": 1, "test/loss": 2, "loss": 3, "tokens_per_s": 4}]
    assert result.shown_metrics(config, runs) == ["loss", "test/loss", "tokens_per_s"]
    assert result.shown_metrics(Config("r", study={"metrics": ["t*"]}), runs) == ["test/loss", "tokens_per_s"]
    assert result.shown_metrics(Config("r"), [{"other": 1}]) == ["other"]


def test_a_mean_has_its_interval_in_metrics(tmp_path: Path) -> None:
    config, folder = by_hand(tmp_path / "s", {"none": [1.0, 2.0, 3.0]})
    result.summarise(config, folder)
    metrics = folder.read_json("metrics.json")
    assert metrics["none/loss"] == 2.0
    assert metrics["none/loss_low"] == pytest.approx(-0.4843, abs=1e-4)
    assert metrics["none/loss_high"] == pytest.approx(4.4843, abs=1e-4)
    assert metrics["corpus_sha256"] == "a"


def test_a_band_reaches_from_the_lowest_to_the_highest_seed() -> None:
    runs = [[(1.0, 5.0), (2.0, 2.0)], [(1.0, 3.0), (2.0, 6.0), (3.0, 1.0)], [(1.0, 1.0)]]
    means, band = result.averaged(runs)
    assert means == [(1.0, 3.0), (2.0, 4.0), (3.0, 1.0)]
    assert band == [(1.0, 5.0), (2.0, 6.0), (1.0, 1.0)]


def test_figures_draw_the_childrens_tables_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple] = []
    monkeypatch.setattr(result, "line_chart", lambda *args, **more: drawn.append((args[0], more)) or b"png")
    monkeypatch.setattr(result, "bar_chart", lambda *args, **more: drawn.append((args[0], more)) or b"png")
    figures = [
        {"title": "Loss at every exit", "table": "exits", "x": "layer", "y": "loss"},
        {"title": "Curve", "curve": "validation/loss", "x": "tokens_trained"},
        {"title": "Bars", "bars": ["loss"]},
    ]
    config, folder = by_hand(tmp_path / "s", {"none": [1.0, 3.0], "both": [2.0]}, study={"figures": figures})
    log = folder.child("both", 0).path / "logs" / "part_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("step,tokens_trained,validation/loss,train/loss\n9,,,4\n9,640,2.5,\n19,1280,2.25,\n")
    result.summarise(config, folder)
    (lines, more), (curve, _), (bars, spreads) = drawn
    assert lines == {"none": [(1, 3.0), (2, 2.0)], "both": [(1, 3.0), (2, 2.0)]}
    assert more["bands"] == {"none": [(2.0, 4.0), (1.0, 3.0)], "both": [(3.0, 3.0), (2.0, 2.0)]}
    assert curve == {"none": [], "both": [(640, 2.5), (1280, 2.25)]}  # "none" keeps its colour
    assert bars == {"none": {"loss": 2.0}, "both": {"loss": 2.0}}
    assert spreads["spread"] == {"none": {"loss": pytest.approx(math.sqrt(2))}, "both": {"loss": 0.0}}
    captions = {item["title"]: item["caption"] for item in folder.report_items() if item["kind"] == "figure"}
    assert captions["Loss at every exit"].startswith("Mean over 1 to 2 seeds; the band")
    assert captions["Curve"] == "One seed: no spread is known."


def test_folds_count_instead_of_seeds_where_they_share_what_is_held_out(tmp_path: Path) -> None:
    """Six seeds of two folds: differences 1, 1, 1 in the first, 3, 3, 3 in the second."""
    values = {"none": [0.0] * 6, "both": [1.0, 3.0] * 3}
    config, folder = by_hand(tmp_path / "s", values, {"above": 0}, study={"folds": 2})
    result.summarise(config, folder)
    rows = {row["variant"]: row for row in folder.read_table("variants") if row["metric"] == "loss"}
    assert (float(rows["both"]["mean"]), int(rows["both"]["folds"])) == (2.0, 2)
    assert float(rows["both"]["standard deviation"]) == pytest.approx(math.sqrt(2))
    by_fold = folder.read_table("folds_loss")
    assert by_fold == [
        {"held out": "fold 0", "none": "0.0", "both": "1.0"},
        {"held out": "fold 1", "none": "0.0", "both": "3.0"},
    ]
    folder.child("both", 1).update_metrics({"held_out": "theo"})
    result.summarise(config, folder)
    assert {row["held out"] for row in folder.read_table("folds_loss")} == {"fold 0", "fold 1", "theo"}
    (row,) = judge(config, folder)
    assert row["verdict"] == "undecided"  # 2 +- 12.706: two folds decide nothing, six independent seeds would have
    assert "2 folds, 95% interval -10.71 to 14.71" in row["note"]
    (row,) = judge(*by_hand(tmp_path / "t", values, {"above": 0}))
    assert row["verdict"] == "seen"


def test_figures_of_folds_spread_over_folds_not_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds 0, 2, 4 measure 0, 1, 2 in one fold, 1, 3, 5 measure 4, 5, 6 in the other: means 1 and 5."""
    drawn: list[tuple] = []
    for chart in ("line_chart", "bar_chart"):
        monkeypatch.setattr(result, chart, lambda *args, **more: drawn.append((args[0], more)) or b"png")
    figures = [
        {"title": "Bars", "bars": ["loss"]},
        {"title": "Points", "points": ["other", "loss"]},
        {"title": "Curve", "table": "exits", "x": "layer", "y": "loss"},
    ]
    values = {"none": [0.0, 4.0, 1.0, 5.0, 2.0, 6.0]}
    config, folder = by_hand(tmp_path / "s", values, study={"folds": 2, "figures": figures})
    config.claims.clear()
    result.summarise(config, folder)
    (bars, more), (points, _), (curve, bands) = drawn[-3:]
    assert bars == {"none": {"loss": 3.0}}
    assert more["spread"] == {"none": {"loss": pytest.approx(math.sqrt(8))}}  # of 1 and 5, not of six numbers
    assert points == {"none": [(1.0, 3.0)]}
    assert curve == {"none": [(1, 4.0), (2, 3.0)]}
    assert bands["bands"] == {"none": [(2.0, 6.0), (1.0, 5.0)]}
    captions = {item["title"]: item["caption"] for item in folder.report_items()}
    assert captions["Bars"].startswith("Mean over 2 folds, each averaged over its seeds;")
    assert captions["Curve"].startswith("Mean over 2 folds")
    assert "over the 2 folds, each" in captions["Variants"]


def test_only_sizes_make_a_family() -> None:
    names = ["net_s", "net_xl", "net_b2", "net_125m", "no_shortcut", "no_mixcfn", "three_layer_cnn", "lone"]
    families = ["net", "net", "net", "net", "no_shortcut", "no_mixcfn", "three_layer_cnn", "lone"]
    assert [result.family_of(name) for name in names] == families


def test_only_folds_with_finished_runs_are_counted(tmp_path: Path) -> None:
    config, folder = by_hand(tmp_path / "s", {"none": [1.0, 4.0, 3.0]}, study={"folds": 3})
    for seed in (1, 2):
        (folder.child("none", seed).path / "environment.json").write_text("{}")
    config.claims.clear()
    result.summarise(config, folder)
    captions = {item["title"]: item["caption"] for item in folder.report_items()}
    assert "over 1 of the 3 folds" in captions["Variants"]


def test_points_join_the_sizes_of_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple] = []
    monkeypatch.setattr(result, "line_chart", lambda *args, **more: drawn.append((args, more)) or b"png")
    figure = {"title": "P", "points": ["other", "loss"], "boxes": {"small": 80.0}, "log_x": True, "x_label": "KB"}
    values = {"net_l": [1.0, 3.0], "net_s": [4.0], "lone": [5.0]}
    config, folder = by_hand(tmp_path / "s", values, study={"figures": [figure]})
    folder.child("net_l", 0).update_metrics({"other": 3})
    result.summarise(config, folder)
    ((families, x_label, y_label), more) = drawn[0]
    assert families == {"net": [(1, 4.0), (2.0, 2.0)], "lone": [(1, 5.0)]}
    assert (x_label, y_label, more["boxes"], more["log_x"]) == ("KB", "loss", {"small": 80.0}, True)
