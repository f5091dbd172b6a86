"""The firmware's integer networks: labels of clips, and weights that are the float network's, quantised as they say."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from edgetrain.errors import UserError
from edgetrain.models.keyword_int8 import keyword_int8
from edgetrain.models.keyword_pretrained import LABELS, keyword_pretrained
from edgetrain.ops import q7
from edgetrain.ops.mfcc import MFCC


def heard(network: torch.nn.Module, clips: dict[str, Tensor], stride_ms: int) -> dict[str, str]:
    features = MFCC(stride_ms=stride_ms)
    return {name: LABELS[network(features(samples))[0].argmax()] for name, samples in clips.items()}


def test_the_firmwares_ds_cnn_hears_yes_no_and_silence_in_integers(clips: dict[str, Tensor]) -> None:
    network = keyword_int8("ds_cnn_s_int8")
    said = heard(network, clips, 20)
    assert [said[clip] for clip in ("yes", "no", "silence")] == ["yes", "no", "silence"]
    logits = network(MFCC()(clips["yes"]))
    assert logits.dtype == torch.int8 and logits.max() == 127
    assert sum(value.numel() for value in network.state_dict().values()) == 22_604  # the paper's DS-CNN S


def test_the_firmwares_dnn_hears_yes_and_silence_in_integers(clips: dict[str, Tensor]) -> None:
    """It takes this clip's no for go, with no as its second guess, as its weights in floating point do.

    It hears no 25 to 100 ms earlier.
    """
    network = keyword_int8("dnn_s_int8")
    said = heard(network, clips, 40)
    assert [said[clip] for clip in ("yes", "silence")] == ["yes", "silence"]
    earlier = {f"{shift} ms": clips["no"].roll(-16 * shift, 1) for shift in (25, 50, 100)}
    assert set(heard(network, earlier, 40).values()) == {"no"}
    features = MFCC(stride_ms=40)(clips["no"])
    x = features.flatten(1)
    for index, (layer, bits) in enumerate(zip(network.layers, (7, 8, 8, 7), strict=True)):
        x = x @ layer.weight.float().T / 2**bits + layer.bias.float() / 2**8
        x = x.relu() if index < 3 else x
    integers = network(features)[0]
    assert integers.topk(2).indices.tolist() == x[0].topk(2).indices.tolist()
    assert (integers / 4 - x[0]).abs().max() < 1.5  # its output has 2 fractional bits


def test_its_ds_cnn_follows_the_float_network(clips: dict[str, Tensor]) -> None:
    """Logits have 4 fractional bits. Noise is the hard case: a row of zeros on the wrong side brings it below 0.75."""
    integers, floats = keyword_int8("ds_cnn_s_int8"), keyword_pretrained("ds_cnn_s").eval()
    for name, samples in clips.items():
        features = MFCC()(samples)
        wanted = (floats(features)[0].detach() * 2**4).clamp(-128, 127)
        pair = torch.stack([integers(features)[0].float(), wanted])
        assert torch.corrcoef(pair)[0, 1] > (0.8 if name == "noise" else 0.95)


def test_the_last_layers_weights_are_the_float_networks_quantised_as_the_guide_says(released: Path) -> None:
    floats = load_file(released / "ds_cnn_s.safetensors")
    firmware = load_file(released / "ds_cnn_s_int8.safetensors")
    for name, stored in (("weights", "final_fc_wt"), ("biases", "final_fc_bias")):
        values = floats[f"MobileNet/fc1/{name}"]
        values = values.movedim(-1, 0).flatten()
        assert torch.equal(q7.quantize(values, q7.fraction_bits(float(values.abs().max()))), firmware[stored]), name


def test_a_missing_name_or_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGETRAIN_DATA", raising=False)
    with pytest.raises(UserError, match="model.name=cnn is not one of ds_cnn_s_int8, dnn_s_int8"):
        keyword_int8("cnn")
    with pytest.raises(UserError, match="there is no .*dnn_s_int8.safetensors; set EDGETRAIN_DATA"):
        keyword_int8("dnn_s_int8", str(tmp_path))


@pytest.mark.parametrize("damage", ["{", '{"NUM_FRAMES": 25}', "[]"])
def test_sizes_that_cannot_be_read_are_named(
    damage: str, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dnn_s_int8.safetensors").write_bytes((released / "dnn_s_int8.safetensors").read_bytes())
    (tmp_path / "dnn_s_int8.json").write_text(damage)
    with pytest.raises(UserError, match="dnn_s_int8.json do not hold dnn_s_int8 .*copy them again"):
        keyword_int8("dnn_s_int8", str(tmp_path))


def test_features_of_another_shape_are_one_sentence(released: Path) -> None:
    with pytest.raises(UserError, match=r"\['batch', 25, 10\], but was given \[1, 49, 10\]; set data.stride_ms"):
        keyword_int8("dnn_s_int8")(torch.zeros(1, 49, 10))
