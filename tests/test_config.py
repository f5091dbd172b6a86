"""The schema reports everything that is wrong, at once, in the user's words."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from edgetrain.config import Config, check_trust, defaults, find_problems, make
from edgetrain.errors import UserError

MODULE = """
class Model:
    def __init__(self, width: int, depth: int = 2, name: str = "a", act: "Activation" = None, parts: list = ()): ...
class Activation:
    def __init__(self, slope: float = 0.1): ...
class Task:
    def __init__(self, model, methods, optimizer, steps: int): ...
class Method:
    def __init__(self, p: float = 0.1): ...
"""

OPTIONS = {"method": ["layerskip", "quantize"], "model": ["tiny"]}


@pytest.fixture(autouse=True)
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "schema_targets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def node(target: str, /, **values: Any) -> dict[str, Any]:
    return {"_target_": f"schema_targets.{target}", **values}


def problems(**raw: Any) -> list[str]:
    return find_problems({"recipe": "x", **raw}, OPTIONS)


def check(raw: dict[str, Any]) -> Config:
    assert find_problems(raw, OPTIONS) == []
    return make(raw)


def test_a_correct_configuration_becomes_plain_containers() -> None:
    config = check({"recipe": "x", "model": node("Model", width=8), "method": {"a": node("Method")}, "data": {}})
    assert (config.seed, config.model, config.data) == (0, node("Model", width=8), None)
    assert config.to_dict()["method"] == {"a": node("Method")}
    assert Config(**config.to_dict()) == config
    assert b"omegaconf" not in pickle.dumps(config.to_dict())


def test_to_dict_is_a_copy() -> None:
    config = check({"recipe": "x", "model": node("Model", width=8)})
    config.to_dict()["model"]["width"] = 9
    assert config.model == node("Model", width=8)


def test_defaults_are_those_of_the_schema() -> None:
    assert defaults()["seed"] == 0
    assert not {"recipe", "model", "method"} & defaults().keys()


def test_every_problem_is_listed_a_line_each() -> None:
    found = problems(sead=1, seed="a", model=node("Model", widht=8, name=3), method={"layerskp": {"p": 1}})
    assert found == [
        "sead=1: no such key (did you mean 'seed'?)",
        "seed='a': expected int",
        "model.widht=8: Model has no parameter 'widht' (did you mean 'width'?)",
        "model.name=3: expected str",
        "model.width: missing, Model needs a value (int)",
        "method.layerskp has no _target_; method has no such option (did you mean 'layerskip'?)",
    ]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"seed": True}, "seed=True: expected int"),
        ({"out": 3}, "out=3: expected str | None"),
        ({"seeds": [1, "b"]}, "seeds=[1, 'b']: expected list[int]"),
        ({"variants": {"big": "a=1"}}, "variants={'big': 'a=1'}: expected dict[str, list[str]]"),
        ({"smoke": [{"a": 1}]}, "smoke=[{'a': 1}]: expected list[str]"),
        ({"out": "???"}, "out: missing"),
        ({"model": 3}, "model=3: expected keys and values with a _target_, or an option: tiny"),
        ({"model": {"width": 3}}, "model has no _target_ but sets width; pick an option with model=NAME: tiny"),
        ({"model": {"_target_": 3}}, "model._target_=3: expected a dotted path"),
        ({"model": {"_target_": "???"}}, "model._target_='???': expected a dotted path"),
        ({"model": node("Modle")}, "model._target_=schema_targets.Modle: schema_targets has no 'Modle' (did you mean"),
        ({"model": node("Model", width="???")}, "model.width: missing, Model needs a value (int)"),
        ({"model": node("Model", width=1, parts=[{"a": "???"}])}, "model.parts.0.a: missing"),
        ({"model": node("Model", width=1, act=node("Activation", slop=1))}, "model.act.slop=1: Activation has no"),
        ({"model": node("Model", width=1, parts=[node("Activation", slope="x")])}, "model.parts.0.slope='x': expected"),
        ({"method": 3}, "method=3: expected entries by name, such as method.layerskip"),
        ({"method": {"layerskip": 3}}, "method.layerskip=3: expected keys and values with a _target_"),
        ({"method": {"quantize": {"p": 1}}}, "'quantize' is not picked, add it with method=[...,quantize]"),
        ({"task": node("Task")}, "task.steps: missing, Task needs a value (int)"),
        ({"claims": 3}, "claims=3: expected a list"),
        ({"claims": [3]}, "claims.0=3: expected the keys effect, paper, metric, above, below"),
        (
            {"claims": [{"effect": "e", "paper": "p", "metrik": "m"}]},
            "metrik='m': no such key (did you mean 'metric'?)",
        ),
        ({"claims": [{"effect": "e", "paper": "p"}]}, "claims.0.metric: missing"),
        ({"claims": [{"effect": "e", "paper": "p", "metric": "m", "above": []}]}, "claims.0.above=[]: expected float"),
    ],
)
def test_a_problem_names_key_value_and_expectation(raw: dict[str, Any], expected: str) -> None:
    assert any(expected in line for line in problems(**raw)), problems(**raw)


@pytest.mark.parametrize(
    "raw",
    [
        {"task": node("Task", steps=3)},  # model, methods and optimizer come at run time
        {"model": node("Model", _partial_=True)},
        {"model": node("Model", width=8, act=node("Activation"))},
        {"model": None, "method": None, "measure": []},
        {"claims": [{"effect": "e", "paper": "p", "metric": "m", "above": 1, "below": "other_metric"}]},
        {"seeds": [1, 2], "variants": {"big": ["model.width=9"]}, "smoke": ["seed=1"]},
    ],
)
def test_what_is_allowed(raw: dict[str, Any]) -> None:
    check({"recipe": "x", **raw})


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.OneCycleLR",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.loggers.CSVLogger",
        "transformers.AutoModelForCausalLM.from_pretrained",
        "timm.create_model",
    ],
)
def test_known_library_targets_are_trusted(target: str) -> None:
    check_trust({"model": {"_target_": target}})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "schema_targets.Model",
        "torch.optim.adam.os.system",
        "torch.hub.load",
        "edgetrain.folder.os.remove",  # another module, reached through ours
        "edgetrain.folder.write_atomic",  # ours, but nothing that a recipe builds
        "edgetrain_evil.models.Model",
        "edgetrain.models.not_there.Model",
    ],
)
def test_other_targets_need_trust(target: str) -> None:
    package = target.partition(".")[0]
    with pytest.raises(UserError) as error:
        check_trust({"model": {"_target_": "torch.optim.SGD", "inner": [{"_target_": target}]}})
    assert f"model.inner.0: {target}" in str(error.value)
    assert f"trust=[{package}]" in str(error.value)
    check_trust({"model": {"_target_": target}, "trust": [package]})


def test_downloaded_code_needs_trust() -> None:
    target = "transformers.AutoModelForCausalLM.from_pretrained"
    with pytest.raises(UserError, match="runs downloaded code"):
        check_trust(Config(recipe="x", model={"_target_": target, "trust_remote_code": True}))
