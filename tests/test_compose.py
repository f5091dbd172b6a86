"""The laws of composition, beside what plain Hydra makes of the same files."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from edgetrain import recipes
from edgetrain.compose import as_recipe, compose
from edgetrain.config import Config
from edgetrain.errors import UserError

TARGETS = """
class Data:
    def __init__(self, name: str = "a", limit: int = 0, vocab_size: int = 0, extra: dict = None): ...
class Other:
    def __init__(self, limit: int = 0, path: str = ""): ...
class Model:
    def __init__(self, vocab_size: int, width: int = 8, block: "Block" = None): ...
class Block:
    def __init__(self, size: int = 1): ...
class Wide:
    def __init__(self, factor: float = 1.0): ...
class Method:
    def __init__(self, p: float = 0.1, seed: int = 0): ...
class Pair:
    def __init__(self, parts: dict = None): ...
"""

FILES = {
    "conf/data/text.yaml": "_target_: composed.Data\nname: text\nlimit: 100\nvocab_size: 256",
    "conf/data/audio.yaml": "_target_: composed.Other\npath: x",
    "conf/data/long.yaml": "defaults: [text]\nlimit: 9000",
    "conf/model/tiny.yaml": "_target_: composed.Model\nvocab_size: ${data.vocab_size}\nwidth: 4\n"
    "block: {_target_: composed.Block, size: 3}",
    "conf/method/drop.yaml": "_target_: composed.Method\np: 0.2",
    "conf/method/prune.yaml": "_target_: composed.Method\np: 0.3\nseed: ${seed}",
    "conf/method/harder.yaml": "defaults: [prune]\np: 0.9",
    "conf/method/both.yaml": "defaults: [prune@parts.first, drop@parts.second, _self_]\n_target_: composed.Pair",
    "conf/method/quantize.yaml": "_target_: composed.Method\np: 0.4",
}

DEFAULTS = """
defaults:
  - override /data: text
  - override /model: tiny
  - override /method: [prune, drop]
"""

RECIPE = (
    "# A recipe.\n"
    + DEFAULTS
    + """
seed: 3
data: {limit: 50}
method: {drop: {p: 0.5}}
smoke: [data.limit=2, "method=[drop]"]
variants:
  wide: [model.width=64]
  audio: [data=audio, model.vocab_size=1]
"""
)

Typed = Callable[..., Config]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project: targets, options in conf/ and recipes/r.yaml, composed from an empty working directory."""
    for name, text in {**FILES, "composed.py": TARGETS, "recipes/r.yaml": RECIPE, "work/x": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path / "work")
    packaged = recipes.packaged
    monkeypatch.setattr(recipes, "packaged", lambda name: packaged(name) if name == "conf" else tmp_path / "none")
    return tmp_path


@pytest.fixture
def typed(project: Path) -> Typed:
    """typed("seed=1", body=...) composes the recipe, or one with another body."""

    def run(*overrides: str, body: str | None = None, smoke: bool = False) -> Config:
        if body is not None:
            (project / "recipes/r.yaml").write_text(body)
        return compose([f"recipe={project}/recipes/r.yaml", *overrides], smoke=smoke)

    return run


@pytest.fixture
def refused(typed: Typed) -> Callable[..., list[str]]:
    """The lines of the error of the same call."""

    def run(*overrides: str, **options: Any) -> list[str]:
        with pytest.raises(UserError) as error:
            typed(*overrides, **options)
        return str(error.value).splitlines()

    return run


def plain_hydra(project: Path, body: str, *overrides: str) -> dict[str, Any]:
    """What Hydra alone makes of the same options and the same recipe body."""
    (project / "conf/recipe").mkdir(exist_ok=True)
    (project / "conf/recipe/r.yaml").write_text("# @package _global_\n" + body)
    (project / "conf/config.yaml").write_text(
        "defaults: [_self_, {data: null}, {model: null}, {method: []}, {recipe: r}]\nseed: 0"
    )
    with hydra.initialize_config_dir(str(project / "conf"), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("config", list(overrides)))


