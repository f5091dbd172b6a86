"""Heads against the published counts, transformers' SegFormer, and the plain way to compute them."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.models.hrvit import hrvit_b1, hrvit_b2, hrvit_b3
from edgetrain.models.segmentation_heads import FCNHead, SegFormerHead, UPerHead

WIDTHS = {"b1": (32, 64, 128, 256), "b2": (48, 96, 240, 384), "b3": (64, 128, 256, 512)}
CHANNELS = {"b1": 256, "b2": 256, "b3": 768}
BACKBONE = {"b1": 7_758_008, "b2": 20_310_944, "b3": 25_507_960}
# vision.md, section 1.4: the heads that the published totals imply. The table's 55.4 M of b3 with UPerHead lies between
# the counts with and without the auxiliary head (55.8 and 55.2); its configuration names the backbone of b1.
SEGFORMER = {("b1", 150): 425_110, ("b2", 150): 498_838, ("b3", 150): 3_216_534}
SEGFORMER |= {("b1", 19): 391_443, ("b2", 19): 465_171, ("b3", 19): 3_115_795}
UPER = {"b1": 35_952_100, "b2": 49_696_972, "b3": 55_815_588}
UPER_ALONE_B3 = 55_186_702


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def maps_of(widths: tuple[int, ...], height: int = 13, width: int = 18) -> list[Tensor]:
    sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(len(widths))]
    return [torch.randn(2, channels, *size, dtype=torch.float64) for channels, size in zip(widths, sizes, strict=True)]


@pytest.mark.parametrize(("name", "classes"), SEGFORMER)
def test_segformer_heads_have_the_published_parameters(name: str, classes: int) -> None:
    assert count(SegFormerHead(WIDTHS[name], classes, CHANNELS[name])) == SEGFORMER[name, classes]


@pytest.mark.parametrize("name", UPER)
def test_uper_heads_have_the_published_parameters(name: str) -> None:
    head, auxiliary = UPerHead(WIDTHS[name], 150), FCNHead(WIDTHS[name][2], 150)
    assert BACKBONE[name] + count(head, auxiliary) == UPER[name]
    assert name != "b3" or BACKBONE[name] + count(head) == UPER_ALONE_B3


@pytest.mark.parametrize("build", [hrvit_b1, hrvit_b2, hrvit_b3])
def test_widths_are_the_backbones(build) -> None:
    name = build.__name__.removeprefix("hrvit_")
    backbone = build(num_classes=None)
    assert (backbone.channels, count(backbone)) == (WIDTHS[name], BACKBONE[name])


def test_segformer_head_is_transformers() -> None:
    from transformers import SegformerConfig
    from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

    widths = (8, 16, 20, 32)
    config = SegformerConfig(hidden_sizes=list(widths), decoder_hidden_size=24, num_labels=7)
    theirs, ours = SegformerDecodeHead(config).double().eval(), SegFormerHead(widths, 7, 24).double().eval()
    nn.init.normal_(theirs.batch_norm.running_mean)
    nn.init.uniform_(theirs.batch_norm.running_var, 0.5, 2)
    state = {}
    for level, linear in enumerate(
        theirs.linear_projections if hasattr(theirs, "linear_projections") else theirs.linear_c
    ):
        state[f"linear_c.{level}.weight"] = linear.proj.weight[:, :, None, None]
        state[f"linear_c.{level}.bias"] = linear.proj.bias
    state["linear_fuse.conv.weight"] = theirs.linear_fuse.weight
    state |= {f"linear_fuse.bn.{key}": value for key, value in theirs.batch_norm.state_dict().items()}
    state |= {f"conv_seg.{key}": value for key, value in theirs.classifier.state_dict().items()}
    ours.load_state_dict(state)
    maps = maps_of(widths)
    with torch.inference_mode():
        torch.testing.assert_close(ours(maps), theirs(tuple(maps)), rtol=0, atol=1e-10)


def test_segformer_head_is_one_layer_over_all_maps() -> None:
    """In training too: linear layers before the resizing give what they give after it."""
    head = SegFormerHead((4, 6, 8), 3, 5, dropout=0.0).double()
    maps = maps_of((4, 6, 8))
    parts = [linear(x) for linear, x in zip(head.linear_c, maps, strict=True)]
    same = [F.interpolate(part, size=(13, 18), mode="bilinear", align_corners=False) for part in parts]
    expected = head.conv_seg(head.linear_fuse(torch.cat(same[::-1], 1)))
    head.linear_fuse.bn.reset_running_stats()
    torch.testing.assert_close(head(maps), expected, rtol=0, atol=1e-10)


def test_uper_head_is_a_pyramid_by_hand() -> None:
    """With constant maps and layers that pass on a sum of channels, every place is the sum that can be worked out."""
    head = UPerHead((1, 1), 1, channels=1, dropout=0.0).double().eval()
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            centre = module.kernel_size[0] // 2
            module.weight.data[:, :, centre, centre] = 1
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    nn.init.constant_(head.conv_seg.bias, 0.5)
    fine, coarse = torch.full((1, 1, 12, 12), 2.0), torch.full((1, 1, 6, 6), 3.0)
    pooled = 3 + 4 * 3  # the map itself, and the means of four grids
    assert torch.allclose(head([fine.double(), coarse.double()]), torch.tensor(pooled + (2 + pooled) + 0.5).double())


def test_uper_head_is_transformers() -> None:
    from transformers import SwinConfig, UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetHead

    widths = (4, 6, 8, 10)
    config = UperNetConfig(backbone_config=SwinConfig(), hidden_size=5, num_labels=7)
    theirs, ours = UperNetHead(config, list(widths)).double().eval(), UPerHead(widths, 7, 5).double().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    state = {key.replace("batch_norm", "bn"): value for key, value in theirs.state_dict().items()}
    state = {re.sub(r"^(psp_modules\.\d)\.1", r"\1", key): value for key, value in state.items()}
    ours.load_state_dict({key.replace("classifier", "conv_seg"): value for key, value in state.items()})
    maps = maps_of(widths)
    with torch.inference_mode():
        torch.testing.assert_close(ours(maps), theirs(maps), rtol=0, atol=1e-10)


def test_pooling_grids_are_1_2_3_and_6() -> None:
    head = UPerHead((2, 3), 4, channels=5).double().eval()
    seen = []
    for module in head.psp_modules:
        module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape[2:])))
    head(maps_of((2, 3)))
    assert seen == [(1, 1), (2, 2), (3, 3), (6, 6)]
