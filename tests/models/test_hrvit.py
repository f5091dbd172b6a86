"""HRViT against the published counts, keys and values, and against a slow reference that pads and masks."""

import hashlib

import pytest
import torch
from hrvit_reference import Masked, golden, golden_images
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.hardware.exported_graph import exported
from edgetrain.hardware.tracing import trace
from edgetrain.models.hrvit import Fusion, HRViT, Stem, hrvit_b1, hrvit_b2, hrvit_b3, hrvit_nano
from edgetrain.models.hrvit_block import DiversityShortcut, HRViTBlock, MixCFN, StripeAttention
from edgetrain.ops.blocks import prepared_blocks

VARIANTS = {"b1": hrvit_b1, "b2": hrvit_b2, "b3": hrvit_b3}
STEM = 19_584
# Computed with the official code (vision.md, section 1.4).
COUNTS = {"b1": (19_685_152, 7_738_424), "b2": (32_486_408, 20_291_360), "b3": (37_870_304, 25_488_376)}
MODULES = {
    "b1": [0, 16956, 2592, 72332, 19360, 1247772, 31936, 1247772, 97376, 2809180, 155392, 2037756],
    "b2": [0, 22818, 5424, 123270, 48528, 3408822, 83520, 3408822, 243648, 6277126, 392256, 6277126],
    "b3": [0, 37584, 9280, 178344, 71488, 3092584, 121216, 3092584, 366784, 8960504, 597504, 8960504],
}
KEYS = {"b1": "da505bd823693c42", "b2": "365bf4c481a7152e", "b3": "00f3d382f05f27cc"}
ENTRIES = {"b1": (1559, 1433), "b2": (1667, 1541), "b3": (1721, 1595)}
MACS_224 = {"b1": 1_745_920_960, "b2": 4_220_504_064, "b3": 4_806_101_888}
HEAD_MACS_224 = {"b1": 1_029_652_480, "b2": 1_067_786_240, "b3": 1_093_877_760}
MACS_512 = 10_585_358_336  # of b1


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_keys_and_their_order_are_the_published_ones(name: str) -> None:
    model = VARIANTS[name]()
    assert (count(model), count(model.features), count(model.stem)) == (*COUNTS[name], STEM)
    assert [count(module) for module in model.features] == MODULES[name]
    state = model.state_dict()
    lines = [f"{key} {list(value.shape)}" for key, value in state.items()]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == KEYS[name]
    assert (len(state), len(VARIANTS[name](num_classes=None).state_dict())) == ENTRIES[name]


