"""Hydra's sweep grammar as a space: what it holds, what is proposed from it, and what is refused."""

import itertools
import math

import optuna
import pytest

from edgetrain.errors import UserError
from edgetrain.sweep.space import Axis, point, read_space, shown, size, spread_out


def axis(text: str) -> Axis:
    ((found,), seeds, fixed) = read_space([text])
    assert seeds is None
    assert fixed == []
    return found


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=choice(x,y)", ["x", "y"]),
        ("a=x,y", ["x", "y"]),
        ("a=true,false,null", ["true", "false", "null"]),
        ("a=0.1,1e-3", ["0.1", "0.001"]),
        ("method=[layerskip],[lora]", ["[layerskip]", "[lora]"]),
        ("a=choice('b c','d,e')", ["b\\ c", "d\\,e"]),
        ("a=range(3)", [0, 1, 2]),
        ("a=range(2,9,3)", [2, 5, 8]),
        ("a=range(2,8,3)", [2, 5]),
        ("a=range(5,1,-2)", [3, 5]),
        ("a=range(0.5,2,0.5)", [0.5, 1.0, 1.5]),
        ("a=int(interval(2,4))", [2, 3, 4]),
        ("a=tag(log,range(1,5))", [1, 2, 3, 4]),
    ],
)
def test_a_finite_axis_holds_what_hydra_would_enumerate(text: str, values: list) -> None:
    assert axis(text).values == values
    assert axis(text).count == len(values)


def test_an_interval_has_both_ends_and_its_scale() -> None:
    assert axis("lr=tag(log,interval(1e-4,1e-2))") == Axis("lr", low=1e-4, high=1e-2, log=True)
    assert axis("+lr=interval(0,1)") == Axis("+lr", low=0.0, high=1.0)
    assert axis("+lr=interval(0,1)").key == "lr"
    assert axis("+lr=interval(0,1)").override(0.5) == "+lr=0.5"
    assert axis("lr=interval(0,1)").count == math.inf


@pytest.mark.parametrize(
    ("text", "kind", "low", "high", "step", "log"),
    [
        ("a=tag(log,interval(1e-4,1e-2))", "FloatDistribution", 1e-4, 1e-2, None, True),
        ("a=interval(1,8)", "FloatDistribution", 1.0, 8.0, None, False),
        ("a=int(interval(1,8))", "IntDistribution", 1, 8, 1, False),
        ("a=int(tag(log,interval(1,64)))", "IntDistribution", 1, 64, 1, True),
        ("a=range(64,257,64)", "IntDistribution", 64, 256, 64, False),
        ("a=range(1,2,0.3)", "FloatDistribution", 1.0, 1.9, 0.3, False),
    ],
)
def test_optuna_is_asked_for_that_distribution(
    text: str, kind: str, low: float, high: float, step: float | None, log: bool
) -> None:
    study = optuna.create_study()
    trial = study.ask()
    axis(text).suggest(trial)
    (found,) = study.trials[0].distributions.values()
    assert type(found).__name__ == kind
    assert (found.low, found.high, found.step, found.log) == (low, high, step, log)


def test_a_quoted_choice_is_shown_as_it_is_meant() -> None:
    assert [shown(value) for value in axis("a=choice('b c','d,e',\"it's\")").values] == ["b c", "d,e", "it's"]


def test_points_are_counted_with_the_last_key_fastest() -> None:
    axes = [axis("a=x,y"), axis("b=range(3)")]
    assert size(axes) == 6
    assert [point(axes, number) for number in range(6)] == [
        {"a": word, "b": number} for word in ("x", "y") for number in (0, 1, 2)
    ]
    assert size([*axes, axis("c=interval(0,1)")]) == math.inf


