"""What a sweep's command line asks for, and what is refused before anything starts."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from edgetrain.compose import compose
from edgetrain.errors import UserError
from edgetrain.sweep.plan import plan_sweep

Call = Callable[..., tuple[int, str, str]]

LOG = "job.rate=tag(log,interval(1e-4,1))"


def test_a_run_is_made_by_its_own_command_line(workplace: Path) -> None:
    sweep = plan_sweep(["recipe=bowl", LOG, "job.noise=0.5", "variant=deep,flat", "seed=3,4", "out=here"], smoke=True)
    arguments = sweep.arguments_of({"job.rate": 0.01, "variant": "flat"}, 4)
    assert arguments == ["recipe=bowl", "job.noise=0.5", "job.rate=0.01", "variant=flat", "seed=4", "--smoke"]
    assert sweep.seeds == [3, 4]
    assert (sweep.config.variant, sweep.config.job["rate"], sweep.config.job["noise"]) == ("deep", 1e-4, 0.5)
    assert sweep.packages == ["bowl_job"]


def test_options_are_the_sweeps_and_not_the_runs(workplace: Path) -> None:
    typed = ["trials=7", "parallel=2", "metric=test/size", "direction=maximize", "timeout=1.5", "retrain=0"]
    sweep = plan_sweep(["recipe=bowl", LOG, *typed])
    options = sweep.options
    assert (options.trials, options.parallel, options.timeout, options.retrain) == (7, 2, 1.5, 0)
    assert (options.metric, options.direction) == ("test/size", "maximize")
    assert sweep.fixed == ["recipe=bowl"]
    assert sweep.seeds == [0]  # the recipe's
    assert plan_sweep(["recipe=bowl", LOG]).options.direction == "minimize"


def test_a_pruned_sweep_logs_every_line_at_once(workplace: Path) -> None:
    sweep = plan_sweep(["recipe=bowl", LOG, "pruner=median"])
    assert sweep.arguments_of({"job.rate": 0.5}, 0)[2:4] == ["+logger=[csv]", "logger.csv.flush_logs_every_n_steps=1"]
    sweep = plan_sweep(["recipe=layerskip_llama", "optimizer.lr=interval(0,1)", "pruner=median"])
    assert sweep.arguments_of({"optimizer.lr": 0.5}, 0)[2:3] == ["logger.csv.flush_logs_every_n_steps=1"]


def test_a_trial_measures_and_exports_only_what_its_metric_may_depend_on(workplace: Path) -> None:
    def arguments(*typed: str) -> list[str]:
        sweep = plan_sweep(["recipe=layerskip_llama", *typed, "optimizer.lr=interval(0.5,1)"])
        made = sweep.arguments_of({"optimizer.lr": 0.5}, 0)
        with redirect_stderr(io.StringIO()):
            compose(made)
        return made[1:]

    assert arguments() == ["optimizer.lr=0.5", "measure=[]", "export=[]", "seed=0"]
    assert arguments("metric=exits/loss_last") == ["optimizer.lr=0.5", "seed=0"]
    inside = "measure.exits.batches=2"
    assert arguments(inside) == [inside, "optimizer.lr=0.5", "export=[]", "seed=0"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["job.width=3"], "nothing is swept"),
        (["seed=range(3)"], "a recipe over several seeds alone is a study: seeds=[0,1,2] without the verb"),
        (["job.ratte=interval(1,2)"], "Bowl has no parameter 'ratte' (did you mean 'rate'?)"),
        (["jbo.rate=1,2"], "no such key (did you mean 'job'?)"),
        (["job.kind=round,flt"], "job.kind='flt': expected"),
        (["job.width=interval(1,4)"], "for whole numbers write job.width=int(interval(1,4))"),
        (["variant=deep,flt"], "no such variant (did you mean 'flat'?)"),
        (["logger=[csv],[cvs]"], "logger=cvs: logger has no option 'cvs' (did you mean 'csv'?)"),
        (["data=text,python_source"], "data.path"),  # wrong at a choice alone: text has no path of its own
        ([LOG, "trials=0"], "trials=0: at least one trial"),
        ([LOG, "trials=some"], "trials=some: expected int"),
        ([LOG, "trails=4"], "trails=4: no such key (did you mean 'trials'?)"),
        ([LOG, "parallel=0"], "parallel=0: at least one trial at a time"),
        ([LOG, "retrain=-1"], "retrain=-1: a number of seeds"),
        ([LOG, "timeout=0"], "timeout=0: minutes, above 0"),
        ([LOG, "pruner=medan"], "pruner=medan: expected 'median', 'none'"),
        ([LOG, "direction=up"], "direction=up: expected 'minimize', 'maximize' or null"),
        ([LOG, "metric=test/accuracy"], "say which way is better"),
        ([LOG, "metric=loss_at_3", "pruner=median"], "metric=loss_at_3 is never validated"),
        ([LOG, "storage=sweep.db"], "expected a URL"),
        ([LOG, "storage=foo://x"], "storage=foo://x cannot be opened"),
        ([LOG, "storage=sqlite:////nowhere/x.db"], "cannot be opened: unable to open database file"),
        ([LOG, "storage=postgresql://me:secret@nowhere/x"], "storage=postgresql://me:***@nowhere/x cannot be opened"),
        ([LOG, "name=x"], "name=x names a study in a shared storage=URL"),
        ([LOG, "seeds=[0,1]"], "a trial's seeds are written seed=0,1,2"),
        ([LOG, "variant=[deep,flat]"], "variants are swept as variant=a,b"),
        ([LOG, "recipe=bowl,fragile"], "a sweep is over the values of one recipe"),
        ([LOG, "~claims"], "a sweep cannot take a key away"),
        ([LOG, "out=a,b"], "a comma in a sweep's folder"),
        ([LOG, "job.noise"], "job.noise: no such key"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_starts(
    edgetrain: Call, workplace: Path, typed: list[str], words: str
) -> None:
    code, _, err = edgetrain("sweep", "recipe=bowl", "out=bad", *typed)
    assert code == 2, err
    assert words in err
    assert err.count("\n") == 1, err
    assert "secret" not in err
    assert {path.name for path in workplace.iterdir()} == {"texts"}


def test_every_bad_value_is_named_at_once(workplace: Path) -> None:
    with pytest.raises(UserError) as error:
        plan_sweep(["recipe=bowl", "job.kind=flt,rund", "job.wdth=1,2", "job.rate=interval(1,2)"])
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert [line.partition("=")[0] for line in lines] == ["job.kind", "job.wdth", "job.kind"]