def test_a_recipe_is_composed(typed: Typed) -> None:
    config = typed()
    assert (config.recipe, config.seed, config.variant) == ("r", 3, None)
    assert config.data == {"_target_": "composed.Data", "name": "text", "limit": 50, "vocab_size": 256}
    assert config.model["vocab_size"] == 256
    assert config.trainer is None


def test_two_list_entries_both_survive_in_order(typed: Typed, project: Path) -> None:
    assert list(plain_hydra(project, DEFAULTS)["method"]) == ["_target_", "p", "seed"]  # merged into one
    config = typed()
    assert [(name, node["p"]) for name, node in config.method.items()] == [("prune", 0.3), ("drop", 0.5)]
    assert list(typed("method=[drop,quantize,prune]").method) == ["drop", "quantize", "prune"]
    assert config.method["prune"]["seed"] == 3


def test_a_list_can_be_added_to(typed: Typed) -> None:
    config = typed("+method=quantize", "method.quantize.p=0.7")
    assert [(name, node["p"]) for name, node in config.method.items()] == [
        ("prune", 0.3),
        ("drop", 0.5),
        ("quantize", 0.7),
    ]


def test_a_swapped_group_keeps_nothing_of_the_recipe_and_says_so(
    typed: Typed, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = DEFAULTS + "data: {limit: 50}"
    assert plain_hydra(project, body, "data=audio")["data"]["limit"] == 50  # kept in silence
    config = typed("data=audio", "model.vocab_size=1")
    assert config.data == {"_target_": "composed.Other", "path": "x"}
    assert capsys.readouterr().err == "data=audio drops what the recipe had set inside data: limit\n"


def test_values_typed_beside_the_choice_hold(typed: Typed) -> None:
    assert typed("data.limit=7", "data=audio", "model.vocab_size=1").data["limit"] == 7


def test_a_swapped_list_keeps_nothing_of_the_recipe(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("method=[drop]").method == {"drop": {"_target_": "composed.Method", "p": 0.2}}
    assert "inside method: drop" in capsys.readouterr().err


def test_a_group_can_be_left_empty(typed: Typed) -> None:
    assert typed("method=[]").method == {}
    assert typed("~method").method == {}
    assert typed("data=null", "model.vocab_size=1").data is None


def test_a_node_with_its_own_target_replaces_the_option_whole(typed: Typed, project: Path) -> None:
    body = DEFAULTS + "data: {_target_: composed.Other, limit: 1}\nmodel: {vocab_size: 9}"
    assert plain_hydra(project, body)["data"]["vocab_size"] == 256  # of another class
    assert typed(body=body).data == {"_target_": "composed.Other", "limit": 1}


def test_replacing_reaches_inner_nodes_and_keeps_the_order_of_lists(typed: Typed) -> None:
    body = DEFAULTS + "model: {block: {_target_: composed.Wide}}\nmethod: {prune: {_target_: composed.Method, seed: 8}}"
    config = typed(body=body)
    assert config.model["block"] == {"_target_": "composed.Wide"}
    assert config.model["width"] == 4
    assert list(config.method) == ["prune", "drop"]
    assert config.method["prune"] == {"_target_": "composed.Method", "seed": 8}


def test_an_option_may_inherit_from_another_of_its_group(typed: Typed) -> None:
    config = typed("data=long", "method=[harder]")
    assert (config.data["limit"], config.data["name"]) == (9000, "text")
    assert config.method == {"harder": {"_target_": "composed.Method", "p": 0.9, "seed": 3}}


def test_an_option_may_be_put_together_from_others_of_its_group(
    typed: Typed, refused: Callable[..., list[str]]
) -> None:
    """NAME@KEY in defaults: the options stay what they are, and their keys can be set at their place."""
    config = typed("method=[both,prune]", "method.both.parts.second.p=0.7", "method.prune.p=0.1")
    first = {"_target_": "composed.Method", "p": 0.3, "seed": 3}
    parts = {"first": first, "second": {"_target_": "composed.Method", "p": 0.7}}
    assert config.method == {"both": {"_target_": "composed.Pair", "parts": parts}, "prune": first | {"p": 0.1}}
    assert refused("method=[both]", "method.both.parts.first.q=1")[0].startswith(
        "method.both.parts.first.q=1: Method has no parameter 'q'"
    )


def test_typos_everywhere_are_reported_at_once(refused: Callable[..., list[str]], project: Path) -> None:
    body = (
        DEFAULTS + "sead: 1\ndata: {limti: 5, limit: ten}\nmethod: {dorp: {p: 1}}\nsmoke: [model.wdith=1, data.limit=x]"
    )
    assert plain_hydra(project, body)["data"]["limti"] == 5  # merged in silence
    assert refused("model.widht=3", body=body) == [
        "data.limit='ten': expected int",
        "data.limti=5: Data has no parameter 'limti' (did you mean 'limit'?)",
        "model.widht=3: Model has no parameter 'widht' (did you mean 'width'?)",
        "method.dorp has no _target_; method has no such option (did you mean 'drop'?)",
        "sead=1: no such key (did you mean 'seed'?)",
        "smoke: data.limit='x': expected int",
        "smoke: model.wdith=1: Model has no parameter 'wdith' (did you mean 'width'?)",
    ]


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_an_unknown_key_is_refused_however_it_is_typed(
    refused: Callable[..., list[str]], project: Path, prefix: str
) -> None:
    if prefix:
        assert plain_hydra(project, DEFAULTS, f"{prefix}modle.x=1")["modle"] == {"x": 1}
    assert refused(f"{prefix}modle.x=1") == ["modle={'x': 1}: no such key (did you mean 'model'?)"]


def test_wrong_types_and_missing_values_are_refused(refused: Callable[..., list[str]]) -> None:
    assert refused("out=3", "model.width=2.5") == ["out=3: expected str | None", "model.width=2.5: expected int"]
    assert refused("data.vocab_size=???") == ["data.vocab_size: missing, Data needs a value (int)"]


def test_a_deleted_key_is_gone(typed: Typed, refused: Callable[..., list[str]]) -> None:
    assert "limit" not in typed("~data.limit", body=DEFAULTS).data
    assert list(typed("~method.prune", body=DEFAULTS).method) == ["drop"]
    assert refused("~data.lmit", body=DEFAULTS) == ["Could not delete from config. 'data.lmit' does not exist."]


def test_unknown_options_and_recipes_list_what_exists(refused: Callable[..., list[str]], project: Path) -> None:
    first, second = refused("data=txet", "method=[drop,prun]")
    assert first.startswith("data=txet: data has no option 'txet' (did you mean 'text'?); options:")
    assert "did you mean 'prune'" in second and "quantize" in second
    with pytest.raises(UserError, match="recipe=layerskip_lama: no such recipe"):
        compose(["recipe=layerskip_lama"])


def test_an_option_twice_in_a_list_is_refused(refused: Callable[..., list[str]]) -> None:
    assert refused("method=[drop,drop]") == ["method: 'drop' stands in the list twice"]


@pytest.mark.parametrize(
    "text", ["seed=1,2", "data.limit=choice(1,2)", "data.limit=interval(1,9)", "method=drop,prune"]
)
def test_sweeps_are_for_the_verb_sweep(refused: Callable[..., list[str]], text: str) -> None:
    (line,) = refused(text)
    assert line.startswith(f"{text}: one run takes one value; for several use the verb sweep")


@pytest.mark.parametrize(
    "text",
    ["seed", "=3", "a b=1", "data.name=[1", "data={a:1}", "data=[text]", "hydra.verbose=true", "data@x=text", "a/b=1"],
)
def test_malformed_overrides_are_a_sentence(refused: Callable[..., list[str]], text: str) -> None:
    (line,) = refused(text)
    assert line.startswith(("data=", text, f"'{text}'"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("data: text", "an entry is '- override /GROUP: OPTION'"),
        ("overide /data: text", "'overide /data' is not understood"),
        ("override /dta: text", "did you mean 'data'"),
        ("other_recipe", "'other_recipe' is not understood"),
    ],
)
def test_a_recipe_picks_in_one_way_only(refused: Callable[..., list[str]], entry: str, message: str) -> None:
    (line,) = refused(body=f"defaults:\n  - {entry}\n")
    assert message in line


def test_the_layers_are_recipe_variant_smoke_command_line(typed: Typed) -> None:
    body = DEFAULTS + "seed: 1\nvariants: {v: [seed=2, data.limit=2]}\nsmoke: [seed=3, model.width=3]"
    assert typed(body=body).seed == 1
    assert typed("variant=v").seed == 2
    assert typed("variant=v").variant == "v"
    small = typed("variant=v", smoke=True)
    assert (small.seed, small.data["limit"], small.model["width"]) == (3, 2, 3)
    assert typed("variant=v", "seed=4", smoke=True).seed == 4


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.width=9", "seed=5"],
        ["data=audio", "model.vocab_size=3"],
        ["data=audio", "data.limit=4", "model.vocab_size=3"],
        ["data=long", "data.vocab_size=99"],
        ["variant=wide"],
        ["variant=audio", "data.path=y"],
        ["method=[drop]", "method.drop.p=0.7"],
        ["+method=[harder]"],
        ["model.block={size: 7}"],
        ["++data.extra={a: [1, b]}"],
        ["data.name='x, y'"],
    ],
)
def test_overrides_written_as_a_recipe_compose_to_the_same(typed: Typed, project: Path, overrides: list[str]) -> None:
    body = as_recipe([f"recipe={project}/recipes/r.yaml", *overrides])
    path = project / "recipes" / "copy.yaml"
    path.write_text(yaml.safe_dump(body))
    others = ("recipe", "description", "variant", "variants", "smoke")
    copy, original = compose([f"recipe={path}"]).to_dict(), typed(*overrides).to_dict()
    assert {k: v for k, v in copy.items() if k not in others} == {k: v for k, v in original.items() if k not in others}


