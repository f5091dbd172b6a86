"""The released networks against what they are known to say of clips, and against their definitions in numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from recurrent_reference import gru_by_definition, lstm_by_definition
from safetensors.numpy import load_file, save_file
from torch import Tensor

from edgetrain.errors import UserError
from edgetrain.models.keyword_network import KeywordNetwork
from edgetrain.models.keyword_pretrained import LABELS, keyword_pretrained
from edgetrain.ops.mfcc import MFCC

# Probabilities of the right label that an independent port of the weights gave, to the digits it was noted with.
PROBABILITIES = {
    "dnn_s": {"yes": 1.0, "no": 0.749},
    "dnn_m": {"yes": 1.0, "no": 0.983},
    "dnn_l": {"yes": 1.0, "no": 0.977},
    "ds_cnn_s": {"yes": 1.0, "no": 0.993},
    "ds_cnn_m": {"yes": 1.0, "no": 0.991},
    "ds_cnn_l": {"yes": 1.0, "no": 1.0},
}


def features_of(clips: dict[str, Tensor], network: KeywordNetwork) -> Tensor:
    """[clips, frames, 10], the front end at the network's own stride."""
    stride = 40 if network.input_shape[0] == 25 else 20
    return torch.cat([MFCC(stride_ms=stride)(samples) for samples in clips.values()])


@pytest.mark.parametrize("name", PROBABILITIES)
def test_dnn_and_ds_cnn_label_yes_no_and_silence_with_the_noted_probabilities(
    name: str, clips: dict[str, Tensor]
) -> None:
    network = keyword_pretrained(name, front_end=True).eval()
    with torch.no_grad():
        said = {clip: network(samples).softmax(1)[0] for clip, samples in clips.items()}
    for clip in ("yes", "no", "silence"):
        assert LABELS[said[clip].argmax()] == clip
    for clip, probability in PROBABILITIES[name].items():
        assert abs(float(said[clip][LABELS.index(clip)]) - probability) < 6e-4


@pytest.mark.parametrize("name", ["basic_lstm_s", "lstm_s", "gru_s", "crnn_s"])
def test_the_recurrent_networks_hear_yes_and_no(name: str, clips: dict[str, Tensor]) -> None:
    """So gates are in the right order: nobody has noted what these networks say of silence."""
    network = keyword_pretrained(name, front_end=True).eval()
    for clip in ("yes", "no"):
        with torch.no_grad():
            said = network(clips[clip]).softmax(1)[0]
        assert LABELS[said.argmax()] == clip and said.max() > 0.8


@pytest.mark.parametrize("name", ["basic_lstm_s", "lstm_s", "gru_s"])
def test_a_recurrent_network_is_its_definition(name: str, released: Path, clips: dict[str, Tensor]) -> None:
    tensors = {key: value.astype(np.float64) for key, value in load_file(released / f"{name}.safetensors").items()}
    network = keyword_pretrained(name).double().eval()
    features = features_of(clips, network).double()
    for clip, logits in zip(features, network(features).detach().numpy(), strict=True):
        if name == "gru_s":
            place = "rnn/multi_rnn_cell/cell_0/gru_cell"
            state = gru_by_definition(
                clip.numpy(),
                tensors[f"{place}/gates/kernel"],
                tensors[f"{place}/gates/bias"],
                tensors[f"{place}/candidate/kernel"],
                tensors[f"{place}/candidate/bias"],
            )
        else:
            place = "lstm/rnn/basic_lstm_cell" if name == "basic_lstm_s" else "lstm/rnn/lstm_cell"
            diagonals = {gate: tensors.get(f"{place}/w_{gate}_diag") for gate in "ifo"}
            state = lstm_by_definition(
                clip.numpy(),
                tensors[f"{place}/kernel"],
                tensors[f"{place}/bias"],
                1.0,
                diagonals if name == "lstm_s" else None,
                tensors.get(f"{place}/projection/kernel"),
            )
        np.testing.assert_allclose(logits, state[-1] @ tensors["W_o"] + tensors["b_o"], atol=1e-5)


