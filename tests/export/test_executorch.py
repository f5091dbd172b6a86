"""ExecuTorch programs: what XNNPACK runs, what portable kernels run, and what nobody can."""

from pathlib import Path

import pytest
import torch
from exported_networks import SHAPE, Samples, batch, quantized
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.export.executorch import ExecuTorch
from edgetrain.methods.quantize import post_training

INPUTS = (torch.zeros(1, *SHAPE),)


class Erf(nn.Module):
    """An operator that portable kernels have and XNNPACK has not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i1e(x)


@torch.inference_mode()
def test_a_convolutional_network_runs_in_xnnpack_alone(tmp_path: Path) -> None:
    fp32, int8 = ExecuTorch().export(quantized(), INPUTS, None, tmp_path)
    for artefact in (fp32, int8):
        operators = artefact.facts["operators"]
        assert operators["portable"] == {}
        assert (operators["xnnpack"]["aten.convolution"], operators["xnnpack"]["aten.linear"]) == (3, 1)
        assert artefact.facts["delegates"] == {"XnnpackBackend": 1}
        assert 4 * (49 * 10 + 6) <= artefact.facts["planned_memory_bytes"] < 4 * (49 * 10 + 6) + 256  # input, output
    assert "XNNPACK allocates its own" in int8.facts["planned_memory_note"]
    assert int8.facts["operators"]["xnnpack"]["quantized_decomposed.dequantize_per_channel"] == 4
    assert "quantized_decomposed.dequantize_per_channel" not in fp32.facts["operators"]["xnnpack"]


@torch.inference_mode()
def test_what_xnnpack_leaves_runs_in_portable_kernels_in_both_forms(tmp_path: Path) -> None:
    """Between two int8 layers it stands in float, between a dequantize and a quantize of the portable kernels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), Erf(), nn.Linear(32, 5)).eval()
    ExecuTorch().check(model, (torch.zeros(1, 10),))
    pair = post_training(model, (torch.zeros(1, 10),), Samples((10,)))
    fp32, int8 = ExecuTorch().export(pair, (torch.zeros(1, 10),), None, tmp_path)
    assert fp32.facts["operators"]["portable"] == {"aten.erf": 1}
    assert int8.facts["operators"]["portable"]["aten.erf"] == 1
    x = batch(16, (10,))
    assert (fp32.predict(x) - model(x)).abs().max() <= 1e-5
    assert (int8.predict(x) - pair.graph(x)).abs().max() <= int8.tolerance


def test_operators_without_a_kernel_are_named_with_their_modules() -> None:
    model = nn.Sequential(nn.Linear(10, 10), Bessel(), nn.Sequential(Erf(), Bessel()))
    with pytest.raises(UserError) as raised:
        ExecuTorch().check(model, INPUTS)
    assert str(raised.value) == (
        "export.executorch: the target has no aten.special_i1e (in module '1', module '2.1'); "
        "replace it in the model, or leave this target out"
    )


def test_exporting_such_a_model_is_the_same_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the target has no aten.special_i1e \(in module '1'\)"):
        ExecuTorch().export(nn.Sequential(nn.Linear(10, 10), Bessel()).eval(), INPUTS, None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_views_and_shapes_are_operators_that_it_has() -> None:
    class Shapes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = x.transpose(1, 2).unsqueeze(1).split(25, dim=3)
            return torch.cat((first[..., 1:], second), dim=3).permute(0, 3, 1, 2).flatten(1).expand(1, -1)

    ExecuTorch().check(Shapes(), INPUTS)


def test_the_runtime_has_one_thread(tmp_path: Path) -> None:
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(2)
    ExecuTorch(["fp32"]).export(nn.Linear(10, 4).eval(), INPUTS, None, tmp_path)
    assert portable_lib._threadpool_get_thread_count() == 1


def test_a_damaged_program_is_described_by_the_runtime_itself(tmp_path: Path) -> None:
    (tmp_path / "model_fp32.pte").write_bytes(b"abcd" * 200)
    with pytest.raises(UserError, match=r"of another version \(Program identifier 'abcd' != expected 'ET12'\)"):
        ExecuTorch().load(tmp_path, "fp32", ("model_fp32.pte",))
