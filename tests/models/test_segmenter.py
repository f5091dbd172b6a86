"""Any backbone with any head: shapes, counts, names, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgetrain.build import initialise
from edgetrain.errors import UserError
from edgetrain.models.hrvit import hrvit_nano
from edgetrain.models.segmenter import segmenter
from edgetrain.ops.blocks import blocks

SMALL = {"hrvit_nano": {}, "mit_nano": {}, "timm/mobilenetv3_small_050": {}, "timm/resnet10t": {}}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("head", ["segformer", "uper"])
def test_any_backbone_with_any_head_gives_a_score_of_every_pixel(backbone: str, head: str) -> None:
    model = segmenter(backbone, 5, head, head_channels=8, input_shape=(3, 64, 96), options=SMALL[backbone])
    images = torch.randn(2, 3, 64, 96)
    first, *auxiliary = model.forward_all(images)
    stride = 64 // first.shape[2]
    assert stride <= 4 and first.shape == (2, 5, 64 // stride, 96 // stride)
    assert [x.shape[:2] for x in auxiliary] == [(2, 5)] * (head == "uper")
    found = model.eval()(images)
    expected = nn.functional.interpolate(model.forward_all(images)[0], (64, 96), mode="bilinear")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert model.input_shape == (3, 64, 96) and model.num_classes == 5


@pytest.mark.parametrize("size", [(97, 65), (33, 40), (1, 1)])
def test_hrvit_takes_any_side(size: tuple[int, int]) -> None:
    assert segmenter("hrvit_nano", 5, head_channels=8).eval()(torch.randn(1, 3, *size)).shape == (1, 5, *size)


def test_segformer_b0_has_the_published_parameters() -> None:
    """3,752,694 with 150 classes: transformers' nvidia/segformer-b0-finetuned-ade-512-512 (vision.md, 1.5)."""
    assert count(segmenter("mit_b0", 150)) == 3_752_694


def test_the_small_ones_that_are_compared_differ_by_less_than_two_percent() -> None:
    ours, theirs = (count(segmenter(name, 11, head_channels=64)) for name in ("hrvit_nano", "mit_nano"))
    assert 250_000 < ours < 350_000
    assert abs(theirs / ours - 1) < 0.02


def test_the_auxiliary_head_sees_the_third_map_and_can_be_left_out() -> None:
    model = segmenter("hrvit_nano", 5, "uper", head_channels=8)
    assert model.auxiliary_head.convs[0].conv.in_channels == model.backbone.channels[2]
    assert model.auxiliary_weight == 0.4
    assert segmenter("hrvit_nano", 5, "uper", head_channels=8, auxiliary=False).auxiliary_head is None
    assert segmenter("hrvit_nano", 5, auxiliary=True).auxiliary_head is not None


def test_blocks_of_the_backbone_are_those_of_the_model() -> None:
    model = segmenter("hrvit_nano", 5)
    assert len(blocks(model)) == len(blocks(model.backbone)) == 11
    assert not blocks(segmenter("timm/resnet10t", 5))


def test_options_reach_the_backbone() -> None:
    assert (
        segmenter("hrvit_nano", 5, options={"parallel_conv": False}).backbone.repeated_blocks()[0].attn.parallel_conv
        is None
    )
    assert segmenter("mit_b0", 5, options={"depths": [1, 1, 1, 1]}).backbone.encoder.config.depths == [1, 1, 1, 1]
    assert segmenter("timm/resnet10t", 5, options={"output_stride": 16}).backbone.features is not None


def weights_file(model: nn.Module, path: Path) -> str:
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return str(path)


def test_a_segmenter_starts_from_a_classifier(tmp_path: Path) -> None:
    """Its backbone does; the classifier's head is left out."""
    trained = hrvit_nano(num_classes=7)
    model = segmenter("hrvit_nano", 5)
    initialise(model, weights_file(trained, tmp_path / "trained.safetensors"))
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, trained.state_dict()[key]), key


def test_a_segmenter_starts_from_a_segmenter(tmp_path: Path) -> None:
    trained, model = (segmenter("hrvit_nano", 5) for _ in range(2))
    initialise(model, weights_file(trained, tmp_path / "trained.safetensors"))
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[key]), key


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "hrvit_nanno"}, "no such backbone.*hrvit_nano"),
        ({"backbone": "timm/resnet18x"}, "timm has no such model"),
        ({"backbone": "timm/resnet10t", "options": {"wideness": 2}}, "cannot be built"),
        ({"options": {"parallel": False}}, "model.options.parallel: hrvit_nano has no such option.*parallel_conv"),
        ({"backbone": "mit_b0", "options": {"depth": [1]}}, "model.options.depth: mit_b0 has no such option.*depths"),
        ({"num_classes": 0}, "model.num_classes=0"),
        ({"input_shape": (1, 32, 32)}, "model.input_shape"),
        ({"input_shape": (3, 32)}, "model.input_shape"),
        ({"head_channels": 0}, "model.head_channels=0"),
    ],
)
def test_what_cannot_be_built_says_why(settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        segmenter(**{"backbone": "hrvit_nano", "num_classes": 5} | settings)