def valid_convolution(x: np.ndarray, kernel: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
    """x [height, width, in], kernel [height, width, in, out], as the sum over windows."""
    height, width = kernel.shape[:2]
    rows, columns = (x.shape[0] - height) // stride[0] + 1, (x.shape[1] - width) // stride[1] + 1
    out = np.zeros((rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            y, z = row * stride[0], column * stride[1]
            out[row, column] = np.tensordot(x[y : y + height, z : z + width], kernel, 3)
    return out


def normalised(x: np.ndarray, tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    mean, variance = tensors[f"{name}/moving_mean"], tensors[f"{name}/moving_variance"]
    return (x - mean) / np.sqrt(variance + 1e-3) * tensors[f"{name}/gamma"] + tensors[f"{name}/beta"]


def test_the_cnn_is_its_definition(released: Path, clips: dict[str, Tensor]) -> None:
    t = {key: value.astype(np.float64) for key, value in load_file(released / "cnn_s.safetensors").items()}
    network = keyword_pretrained("cnn_s").double().eval()
    features = features_of(clips, network).double()
    for clip, logits in zip(features, network(features).detach().numpy(), strict=True):
        x = valid_convolution(clip.numpy()[..., None], t["Variable"], (1, 1)) + t["Variable_1"]
        x = np.maximum(normalised(x, t, "bn1"), 0)
        x = valid_convolution(x, t["Variable_2"], (2, 1)) + t["Variable_3"]
        x = np.maximum(normalised(x, t, "bn2"), 0)
        x = x.reshape(-1) @ t["W"] + t["b"]
        x = np.maximum(normalised(x @ t["Variable_4"] + t["Variable_5"], t, "bn3"), 0)
        np.testing.assert_allclose(logits, x @ t["Variable_6"] + t["Variable_7"], atol=1e-4)


def test_the_crnn_is_its_definition(released: Path, clips: dict[str, Tensor]) -> None:
    t = {key: value.astype(np.float64) for key, value in load_file(released / "crnn_s.safetensors").items()}
    network = keyword_pretrained("crnn_s").double().eval()
    features = features_of(clips, network).double()
    for clip, logits in zip(features, network(features).detach().numpy(), strict=True):
        maps = np.maximum(valid_convolution(clip.numpy()[..., None], t["W"], (2, 2)) + t["Variable"], 0)
        x = maps.reshape(len(maps), -1)
        for cell in range(2):
            place = f"rnn/multi_rnn_cell/cell_{cell}/gru_cell"
            names = ("gates/kernel", "gates/bias", "candidate/kernel", "candidate/bias")
            x = gru_by_definition(x, *(t[f"{place}/{name}"] for name in names))
        x = np.maximum(x[-1] @ t["fcw"] + t["Variable_1"], 0)
        np.testing.assert_allclose(logits, x @ t["Variable_2"] + t["Variable_3"], atol=1e-5)


def test_slims_scales_are_the_constant_one(released: Path) -> None:
    for size in "sml":
        tensors = load_file(released / f"ds_cnn_{size}.safetensors")
        scales = [value for key, value in tensors.items() if key.endswith("batch_norm/Const")]
        assert scales and all((scale == 1).all() for scale in scales)


def test_an_extra_in_the_name_does_not_matter_the_tensors_say_the_size(
    released: Path, tmp_path: Path, clips: dict[str, Tensor]
) -> None:
    (tmp_path / "dnn_mine.safetensors").write_bytes((released / "dnn_m.safetensors").read_bytes())
    mine, theirs = keyword_pretrained("dnn_mine", str(tmp_path)), keyword_pretrained("dnn_m")
    features = features_of(clips, theirs)
    torch.testing.assert_close(mine(features), theirs(features), rtol=0, atol=0)


def small_file(folder: Path, **changes: np.ndarray | None) -> str:
    """A folder of its own with a DNN of size s in zeros, with tensors changed or left out."""
    folder.mkdir()
    sizes = {"fc1/W": (250, 144), "fc2/W": (144, 144), "fc3/W": (144, 144), "final_fc": (144, 12), "Variable": (12,)}
    sizes |= {f"fc{index}/b": (144,) for index in (1, 2, 3)}
    tensors = {key: np.zeros(size, np.float32) for key, size in sizes.items()} | changes
    save_file({key: value for key, value in tensors.items() if value is not None}, folder / "dnn_s.safetensors")
    return str(folder)


def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGETRAIN_DATA", raising=False)
    wrong = np.zeros((144, 100), np.float32)
    for message, name, path in (
        ("model.name=dscnn_s is not a family .*did you mean 'ds_cnn'", "dscnn_s", "."),
        ("there is no .*dnn_s.safetensors; set EDGETRAIN_DATA", "dnn_s", str(tmp_path / "nothing")),
        ("has no tensor fc2/b .*did you mean", "dnn_s", small_file(tmp_path / "lacks", **{"fc2/b": None})),
        (r"fc2/W is \[144, 100\] where .*\[144, 144\]", "dnn_s", small_file(tmp_path / "inner", **{"fc2/W": wrong})),
        (r"fc1/W is \[144, 100\], and no size of dnn", "dnn_s", small_file(tmp_path / "first", **{"fc1/W": wrong})),
        ("there is no .*dnn_m.safetensors; the folder has dnn_s.safetensors", "dnn_m", small_file(tmp_path / "other")),
    ):
        with pytest.raises(UserError, match=message) as caught:
            keyword_pretrained(name, path)
        assert "\n" not in str(caught.value)
    assert keyword_pretrained("dnn_s", str(tmp_path / "other"))(torch.randn(1, 25, 10)).abs().max() == 0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = small_file(tmp_path / "cut")
    place = Path(folder) / "dnn_s.safetensors"
    place.write_bytes(place.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"cannot load {place}"):
        keyword_pretrained("dnn_s", folder)


def test_a_network_comes_in_train_mode_as_every_model_is_built_so_that_its_norms_learn(released: Path) -> None:
    network = keyword_pretrained("ds_cnn_s")
    assert all(module.training for module in network.modules())
    before = network.norm.running_mean.clone()
    network(torch.ones(2, 49, 10))
    assert not torch.equal(network.norm.running_mean, before)
