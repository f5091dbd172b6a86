"""A model and data that do not fit each other are a sentence before anything is trained."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from audio_sets import write_fsdd
from conftest import ROOT
from torch import nn

from edgetrain.build import build_trained, check_classes, check_shape
from edgetrain.compose import compose
from edgetrain.errors import UserError
from edgetrain.models.keyword import FAMILIES, keyword

TWELVE = ["silence", "unknown", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fsdd(tmp_path_factory.mktemp("digits"))


def refusal(digits: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        build_trained(compose(["recipe=kws_fsdd", f"data.path={digits}", "method=[]", "export=[]", *overrides]))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_model_with_other_classes_than_the_data_is_a_sentence(digits: Path) -> None:
    said = refusal(digits, "model.classes=12")
    assert said.startswith("model.classes is 12, but data.num_classes=10; set model.classes=10")
    said = refusal(digits, "model=timm", "model.name=mobilenetv3_small_050")  # timm's default: ImageNet's classes
    assert said.startswith("model.num_classes is 1000, but data.num_classes=10; set model.num_classes=10")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_keyword_network_says_how_many_classes_it_has(family: str) -> None:
    network = keyword(family, classes=7).eval()
    assert network.num_classes == network(torch.zeros(1, 49, 10)).shape[1] == 7


@pytest.mark.parametrize("labels", [TWELVE[:10], [*TWELVE[:2], "no", "yes", *TWELVE[4:]], [*TWELVE[:11], "went"]])
def test_labels_that_a_network_was_not_trained_on_are_a_sentence(labels: list[str]) -> None:
    network = nn.Identity()
    network.labels = TWELVE
    check_classes(network, SimpleNamespace(labels=list(TWELVE)), {})
    with pytest.raises(
        UserError, match="the model's labels are silence, unknown, yes, .*, in that order, but data.lab"
    ):
        check_classes(network, SimpleNamespace(labels=labels), {})


@pytest.fixture
def released() -> Path:
    data = Path(os.environ.get("EDGETRAIN_DATA", ROOT.parent / "shared" / "data"))
    if not (data / "kws_pretrained").is_dir():
        pytest.skip("set EDGETRAIN_DATA to a folder that holds kws_pretrained")
    return data / "kws_pretrained"


@pytest.mark.parametrize(("model", "name"), [("keyword_pretrained", "ds_cnn_s"), ("keyword_int8", "ds_cnn_s_int8")])
def test_a_released_network_refuses_data_with_other_labels(digits: Path, released: Path, model: str, name: str) -> None:
    said = refusal(digits, f"model={model}", f"model.name={name}", f"model.path={released}")
    assert said.startswith(f"the model's labels are {', '.join(TWELVE)}, in that order, but data.labels are zero, one")


def test_items_of_another_shape_than_the_model_takes_are_a_sentence(digits: Path) -> None:
    said = refusal(digits, "model.front_end=true")
    assert said.startswith(
        "the model takes inputs of [16000], but the data's are [49, 10]; data.features=samples is for"
    )
    said = refusal(digits, "data.features=samples")
    assert said.startswith(
        "the model takes inputs of [49, 10], but the data's are [16000]; data.features=samples is for"
    )
    said = refusal(digits, "model.coefficients=8")
    assert "inputs of [49, 8], but the data's are [49, 10]; make data.frames, data.stride_ms and data.coeff" in said
    said = refusal(digits, "model=timm", "model.name=mobilenetv3_small_050", "model.num_classes=10")
    assert said.startswith("the model takes inputs of [3, 224, 224], but the data's are [49, 10]; choose a model")


def test_images_of_another_size_are_a_sentence() -> None:
    network = nn.Identity()
    network.input_shape = (3, 224, 224)
    data = SimpleNamespace(samples=lambda split: [(torch.zeros(3, 96, 96), 0)])
    with pytest.raises(UserError, match=r"inputs of \[3, 224, 224\].* are \[3, 96, 96\]; set model.input_shape to the"):
        check_shape(network, data)


def test_models_and_data_that_say_nothing_of_shapes_are_not_judged() -> None:
    check_shape(nn.Identity(), SimpleNamespace(samples=lambda split: [(torch.zeros(3), 0)]))
    check_shape(keyword("dnn"), SimpleNamespace())
    check_classes(keyword("dnn"), SimpleNamespace(), {})


def test_what_fits_is_built(digits: Path) -> None:
    settings = ["recipe=kws_fsdd", f"data.path={digits}", "method=[]", "data.features=samples", "model.front_end=true"]
    trained = build_trained(compose(settings))
    assert trained.task.example_inputs()[0].shape == (1, 16000)
