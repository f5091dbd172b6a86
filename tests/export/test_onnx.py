"""The ONNX files, as the onnx package and ONNX Runtime alone see them."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from exported_networks import SHAPE, batch, convolutional, quantized
from onnx import numpy_helper
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact
from edgetrain.export.onnx import Onnx

INPUTS = (torch.zeros(1, *SHAPE),)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def written(out: Path) -> dict[str, Artefact]:
    return {artefact.name: artefact for artefact in Onnx().export(quantized(), INPUTS, None, out)}


def test_files_are_valid_and_facts_are_what_they_hold(out: Path, written: dict[str, Artefact]) -> None:
    for name, artefact in written.items():
        model = onnx.load(out / f"model_{name}.onnx")
        onnx.checker.check_model(model, full_check=True)
        kinds = [node.op_type for node in model.graph.node]
        assert artefact.facts["operators"] == {kind: kinds.count(kind) for kind in kinds}
        assert artefact.facts["opset"] == {entry.domain: entry.version for entry in model.opset_import}[""]
        assert artefact.facts["ir_version"] == model.ir_version
        (given,), (gives,) = model.graph.input, model.graph.output
        assert (given.name, gives.name) == ("input", "logits")
        assert [axis.dim_value for axis in given.type.tensor_type.shape.dim] == [1, *SHAPE]


def test_int8_weights_are_stored_in_eight_bits(out: Path, written: dict[str, Artefact]) -> None:
    """Four layers, each weight once and in int8; what stays in float32 is biases and scales: fewer than a weight."""
    model = onnx.load(out / "model_int8.onnx")
    stored = [numpy_helper.to_array(value) for value in model.graph.initializer]
    shapes = [(16, 1, 10, 4), (16, 1, 3, 3), (48, 16, 1, 1), (6, 48)]
    assert sorted(value.shape for value in stored if value.dtype == "int8" and value.ndim > 1) == sorted(shapes)
    assert sum(value.size for value in stored if value.dtype == "float32") < 16 * 48
    operators = written["int8"].facts["operators"]
    assert operators["DequantizeLinear"] >= 8 and operators["QuantizeLinear"] >= 5 and operators["Conv"] == 3


def test_batch_norms_are_folded(written: dict[str, Artefact]) -> None:
    assert written["fp32"].facts["operators"]["Conv"] == 3
    assert "BatchNormalization" not in written["fp32"].facts["operators"]


def test_int8_files_are_smaller(out: Path, tmp_path: Path, written: dict[str, Artefact]) -> None:
    sizes = {name: (out / f"model_{name}.onnx").stat().st_size for name in written}
    weights = sum(parameter.nbytes for parameter in convolutional().parameters())
    assert weights < sizes["fp32"] < weights + 8000
    assert all(
        not node.metadata_props and not node.doc_string for node in onnx.load(out / "model_int8.onnx").graph.node
    )


def test_it_runs_where_only_the_runtime_is(out: Path, written: dict[str, Artefact]) -> None:
    """In a process that has neither onnx nor onnxscript nor executorch nor torchao."""
    torch.save(batch(2), out / "inputs.pt")
    program = f"""
import sys
for name in ("onnx", "onnxscript", "executorch", "torchao"):
    sys.modules[name] = None
import torch
from pathlib import Path
from edgetrain.export.onnx import Onnx
predict = Onnx().load(Path({str(out)!r}), "int8", ("model_int8.onnx",))
torch.save(predict(torch.load(Path({str(out)!r}) / "inputs.pt")), Path({str(out)!r}) / "outputs.pt")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert torch.equal(torch.load(out / "outputs.pt"), written["int8"].predict(batch(2)))


def test_it_computes_on_one_thread(out: Path, written: dict[str, Artefact]) -> None:
    before = len(os.listdir("/proc/self/task"))
    predict = Onnx().load(out, "fp32", ("model_fp32.onnx",))
    predict(batch(2))
    assert len(os.listdir("/proc/self/task")) == before


def test_weights_beyond_the_limit_stand_beside_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("edgetrain.export.onnx.LARGEST", 100)
    (artefact,) = Onnx().export(convolutional(), INPUTS, None, tmp_path)
    assert artefact.files == ("model_fp32.onnx", "model_fp32.onnx.data")
    assert sorted(path.name for path in tmp_path.iterdir()) == list(artefact.files)
    with torch.inference_mode():
        assert (artefact.predict(batch(2)) - convolutional()(batch(2))).abs().max() <= 1e-5


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i1e(x)


class Eigenvalues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x.transpose(-1, -2) @ x)


def test_operators_that_onnx_lacks_are_named_with_their_modules() -> None:
    model = nn.Sequential(nn.Linear(10, 10), Bessel(), nn.Sequential(Bessel(), Eigenvalues()))
    with pytest.raises(UserError) as raised:
        Onnx().check(model, INPUTS)
    said = str(raised.value)
    assert "bessel_i1e (in module '1', module '2.0')" in said
    assert "_linalg_eigh (in module '2.1')" in said
    assert said.startswith("export.onnx: the target has no ") and said.endswith("or leave this target out")


def test_exporting_such_a_model_is_a_sentence_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torch.onnx cannot translate the graph: No ONNX function found for .*i1e"):
        Onnx().export(nn.Sequential(nn.Linear(10, 10), Bessel()).eval(), INPUTS, None, tmp_path)
    assert list(tmp_path.iterdir()) == []
