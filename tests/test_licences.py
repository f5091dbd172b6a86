"""Whose data and weights a run learned from."""

from pathlib import Path

import pytest
import yaml

from edgetrain.compose import compose
from edgetrain.config import Config
from edgetrain.export.model_card import warnings_of
from edgetrain.licences import licences

SHAKESPEARE = {"_target_": "edgetrain.data.text.TextData", "path": "tinyshakespeare"}


def test_the_option_files_comment_says_source_and_licence(workplace: Path) -> None:
    (row,) = licences(compose(["recipe=layerskip_llama", "data=tinyshakespeare"]))
    assert (row["what"], row["name"]) == ("data", "tinyshakespeare")
    assert "karpathy/char-rnn" in row["source"]
    assert "public domain" in row["licence"]


def test_what_the_node_says_itself_comes_first(workplace: Path) -> None:
    node = SHAKESPEARE | {"origin": {"source": "here", "licence": "mine"}}
    (row,) = licences(Config(recipe="layerskip_llama", data=node))
    assert (row["source"], row["licence"]) == ("here", "mine")


def test_weights_bring_the_licences_of_their_own_run(workplace: Path) -> None:
    first = workplace / "first"
    first.mkdir()
    data = {"_target_": "x.Y", "path": "clips", "origin": {"source": "a site", "licence": "CC BY-NC 4.0"}}
    (first / "config.yaml").write_text(yaml.safe_dump({"recipe": "layerskip_llama", "data": data}))
    chain = licences(Config(recipe="layerskip_llama", data=SHAKESPEARE, init_from=str(first)))
    assert [row["what"] for row in chain] == ["data", "data of initial weights"]
    assert warnings_of(chain) == [
        "data of initial weights clips (CC BY-NC 4.0) is not for commercial use, nor is this model"
    ]


def test_weights_from_elsewhere_have_a_licence_that_nobody_said(workplace: Path) -> None:
    chain = licences(Config(recipe="layerskip_llama", data=SHAKESPEARE, init_from="some/folder"))
    assert chain[1] == {"what": "initial weights", "name": "some/folder", "source": None, "licence": None}
    assert warnings_of(chain[1:]) == ["nobody said under which licence the initial weights some/folder may be used"]


@pytest.mark.parametrize(
    ("licence", "warned"),
    [
        ("CC BY-NC-SA 4.0", True),
        ("for non-commercial use", True),
        ("research use", True),
        ("CC BY-SA 4.0", False),
        ("Apache-2.0", False),
        ("CC BY 4.0, by NCAR", False),
    ],
)
def test_non_commercial_licences_are_known_by_their_words(licence: str, warned: bool) -> None:
    assert bool(warnings_of([{"what": "data", "name": "x", "licence": licence}])) == warned


def test_an_options_licence_is_that_of_its_own_data_alone(workplace: Path) -> None:
    """FSDD's does not become that of recordings of one's own, whose folder is not named either."""
    own = compose(["recipe=kws_fsdd", "data.path=elsewhere/recordings"])
    row = licences(own)[0]
    assert (row["name"], row["source"], row["licence"]) == ("recordings", None, None)
    (row, *_) = licences(compose(["recipe=kws_fsdd"]))
    assert (row["name"], row["licence"]) == ("fsdd", "CC BY-SA 4.0")
    mine = ["data.path=elsewhere/recordings", "data.origin.source=me", "data.origin.licence=CC0"]
    assert licences(compose(["recipe=kws_fsdd", *mine]))[0]["licence"] == "CC0"


@pytest.mark.parametrize(
    ("chosen", "rows"),
    [
        (["model=keyword"], 1),
        (["model=timm", "model.name=resnet18"], 1),
        (["model=timm", "model.name=resnet18", "model.pretrained=true"], 2),
        (["model=keyword_pretrained"], 2),
        (["model=keyword_int8"], 2),
    ],
)
def test_a_model_with_trained_weights_brings_their_licence(workplace: Path, chosen: list[str], rows: int) -> None:
    assert len(licences(compose(["recipe=kws_fsdd", "method=[]", *chosen]))) == rows