def test_few_points_lie_evenly() -> None:
    """One key: steps of the golden ratio, 0.618 modulo 1. Two: any eight points visit every quarter of the square."""
    (line,) = [axis("a=interval(0,1)")]
    values = [spread_out([line], number, seed=3)["a"] for number in range(5)]
    assert [(b - a) % 1 for a, b in itertools.pairwise(values)] == pytest.approx([(math.sqrt(5) - 1) / 2] * 4)
    square = [axis("a=interval(0,1)"), axis("b=interval(0,1)")]
    for seed in range(20):
        points = [spread_out(square, number, seed) for number in range(8)]
        assert len({(one["a"] < 0.5, one["b"] < 0.5) for one in points}) == 4
    assert spread_out(square, 0, 1) != spread_out(square, 0, 2)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=tag(log,interval(1e-4,1))", [1e-4, 1e-2, 10**-0.04]),
        ("a=interval(1,3)", [1, 2, 2.98]),
        ("a=x,y", ["x", "y", "y"]),
        ("a=range(64,257,64)", [64, 192, 256]),
        ("a=range(0.5,2,0.5)", [0.5, 1.0, 1.5]),
        ("a=tag(log,range(1,5))", [1, 2, 4]),
    ],
)
def test_shares_follow_the_axes_scale(text: str, values: list) -> None:
    found = [axis(text).at(share) for share in (0, 0.5, 0.99)]
    assert found == (pytest.approx(values) if isinstance(values[0], float) else values)


@pytest.mark.parametrize(
    ("texts", "seeds"),
    [
        ([], None),
        (["seed=4"], [4]),
        (["seed=range(3)"], [0, 1, 2]),
        (["seed=7,3"], [7, 3]),
        (["seed=choice(1,2)"], [1, 2]),
    ],
)
def test_seeds_are_no_axis(texts: list[str], seeds: list[int] | None) -> None:
    axes, found, fixed = read_space(["recipe=odd,name", "a=1,2", "b=3", "c='f(x), y'", *texts])
    assert [one.key for one in axes] == ["a"]
    assert found == seeds
    assert fixed == ["recipe=odd,name", "b=3", "c='f(x), y'"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a=choice()", "empty choice"),
        ("a=choice(1)", "it holds one value; write a=1, or give it several"),
        ("a=1,2,1", "a value stands in it twice"),
        ("a=interval(1,1)", "it holds one value"),
        ("a=interval(2,1)", "starts above its end; write interval(1,2)"),
        ("a=interval(x,y)", "a word stands where a number should"),
        ("a=interval(1)", "missing a required argument: 'end'"),
        ("a=interval(0,inf)", "finite numbers"),
        ("a=interval(nan,1)", "finite numbers"),
        ("a=tag(log,interval(0,1))", "a logarithmic scale starts above 0, this one at 0"),
        ("a=tag(log,range(0,8))", "a logarithmic scale starts above 0, this one at 0"),
        ("a=tag(log,range(1,8,2))", "whole numbers with a step of 1"),
        ("a=tag(log,choice(1,2))", "a choice has no logarithm"),
        ("a=tag(lgo,interval(1,2))", "there is no tag 'lgo' (did you mean 'log'?)"),
        ("a=range(0)", "it holds no value"),
        ("a=range(1)", "it holds one value; write a=0"),
        ("a=range(5,1)", "it holds no value"),
        ("a=range(1,4,0)", "a step of 0"),
        ("a=shuffle(range(3))", "shuffle and glob are not for a sweep"),
        ("a=glob(*)", "shuffle and glob are not for a sweep"),
        ("a=choise(1,2)", "Unknown function 'choise'; write a=choice(a,b)"),
        ("seed=interval(0,1)", "seeds are whole numbers; write seed=0,1,2 or seed=range(3)"),
        ("seed=a,b", "seeds are whole numbers"),
        ("seed=1,1", "a seed stands in it twice"),
        ("seed=range(0)", "holds no seed"),
    ],
)
def test_a_space_that_is_empty_or_misspelt_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        read_space(["b=1,2", text])
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{text}: ")
    assert words in line


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError) as error:
        read_space(["a=range(0)", "b=interval(1,1)", "c=1,2", "c=3,4"])
    assert len(str(error.value).splitlines()) == 3
    assert "c: swept twice" in str(error.value)
