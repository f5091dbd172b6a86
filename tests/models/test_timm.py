"""timm's models by name: published sizes, and sentences for what it does not have."""

import pytest

from edgetrain.errors import UserError
from edgetrain.models.timm import timm_model


def test_a_timm_model_has_its_published_size_and_takes_settings():
    small = timm_model("mobilenetv3_small_100", num_classes=10)
    assert small.num_classes == 10
    weights = sum(parameter.numel() for parameter in timm_model("mobilenetv3_small_100").parameters())
    assert weights == 2_542_856  # timm's results table: 2.54 M


def test_a_wrong_name_or_setting_is_a_sentence():
    with pytest.raises(UserError, match=r"timm has no such model \(did you mean 'resnet18'\?\)"):
        timm_model("resnet_18")
    with pytest.raises(UserError, match="model.name=resnet18 cannot be built: .*depths"):
        timm_model("resnet18", depths=3)