def test_a_written_recipe_leaves_out_what_smoke_would_take_back_and_what_makes_a_study(project: Path) -> None:
    path = project / "recipes" / "r.yaml"
    pair = "{effect: e, paper: p, metric: m, variant: wide, against: audio, above: 0}"
    alone = "{effect: f, paper: p, metric: m, above: 0}"
    path.write_text(RECIPE.replace("smoke: [", 'smoke: ["seeds=[0]", ') + f"seeds: [0, 1]\nclaims: [{pair}, {alone}]")
    body = as_recipe([f"recipe={path}", "data.limit=7"])
    assert body["smoke"] == ["method=[drop]"]
    assert [claim["effect"] for claim in body["claims"]] == ["f"]
    assert not {"variants", "seeds", "parallel", "study"} & body.keys()
    assert as_recipe([f"recipe={path}", "data=audio"])["smoke"] == ["method=[drop]"]
    assert as_recipe([f"recipe={path}", "method=[prune]"])["smoke"] == ["data.limit=2"]


def test_a_variant_that_swaps_a_group_drops_too(typed: Typed) -> None:
    assert typed("variant=audio").data == {"_target_": "composed.Other", "path": "x"}


def test_errors_of_the_chosen_variant_carry_its_name(refused: Callable[..., list[str]]) -> None:
    body = DEFAULTS + "sead: 1\nvariants: {good: [], bad: [model.wdith=1], worse: ['a=1,2']}"
    assert refused("variant=good", body=body) == ["sead=1: no such key (did you mean 'seed'?)"]
    lines = refused("variant=bad")
    assert [line.partition("=")[0] for line in lines] == ["variant bad: model.wdith", "sead"]
    assert refused("variant=worse")[0].startswith("variant worse: a=1,2: ")
    assert refused("variant=god") == [
        "variant=god: r has no such variant (did you mean 'good'?); variants: good, bad, worse"
    ]