@pytest.mark.parametrize("name", ["b1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("b2", "b3"))])
def test_macs_at_224_are_the_published_ones(name: str) -> None:
    layers = trace(VARIANTS[name](), (torch.zeros(1, 3, 224, 224),)).layers
    head = sum(layer.macs for layer in layers if layer.name.startswith("head."))
    assert (sum(layer.macs for layer in layers) - head, head) == (MACS_224[name], HEAD_MACS_224[name])


@pytest.mark.slow
def test_macs_at_512_are_the_published_ones_less_those_of_padding() -> None:
    """There 32 rows are padded to 35 and 16 to 21; here the rows beyond the last whole stripe are a narrower stripe."""
    found = trace(hrvit_b1(num_classes=None), (torch.zeros(1, 3, 512, 512),)).macs
    padding = 0
    for side, channels, blocks in ((32, 128, 20), (16, 256, 4)):
        whole, narrow = 7 * side, side % 7 * side  # tokens
        padding += blocks * 2 * channels * (whole**2 - narrow**2)  # two products, two halves of the channels
    assert found + padding == MACS_512


GOLDEN = {  # mean, standard deviation and first values of every map; mean, deviation and first values of the logits
    ("b1", 224, 224): (
        [
            (-0.0087440179, 0.9863562648),
            (-0.0239895520, 0.9821570978),
            (-0.0138558053, 0.9941589895),
            (-0.0030420518, 1.0081541125),
        ],
        [
            [0.71147031, 0.58539362, 0.60905227],
            [1.293902, 1.2501076, 1.40892457],
            [-0.21162224, -0.31022889, -0.21348135],
            [-0.2083946, -0.19579104, -0.14477912],
        ],
        ((-0.0006190236, 1.6238774849), [-2.34114504, 1.85370681, -0.79130512], 568),
    ),
    ("b1", 192, 256): (
        [
            (-0.0087535350, 0.9863785778),
            (-0.0240048854, 0.9822653746),
            (-0.0137882113, 0.9943269540),
            (-0.0029881535, 1.0079700983),
        ],
        [[0.70739271, 0.58168451, 0.60512826]],
        (None, [-2.33992865], None),
    ),
    ("b2", 224, 224): (
        [
            (-0.0134206824, 0.9894138230),
            (-0.0162509814, 0.9719086047),
            (-0.0066359777, 1.0026039197),
            (-0.0041644222, 1.0093855635),
        ],
        [[0.2365533, 0.15127427, 0.21401628]],
        ((-0.0006099888, 1.6290258210), [], None),
    ),
}


@pytest.mark.parametrize(("name", "height", "width"), GOLDEN)
def test_values_are_those_of_the_published_code(name: str, height: int, width: int) -> None:
    model = golden(VARIANTS[name]())
    moments, firsts, (logit_moments, first_logits, largest) = GOLDEN[name, height, width]
    with torch.inference_mode():
        maps = model.forward_features(golden_images(height, width))
        logits = model.head(maps)[0]
    for x, channels, stride in zip(maps, model.channels, HRViT.strides, strict=True):
        assert x.shape == (1, channels, height // stride, width // stride)
    found = torch.tensor([(x.mean(), x.std()) for x in maps])
    torch.testing.assert_close(found.double(), torch.tensor(moments).double(), rtol=0, atol=1e-6)
    for x, first in zip(maps, firsts, strict=False):
        torch.testing.assert_close(x[0, 0, 0, : len(first)], torch.tensor(first).double(), rtol=0, atol=1e-6)
    if logit_moments:
        torch.testing.assert_close((logits.mean().item(), logits.std().item()), logit_moments, rtol=0, atol=1e-6)
    assert largest in (None, logits.argmax().item())
    torch.testing.assert_close(logits[: len(first_logits)], torch.tensor(first_logits).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(97, 97), (97, 65), (33, 128), (64, 96), (1, 1), (5, 70)])
def test_any_side_gives_the_values_of_a_padded_and_masked_reference(size: tuple[int, int]) -> None:
    model = randomised(hrvit_nano(num_classes=None))
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        found, expected = model(images), Masked(model, size, 128)(images)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_b1_at_a_side_of_97_gives_the_values_of_a_padded_and_masked_reference() -> None:
    model = golden(hrvit_b1(num_classes=None))
    images = golden_images(97, 97)
    with torch.inference_mode():
        found, expected = model(images), Masked(model, (97, 97), 128)(images)
    assert [tuple(x.shape[2:]) for x in found] == [(25, 25), (13, 13), (7, 7), (4, 4)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def randomised(model: nn.Module) -> nn.Module:
    """Float64, in evaluation, with statistics and a norm after attention that change what passes."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.double().eval()


@pytest.mark.parametrize(("height", "width", "window"), [(14, 14, 7), (5, 6, 4), (32, 32, 7), (3, 9, 7)])
def test_attention_over_columns_is_attention_over_rows_of_the_transposed_map(
    height: int, width: int, window: int
) -> None:
    attention = randomised(StripeAttention(16, 4, window))
    with torch.no_grad():  # both halves of the channels do the same
        for parameter in (attention.to_qkv.weight, attention.to_qkv.bias):
            parts = list(parameter.chunk(4))
            parts[1].copy_(parts[0])
            parts[3].copy_(parts[2])
        x = torch.randn(2, height, width, 16, dtype=torch.float64)
        q, v = attention.to_qkv(x).chunk(2, -1)
        rows = attention.stripes(*(each[..., :8].transpose(1, 2) for each in (q, v, v))).transpose(1, 2)
        qt, vt = attention.to_qkv(x.transpose(1, 2)).chunk(2, -1)
        columns = attention.stripes(*(each[..., 8:] for each in (qt, vt, vt))).transpose(1, 2)
    torch.testing.assert_close(rows, columns, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [7, 9, 15])
def test_padding_with_a_mask_gives_what_a_narrower_last_stripe_gives(rows: int) -> None:
    """The first is what a graph with a free size holds."""
    attention = StripeAttention(16, 4, 4).double()
    q, v = torch.randn(2, 2, rows, 5, 8, dtype=torch.float64)
    lacking = -rows % 4
    padded = [nn.functional.pad(each, (0, 0, 0, 0, 0, lacking)) for each in (q, v, v)]
    masked = attention.attend(padded, 4, real=rows)[:, :rows]
    torch.testing.assert_close(attention.stripes(q, v, v), masked, rtol=0, atol=1e-12)


FREE_SIZES = [(40, 56), (33, 40), (97, 65), (256, 160)]


def graph_of_every_size(model: nn.Module) -> nn.Module:
    sides = {2: torch.export.Dim("height", min=33, max=256), 3: torch.export.Dim("width", min=33, max=256)}
    return exported(model, (torch.zeros(1, 3, 40, 56),), "test", (sides,)).module()


@pytest.mark.slow
def test_a_graph_with_free_sides_gives_what_the_model_gives() -> None:
    model = randomised(hrvit_nano(num_classes=None)).float()
    graph = graph_of_every_size(model)
    for size in FREE_SIZES:
        images = torch.randn(1, 3, *size)
        with torch.inference_mode():
            for found, expected in zip(graph(images), model(images), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_stripes_and_fusions_with_free_sides_give_what_they_give_with_fixed_ones() -> None:
    """Windows of one stripe and of several, maps that are cut after they were upsampled."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.down, self.fusion = Stem(4, 4), nn.Conv2d(4, 8, 3, 2, 1), Fusion([4, 8], [4, 8])
            self.attention = nn.ModuleList([StripeAttention(8, 4, window) for window in (1, 2, 7)])

        def forward(self, images: Tensor) -> list[Tensor]:
            fine = self.stem(images)
            fine, coarse = self.fusion([fine, self.down(fine)])
            return [fine, *(attention(coarse.permute(0, 2, 3, 1)) for attention in self.attention)]

    model = randomised(Two()).float()
    graph = graph_of_every_size(model)
    for size in FREE_SIZES:
        images = torch.randn(1, 3, *size)
        with torch.inference_mode():
            for found, expected in zip(graph(images), model(images), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [32, 48, 64, 96, 128, 240, 256, 384, 512])
def test_the_shortcut_is_one_function_in_training_and_evaluation(dim: int) -> None:
    shortcut = DiversityShortcut(dim).double()
    factors = {32: 8, 48: 8, 64: 8, 96: 8, 128: 16, 240: 16, 256: 16, 384: 16, 512: 32}
    assert shortcut.factors == (dim // factors[dim], factors[dim])
    x = torch.randn(2, 3, 5, dim, dtype=torch.float64)
    trained = shortcut(x)
    torch.testing.assert_close(shortcut.eval()(x), trained, rtol=0, atol=1e-12)
    token = x[0, 1, 2].view(shortcut.factors)
    y = nn.functional.gelu(token @ shortcut.proj_right.weight.T + shortcut.proj_right.bias)
    y = shortcut.proj_left.weight @ y + shortcut.proj_left.bias[:, None]
    torch.testing.assert_close(trained[0, 1, 2], y.flatten(), rtol=0, atol=1e-12)


def test_parameters_of_a_block_follow_the_formula() -> None:
    """vision.md, section 1.4."""
    for dim, ratio in ((32, 4), (48, 2), (240, 3), (256, 2)):
        k, p = DiversityShortcut(dim).factors
        hidden = ratio * dim
        expected = 4 * dim + 2 * dim**2 + 2 * dim + dim**2 + dim + 2 * dim + 10 * dim + p**2 + p + k**2 + k
        expected += 2 * hidden * dim + hidden + dim + hidden // 2 * 34 + hidden
        assert count(HRViTBlock(dim, 24 if dim in (48, 240) else 32, 7, ratio)) == expected


def test_attention_adds_nothing_at_first() -> None:
    attention = StripeAttention(32, 16, 2)
    assert not attention(torch.randn(1, 4, 4, 32)).any()


@pytest.mark.parametrize(
    ("option", "gone"),
    [("parallel_conv", "parallel_conv"), ("shortcut", "des."), ("mixed", "ffn.conv"), ("shared_kv", "")],
)
def test_ablations_leave_out_what_they_name(option: str, gone: str) -> None:
    whole, without = (hrvit_nano(num_classes=None, **settings) for settings in ({}, {option: False}))
    images = torch.randn(2, 3, 40, 56)
    assert [x.shape for x in without(images)] == [x.shape for x in whole(images)]
    if gone:
        lost = {key for key in whole.state_dict() if gone in key}
        assert lost and set(whole.state_dict()) - set(without.state_dict()) == lost
    else:  # a third row of the first matrix
        shapes = {key: value.shape for key, value in without.state_dict().items() if "to_qkv" in key}
        assert all(shape[0] == 3 * whole.state_dict()[key].shape[0] // 2 for key, shape in shapes.items())


def test_separate_keys_are_the_middle_third() -> None:
    shared, separate = StripeAttention(16, 8, 2).double(), StripeAttention(16, 8, 2, shared_kv=False).double()
    state = shared.state_dict()
    for name in ("to_qkv.weight", "to_qkv.bias"):
        state[name] = torch.cat((state[name], state[name].chunk(2)[1]))  # keys that are the values
    separate.load_state_dict(state)
    for attention in (shared, separate):
        nn.init.ones_(attention.attn_bn.weight)
    x = torch.randn(2, 4, 6, 16, dtype=torch.float64)
    torch.testing.assert_close(separate(x), shared(x), rtol=0, atol=1e-12)


def test_drop_path_rises_over_the_blocks_and_branches_of_a_module_share_it() -> None:
    model = hrvit_b1(drop_path=0.1)
    stages = model.features[1::2]
    starts = [stage.branches[0][0].drop_path for stage in stages]
    assert starts == pytest.approx([0, 0.0048, 0.0095, 0.0381, 0.0667, 0.0952], abs=5e-5)
    assert stages[-1].branches[2][1].drop_path == pytest.approx(0.1)
    assert all(branch[0].drop_path == starts[i] for i, stage in enumerate(stages) for branch in stage.branches)


def test_drop_path_keeps_the_mean_and_leaves_whole_samples_out() -> None:
    torch.manual_seed(0)
    block = HRViTBlock(16, 8, 1, 2, drop_path=0.25)
    kept = block.dropped(torch.ones(4000, 2, 2, 16))
    assert set(kept.flatten(1).std(1).tolist()) == {0.0}
    assert kept.mean().item() == pytest.approx(1, abs=0.03)
    assert (kept[:, 0, 0, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(block.eval().dropped(torch.ones(2, 1, 1, 1)), torch.ones(2, 1, 1, 1))


def test_mixed_scales_are_a_3x3_and_a_5x5_of_the_halves() -> None:
    network = MixCFN(4, 8).double()
    x = torch.randn(1, 6, 7, 4, dtype=torch.float64)
    hidden = network.fc1(x).permute(0, 3, 1, 2)
    mixed = torch.cat((network.conv.conv_3(hidden[:, :4]), network.conv.conv_5(hidden[:, 4:])), 1)
    expected = network.fc2(nn.functional.gelu(mixed).permute(0, 2, 3, 1))
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)


def test_maps_stay_channels_last() -> None:
    for x in hrvit_nano(num_classes=None)(torch.randn(2, 3, 64, 64)):
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_recomputed_blocks_give_the_same_gradients_and_statistics() -> None:
    """In one process, at any depth; statistics of batch norms are counted once."""
    torch.manual_seed(0)
    plain, recomputed = hrvit_nano(num_classes=None), hrvit_nano(num_classes=None)
    recomputed.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 48, 64)
    for model, again in ((plain, False), (recomputed, True)):
        with prepared_blocks(model, compiled=False, recomputed=again):
            sum(x.square().mean() for x in model(images)).backward()
    for (name, ours), theirs in zip(recomputed.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
    for (name, ours), theirs in zip(recomputed.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_a_fresh_head_has_as_many_classes_as_asked() -> None:
    model = hrvit_nano(num_classes=5)
    before = model.state_dict()
    model.reset_head(7)
    assert model(torch.randn(1, 3, 33, 33)).shape == (1, 7) and model.num_classes == 7
    kept = {key for key in before if not key.startswith("head.classifier")}
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in kept)
    model.reset_head(None)
    assert len(model(torch.randn(1, 3, 33, 33))) == 4
    model.reset_head(3)
    assert model(torch.randn(1, 3, 33, 33)).shape == (1, 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"blocks": ((1,), (1, 1, 1), (1, 1, 1, 1))}, "one branch at a time"),
        ({"blocks": ((1,), (1, 1), (1, 1, 1))}, "up to four"),
        ({"blocks": ((1,), (1, 1), (1, 0, 1), (1, 1, 1, 1))}, "every branch a block"),
        ({"windows": (1, 2, 7)}, "windows=\\[1, 2, 7\\] has 3 values for 4 branches"),
        ({"channels": (16, 32, 64, 90)}, "90 channels cannot be cut"),
        ({"channels": (16, 32, 64, 96), "head_width": 20}, "heads with"),
        ({"ratios": (2, 2, 2, 0.27)}, "25 hidden channels have no two halves"),
    ],
)
def test_settings_that_do_not_fit_say_so(settings: dict, said: str) -> None:
    made = {"channels": (16, 32, 64, 96), "blocks": ((1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)), "head_width": 16}
    with pytest.raises(UserError, match=said):
        HRViT(**made | settings)
