"""What is concluded from a sweep's trials, on cases worked by hand."""

from pathlib import Path

import optuna
import pytest

from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.sweep import best
from edgetrain.sweep.plan import plan_sweep
from edgetrain.sweep.result import best_so_far, importance, value_of

VALUES = [(0, 3.0), (1, 4.0), (3, 2.0), (4, 2.5)]


def test_the_best_so_far_is_a_staircase() -> None:
    assert best_so_far(VALUES, low_is_good=True) == [(0, 3.0), (1, 3.0), (3, 3.0), (3, 2.0), (4, 2.0)]
    assert best_so_far(VALUES, low_is_good=False) == [(0, 3.0), (1, 3.0), (1, 4.0), (3, 4.0), (4, 4.0)]


def test_a_key_that_decides_is_more_important_than_one_that_does_not() -> None:
    study = optuna.create_study()
    spaces = {name: optuna.distributions.FloatDistribution(0, 1) for name in ("decides", "idles")}
    for number in range(20):
        decides, idles = number / 20, (number * 7 % 20) / 20
        point = {"decides": decides, "idles": idles}
        study.add_trial(optuna.trial.create_trial(params=point, distributions=spaces, value=decides))
    shares = importance(study)
    assert shares["decides"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_a_choice_that_looks_like_a_number_is_one_in_the_table() -> None:
    assert [value_of(text) for text in ("0.001", "64", "llama", "b\\ c", 0.5)] == [0.001, 64, "llama", "b c", 0.5]


def test_a_best_recipe_that_would_not_repeat_its_trial_is_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value lost on the way into the file is named, with the command that repeats the trial."""
    sweep = plan_sweep(["recipe=bowl", "job.width=2,3"])
    trial = optuna.trial.create_trial(
        params={"job.width": "3"},
        distributions={"job.width": optuna.distributions.CategoricalDistribution(["2", "3"])},
        value=0.0,
    )
    usual = best.as_recipe
    monkeypatch.setattr(best, "as_recipe", lambda overrides: usual(overrides[:1]))
    with pytest.raises(UserError, match=r"does not give job.width .*: python -m edgetrain recipe=bowl job.width=3"):
        best.write_best(trial, 2, sweep, RunFolder(workplace / "s"))