def test_recipe_and_variant_are_not_chosen_inside_a_recipe(refused: Callable[..., list[str]]) -> None:
    (line,) = refused(body=DEFAULTS + "variant: wide")
    assert line.endswith("variant is chosen on the command line only, as variant=NAME")
    assert refused(body=DEFAULTS + "smoke: [recipe=x]") == [
        "smoke: recipe=x: recipe is chosen on the command line only, as recipe=NAME"
    ]


def test_a_broken_interpolation_names_its_key(refused: Callable[..., list[str]]) -> None:
    assert refused("data=audio") == [
        "model.vocab_size=${data.vocab_size}: Interpolation key 'data.vocab_size' not found",
    ]


def test_a_recipe_may_read_the_environment(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "here")
    assert typed(body=DEFAULTS + "out: ${oc.env:PLACE}").out == "here"


def test_yaml_errors_name_file_and_line(refused: Callable[..., list[str]]) -> None:
    (line,) = refused(body="a: 1\nb: [1\nc: 2")
    assert "recipes/r.yaml:3: " in line


def test_options_beside_the_recipe_replace_those_of_the_package(typed: Typed, project: Path) -> None:
    mine = project / "work/conf/data/text.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("_target_: composed.Data\nname: mine\nvocab_size: 1")
    assert typed().data["name"] == "mine"


