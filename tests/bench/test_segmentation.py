"""The segmentation benches in small: what is compared computes the same, and is refused where it does not."""

from pathlib import Path

import pytest
import torch
from toy_classifier import run_folder

from edgetrain.bench import segmentation_rates, segmenters
from edgetrain.bench.segmentation_rates import rates
from edgetrain.bench.segmenters import (
    OFFICIAL,
    OURS,
    PLAIN_LOSS,
    SEGFORMER,
    TRAINING,
    Setting,
    builders,
    check_equal,
)
from edgetrain.errors import UserError

STANDS_FOR_OFFICIAL = """
from torch import nn
from edgetrain.models.hrvit import HRViT, hrvit_nano

class Model(HRViT):
    def load_state_dict(self, state):
        return nn.Module.load_state_dict(self, {key: FACTOR * value for key, value in state.items()})

class Features(nn.Sequential):
    def forward(self, maps):
        return super().forward(list(maps))

def HRViT_b1_224(drop_path_rate):
    model = hrvit_nano(drop_path_rate, num_classes=None)
    model.__class__, model.features.__class__ = Model, Features
    return model
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenters, "BACKBONE", "hrvit_nano")


def checkout(folder: Path, factor: int) -> str:
    (folder / "models").mkdir()
    (folder / "models" / "hrvit.py").write_text(STANDS_FOR_OFFICIAL.replace("FACTOR", str(factor)))
    return str(folder)


def setting(official: str | None = None, **changed: object) -> Setting:
    return Setting(
        **{"size": 32, "batch": 2, "precision": "32-true", "compiled": False, "official": official} | changed
    )


def test_what_computes_the_same_is_compared_and_what_does_not_is_refused(tmp_path: Path) -> None:
    assert check_equal(setting()) is None
    same, other = tmp_path / "same", tmp_path / "other"
    same.mkdir(), other.mkdir()
    difference = check_equal(setting(checkout(same, 1)))
    assert 0 < difference < 1e-12  # two forms of SegFormer's head
    with pytest.raises(UserError, match="differ from the official code's by .* in float64"):
        check_equal(setting(checkout(other, 2)))


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_rates_of_all_and_memory_stand_in_one_table(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(setting: Setting, kind: str) -> list[dict[str, object]]:
        return [{"contender": name, "peak above the model, MiB": 7.0} for name in builders(kind, setting)]

    monkeypatch.setattr(segmentation_rates, "memory_rows", memory)  # in processes of their own
    folder = run_folder(tmp_path / "run")
    found = rates(folder, kind, setting(checkout(tmp_path, 1)), repeats=2, minutes=0.1)
    names = [OURS, *([PLAIN_LOSS] if kind == TRAINING else []), OFFICIAL, SEGFORMER]
    assert all(found[f"images_per_s/{name}"] > 0 for name in names)
    assert [row["contender"] for row in folder.read_table(f"{kind}_segmentation")] == names
    without = rates(run_folder(tmp_path / "without"), kind, setting(), repeats=2, minutes=0.1)
    assert f"images_per_s/{OFFICIAL}" not in without


def test_a_training_step_has_a_gradient_of_every_parameter() -> None:
    model = builders(TRAINING, setting())[OURS]()
    seen = set()
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: seen.add(name))
    assert segmenters.training_step(model, setting())() == 2
    assert seen == {name for name, _ in model.named_parameters()}


def test_memory_is_that_of_a_process_of_its_own() -> None:
    peak = segmenters.peak("inference", OURS, size=32, batch=1, precision="32-true", compiled=False, official=None)
    assert peak is None or peak >= 0


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"precision": "16"}, "precision=16: choose 32-true or bf16-mixed"),
        ({"size": 0}, "size=0 batch=2: both have to be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_sentences(changed: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        setting(**changed)


def test_a_checkout_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no models/hrvit.py in it; give a checkout of"):
        check_equal(setting(str(tmp_path)))
    checkout(tmp_path, 1)
    (tmp_path / "models" / "hrvit.py").write_text("import a_package_that_is_not_there")
    with pytest.raises(UserError, match="cannot be imported: No module named 'a_package_that_is_not_there'"):
        check_equal(setting(str(tmp_path)))


def test_numbers_are_drawn_once_for_all() -> None:
    for one, other in zip(setting().batch_of_noise(), setting().batch_of_noise(), strict=True):
        assert torch.equal(one, other)
