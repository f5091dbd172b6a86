"""Recipes and options are found in their places, and YAML is read fast and strictly."""

from pathlib import Path

import pytest

from edgetrain import recipes
from edgetrain.errors import UserError

HEADER = """# A tiny thing, in one
# sentence.
# Paper: arXiv 2404.16710, section 4
#   and its appendix.
# Claim: figure 3
# Needs: 3 minutes; smoke 10 seconds
# Run: scripts/run recipe=thing
seed: 1
# Paper: not this
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and a package with the recipes `first` and `thing`."""
    package = tmp_path / "package"
    (package / "recipes").mkdir(parents=True)
    (package / "recipes" / "first.yaml").write_text("seed: 1")
    (package / "recipes" / "thing.yaml").write_text(HEADER)
    monkeypatch.setattr(recipes, "packaged", lambda name: package / name)
    monkeypatch.delenv(recipes.VARIABLE, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_later_place_wins_and_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = write(here / "recipes" / "first.yaml", "seed: 2")
    assert recipes.find("first") == mine
    assert str(mine) in capsys.readouterr().err
    theirs = write(here / "a" / "first.yaml", "seed: 3")
    write(here / "b" / "second.yaml", "seed: 4")
    monkeypatch.setenv(recipes.VARIABLE, "a:b")
    assert recipes.find("first") == theirs
    assert list(recipes.all_recipes()) == ["first", "second", "thing"]


def test_a_recipe_found_once_says_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.find("thing").name == "thing.yaml"
    assert capsys.readouterr().err == ""


def test_a_path_is_a_recipe(here: Path) -> None:
    path = write(here / "x" / "mine.yaml", "seed: 1")
    assert recipes.find("x/mine.yaml") == path
    with pytest.raises(UserError, match="no such file"):
        recipes.find("x/other.yaml")


@pytest.mark.parametrize("name", ["frist", "../recipes/first", ""])
def test_an_unknown_recipe_lists_what_exists(here: Path, name: str) -> None:
    with pytest.raises(UserError, match="first, thing") as error:
        recipes.find(name)
    assert name != "frist" or "did you mean 'first'" in str(error.value)


def test_a_wrong_environment_variable_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(recipes.VARIABLE, "nowhere")
    with pytest.raises(UserError, match="EDGETRAIN_RECIPES: nowhere is not a folder"):
        recipes.all_recipes()


def test_the_header_is_read_from_the_leading_comment(tmp_path: Path) -> None:
    header = recipes.header(write(tmp_path / "thing.yaml", HEADER))
    assert header == recipes.Header(
        sentence="A tiny thing, in one sentence.",
        paper="arXiv 2404.16710, section 4 and its appendix.",
        claim="figure 3",
        needs="3 minutes; smoke 10 seconds",
        run="scripts/run recipe=thing",
    )


def test_options_beside_the_recipe_and_in_the_working_directory_come_on_top(here: Path) -> None:
    write(here.parent / "package" / "conf" / "data" / "a.yaml", "")
    write(here.parent / "package" / "conf" / "data" / "b.yaml", "")
    beside = write(here / "project" / "conf" / "data" / "b.yaml", "")
    recipe = write(here / "project" / "recipes" / "r.yaml", "")
    last = write(here / "conf" / "model" / "c.yaml", "")
    found = recipes.options(recipe)
    assert set(found["data"]) == {"a", "b"}
    assert found["data"]["b"] == beside
    assert found["model"] == {"c": last}
    assert recipes.options()["data"]["b"] != beside


def test_floats_are_read_as_in_yaml_1_2(tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", "a: 1e-3\nb: 1.5\nc: -2E+4\nd: 3\ne: 1.\nf: .5\ng: .inf\nh: e3\ni: 2020-01-02\n")
    assert recipes.load_yaml(path) == {
        "a": 0.001, "b": 1.5, "c": -2e4, "d": 3, "e": 1.0, "f": 0.5, "g": float("inf"), "h": "e3", "i": "2020-01-02",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: [1\nc: 2\n", "bad.yaml:3: "),
        (b"a: 1\na: 2\n", "bad.yaml:2: the key 'a' stands here twice"),
        (b"x:\n  a: 1\n  a: 2\n", "bad.yaml:3: the key 'a' stands here twice"),
        (b"a: \xff\xfe\n", "not UTF-8 text"),
        (b"- a\n- b\n", "found a list"),
        (b"just text\n", "found a str"),
        (b"a: !!python/object:os.system {}\n", "bad.yaml:1: "),
        (b"a: \x01\n", "bad.yaml: "),
    ],
)
def test_bad_yaml_is_a_sentence_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        recipes.load_yaml(path)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    assert recipes.load_yaml(write(tmp_path / "x.yaml", "# nothing\n")) == {}