def test_an_option_may_be_a_file_anywhere(typed: Typed, refused: Callable[..., list[str]], project: Path) -> None:
    mine = project / "elsewhere" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text("defaults: [text]\nlimit: 7")
    assert typed(f"data={mine}").data == typed("data=text", "data.limit=7").data
    extra = project / "elsewhere" / "extra.yaml"
    extra.write_text("_target_: composed.Method\np: 0.5")
    assert typed(f"method=[{extra}]", "method.extra.seed=3").method["extra"]["seed"] == 3
    same = project / "elsewhere" / "text.yaml"
    same.write_text("_target_: composed.Data\nname: theirs\nvocab_size: 1")
    assert typed(f"data={same}").data["name"] == "theirs"
    assert refused("data=../elsewhere/none.yaml") == ["data=../elsewhere/none.yaml: there is no such file"]


SAVED = {"recipe": "old", "variant": "v", "trust": ["composed"], "seed": 5, "method": {}}
OPTIMIZER = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}


def test_a_saved_configuration_takes_overrides_by_the_same_laws(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)  # ./conf
    base = SAVED | {"optimizer": OPTIMIZER, "smoke": ["seed=6"]}
    config = compose(["optimizer.lr=0.2"], base=base)
    assert (config.recipe, config.variant, config.seed) == ("old", "v", 5)
    assert config.optimizer == OPTIMIZER | {"lr": 0.2}
    assert compose([], smoke=True, base=base).seed == 6
    config = compose(["optimizer=null", "data=audio", "trust=[composed]"], base=base)
    assert config.optimizer is None and config.data["path"] == "x"
    assert "drops" in capsys.readouterr().err
    assert Config(**config.to_dict()) == config


def test_a_saved_configuration_does_not_vouch_for_itself(project: Path) -> None:
    base = SAVED | {"data": {"_target_": "composed.Other"}}
    with pytest.raises(UserError, match=r"data: composed.Other .* add trust=\[composed\]"):
        compose([], base=base)
    assert compose(["trust=[composed]"], base=base).trust == ["composed"]


def test_a_saved_configuration_does_not_read_the_environment(project: Path) -> None:
    with pytest.raises(UserError, match="oc.env:HOME"):
        compose([], base=SAVED | {"out": "${oc.env:HOME}"})


def test_a_saved_configuration_keeps_its_recipe_and_variant(project: Path) -> None:
    for text in ("recipe=x", "variant=x"):
        with pytest.raises(UserError, match="chosen when it was made"):
            compose([text], base=SAVED)


def test_composing_leaves_hydra_as_it_was(typed: Typed) -> None:
    ConfigStore.instance().store(name="text", group="data", node={"theirs": 1})
    before = ConfigStore.instance().repo
    typed()
    assert ConfigStore.instance().repo is before
    assert typed().data["name"] == "text"


def test_composing_imports_nothing_heavy(project: Path) -> None:
    body = "defaults: [{override /optimizer: o}, {override /trainer: t}]"
    for name, text in {
        "conf/optimizer/o.yaml": "_target_: torch.optim.AdamW\nlr: 1e-3",
        "conf/trainer/t.yaml": "_target_: lightning.pytorch.Trainer\nmax_steps: 3",
        "recipes/r.yaml": body,
    }.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    script = f"""
import sys
from edgetrain.compose import as_recipe, compose
assert compose(["recipe={project}/recipes/r.yaml"]).optimizer["lr"] == 1e-3
assert not {{"torch", "lightning", "transformers", "datasets", "numpy"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
