"""Every network that the recipe image_classifier_cifar10 names is built, fits the data, and takes a step."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from image_sets import write_cifar10

from edgetrain.build import build_trained
from edgetrain.compose import compose

RECIPE = yaml.safe_load((ROOT / "recipes" / "image_classifier_cifar10.yaml").read_text())
# ResNet-9's by hand; published ones of timm's with 1,000 classes, less their heads and with ones of ten; ViT's by hand.
PARAMETERS = {
    "small": 232_812,
    "full": 6_573_120,
    "mobilenetv3": 1_528_106,
    "efficientnet": 4_020_358,
    "vit": 5_362_762,
}


@pytest.mark.parametrize("variant", RECIPE["variants"])
def test_a_variant_takes_a_step(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETRAIN_DATA", str(tmp_path))
    write_cifar10(tmp_path / "cifar10", train=30, test=2)
    config = compose(["recipe=image_classifier_cifar10", f"variant={variant}", "data.batch_size=4", "method=[]"])
    torch.manual_seed(0)
    trained = build_trained(config)
    assert sum(parameter.numel() for parameter in trained.model.parameters()) == PARAMETERS[variant]
    optimizer = trained.task.configure_optimizers()["optimizer"]
    before = [parameter.detach().clone() for parameter in trained.model.parameters()]
    trained.task.training_step(next(iter(trained.data.train_dataloader())), 0).backward()
    optimizer.step()
    moved = [not torch.equal(one, other) for one, other in zip(before, trained.model.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    judged = trained.task.evaluate(trained.model.eval(), trained.data.test_dataloader())
    assert judged["loss"] < 100
