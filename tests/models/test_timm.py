"""timm's models by name: published sizes, and sentences for what it does not have."""

import pytest
import torch

from edgetrain.errors import UserError
from edgetrain.models.timm import timm_model


def test_a_timm_model_has_its_published_size_and_takes_settings():
    small = timm_model("mobilenetv3_small_100", num_classes=10)
    assert small.num_classes == 10
    weights = sum(parameter.numel() for parameter in timm_model("mobilenetv3_small_100").parameters())
    assert weights == 2_542_856  # timm's results table: 2.54 M


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("mobilenetv3_small_050", {}, (3, 224, 224)),  # timm's results table: images of 224
        ("efficientnet_lite1", {}, (3, 240, 240)),
        ("mobilenetv3_small_050", {"in_chans": 1}, (1, 224, 224)),
        ("mobilenetv3_small_050", {"input_shape": [3, 96, 64]}, (3, 96, 64)),
        ("vit_tiny_patch16_224", {"img_size": 64}, (3, 64, 64)),
    ],
)
def test_a_timm_model_says_the_shape_of_its_images_and_takes_it(name: str, settings: dict, shape: tuple[int, ...]):
    model = timm_model(name, num_classes=2, **settings).eval()
    assert model.input_shape == shape
    with torch.inference_mode():
        assert model(torch.zeros(1, *shape)).shape == (1, 2)


def test_a_wrong_name_or_setting_is_a_sentence():
    with pytest.raises(UserError, match=r"timm has no such model \(did you mean 'resnet18'\?\)"):
        timm_model("resnet_18")
    with pytest.raises(UserError, match=r"model.input_shape=\[49, 10\] is not channels, height and width"):
        timm_model("resnet18", input_shape=[49, 10])
    with pytest.raises(UserError, match="model.name=resnet18 cannot be built: .*depths"):
        timm_model("resnet18", depths=3)
