"""What holds for every runtime: forms, batches, what is refused, and what never ends up in a file."""

import errno
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exported_networks import CLASSES, SHAPE, batch, convolutional, quantized
from rich.console import Console
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.export import single_graph
from edgetrain.export.artefact import Artefact
from edgetrain.export.executorch import ExecuTorch
from edgetrain.export.onnx import Onnx
from edgetrain.export.pt2 import Pt2
from edgetrain.export.single_graph import item_by_item
from edgetrain.jobs.fit import check_exports
from edgetrain.methods.quantize import Quantize
from edgetrain.models.quantized import QuantizedModel, Scheme

ROOT = Path(__file__).resolve().parents[2]
EXPORTERS = [Onnx, ExecuTorch, Pt2]
INPUTS = (torch.zeros(1, *SHAPE),)


@pytest.fixture(scope="module", params=EXPORTERS)
def exporter(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture(scope="module")
def written(exporter: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Artefact]]]:
    out = tmp_path_factory.mktemp(exporter.target)
    yield out, exporter.export(quantized(), INPUTS, None, out)


@torch.inference_mode()
def test_both_forms_compute_what_they_stand_for(exporter: Any, written: tuple[Path, list[Artefact]]) -> None:
    out, artefacts = written
    fp32, int8 = artefacts
    x = batch(12)
    expected = convolutional()(x)
    assert (fp32.name, fp32.files, fp32.tolerance) == ("fp32", (f"model_fp32.{exporter.suffix}",), 1e-4)
    assert fp32.predict(x).shape == (12, CLASSES)
    assert (fp32.predict(x) - expected).abs().max() <= 1e-5
    assert torch.equal(fp32.predict(x).argmax(1), expected.argmax(1))
    assert (int8.name, int8.files, int8.lsb) == (
        "int8",
        (f"model_int8.{exporter.suffix}",),
        quantized().scheme.output_scale,
    )
    steps = (int8.predict(x) - quantized().graph(x)) / int8.lsb
    assert steps.abs().max() <= 2.001
    assert int8.tolerance == pytest.approx(2 * int8.lsb, rel=1e-2)
    levels = int8.predict(x) / int8.lsb
    assert (levels - levels.round()).abs().max() < 1e-3  # 256 values at most: it is not the float network
    assert (levels.max() - levels.min()) <= 255
    assert sorted(path.name for path in out.iterdir()) == sorted(fp32.files + int8.files)


@torch.inference_mode()
def test_a_loaded_form_is_the_one_that_was_judged(exporter: Any, written: tuple[Path, list[Artefact]]) -> None:
    out, artefacts = written
    for artefact in artefacts:
        loaded = type(exporter)().load(out, artefact.name, artefact.files)
        assert torch.equal(loaded(batch(3)), artefact.predict(batch(3)))


@torch.inference_mode()
def test_items_of_a_batch_do_not_see_each_other(written: tuple[Path, list[Artefact]]) -> None:
    for artefact in written[1]:
        x = batch(5)
        alone = artefact.predict(x[3:4])
        assert torch.equal(artefact.predict(x)[3:4], alone)
        assert torch.equal(artefact.predict(x.flip(0))[1:2], alone)
        assert torch.equal(artefact.predict(x.transpose(1, 2).contiguous().transpose(1, 2)), artefact.predict(x))


def test_a_call_takes_one_item_of_every_input() -> None:
    seen = []
    predict = item_by_item(
        lambda inputs: seen.append([tuple(value.shape) for value in inputs]) or inputs[0] + inputs[1]
    )
    a, b = torch.arange(3.0)[:, None], torch.tensor([[10.0], [20.0], [30.0]])
    assert predict(a, b).tolist() == [[10.0], [21.0], [32.0]]
    assert seen == [[(1, 1), (1, 1)]] * 3


def test_facts_say_runtime_threads_interface_and_time(exporter: Any, written: tuple[Path, list[Artefact]]) -> None:
    for artefact in written[1]:
        facts = artefact.facts
        assert (facts["threads"], facts["batch"], facts["inputs"], facts["outputs"]) == (1, 1, ["input"], ["logits"])
        assert list(facts["runtime"]) == list(exporter.runtimes)
        assert facts["conversion_seconds"] > 0 and facts["operators"]


def test_no_folder_of_this_machine_is_in_a_file(written: tuple[Path, list[Artefact]]) -> None:
    out, artefacts = written
    for artefact in artefacts:
        content = (out / artefact.files[0]).read_bytes()
        for place in (str(ROOT), str(Path(torch.__file__).parent), "exported_networks.py"):
            assert place.encode() not in content


def test_a_second_export_gives_the_same_bytes_and_prints_nothing(
    exporter: Any, written: tuple[Path, list[Artefact]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, artefacts = written
    exporter.check(quantized(), INPUTS)
    exporter.export(quantized(), INPUTS, None, tmp_path)[0].predict(batch(1))
    assert capfd.readouterr() == ("", "")
    for artefact in artefacts:
        assert (tmp_path / artefact.files[0]).read_bytes() == (out / artefact.files[0]).read_bytes()


class TwoInputs(nn.Module):
    """Tokens int64 [batch, 4] and features [batch, 8] -> (logits [batch, 3], something else)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.table(tokens).mean(1) - features
        return self.linear(hidden), hidden


@torch.inference_mode()
def test_tokens_and_features_together_and_the_first_output(exporter: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoInputs().eval()
    inputs = (torch.randint(10, (4, 4)), torch.randn(4, 8))
    (artefact,) = exporter.export(model, tuple(value[:1] for value in inputs), None, tmp_path)
    assert artefact.facts["inputs"] == ["input_0", "input_1"]
    torch.testing.assert_close(artefact.predict(*inputs), model(*inputs)[0], rtol=0, atol=1e-5)


def test_formats_choose_the_forms(tmp_path: Path) -> None:
    for index, (formats, model, names) in enumerate(
        [
            (None, convolutional(), ["fp32"]),
            (["fp32"], quantized(), ["fp32"]),
            (["int8"], quantized(), ["int8"]),
            (["int8", "fp32"], quantized(), ["fp32", "int8"]),
        ]
    ):
        out = tmp_path / str(index)
        out.mkdir()
        assert [artefact.name for artefact in Pt2(formats).export(model, INPUTS, None, out)] == names


def test_q7_is_written_in_float_only(tmp_path: Path) -> None:
    model = QuantizedModel(convolutional(), nn.Identity(), Scheme("q7", 0.5))
    assert [artefact.name for artefact in Pt2().export(model, INPUTS, None, tmp_path)] == ["fp32"]
    with pytest.raises(UserError, match=r"formats=\['int8'\]: the q7 scheme shifts by powers of two"):
        Pt2(["int8"]).export(model, INPUTS, None, tmp_path)


def test_int8_of_a_network_that_cannot_be_quantised_is_refused_before_training(exporter: Any) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.LogSoftmax(-1))
    asked, example = type(exporter)(["int8"]), (torch.zeros(1, 3),)
    with pytest.raises(UserError, match=rf"export.{exporter.target}.formats=.*ends in log_softmax.*formats=\[fp32\]"):
        asked.check(network, example)
    asked.check(network[0], example)
    exporter.check(network, example)  # which writes it in fp32


def test_int8_beside_another_scheme_is_refused_before_training() -> None:
    trained = SimpleNamespace(
        model=convolutional(),
        task=SimpleNamespace(methods=[Quantize(scheme="q7")], example_inputs=lambda: INPUTS),
        data=None,
    )
    nodes = {"pt2": {"_target_": "edgetrain.export.pt2.Pt2", "formats": ["int8"]}}
    with pytest.raises(UserError, match=r"formats=\['int8'\]: the q7 scheme shifts by powers of two"):
        check_exports(SimpleNamespace(export=nodes), trained)
    nodes["pt2"]["formats"] = ["fp32"]
    check_exports(SimpleNamespace(export=nodes), trained)


def test_writing_int8_warns_of_nothing(tmp_path: Path) -> None:
    """Copying a graph copies a LeafSpec, of which Python warns once a process: so in one of its own."""
    code = (
        "import sys; sys.path.insert(0, 'tests/export'); sys.path.insert(0, 'tests'); from pathlib import Path;"
        "from exported_networks import quantized; from edgetrain.export.pt2 import Pt2; import torch;"
        "from exported_networks import SHAPE;"
        f"Pt2(['int8']).export(quantized(), (torch.zeros(1, *SHAPE),), None, Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "LeafSpec" not in done.stderr


def test_many_operators_are_told_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Pt2().export(convolutional(), INPUTS, None, tmp_path)
    assert "operators" not in capsys.readouterr().err
    monkeypatch.setattr(single_graph, "MANY", 0)
    monkeypatch.setattr(single_graph, "console", Console(stderr=True, highlight=False))
    Pt2().export(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval(), (torch.zeros(1, 2),), None, tmp_path)
    assert "write 2 operators as pt2 fp32" in capsys.readouterr().err


def test_forms_that_are_not_there_are_sentences(tmp_path: Path) -> None:
    for formats in ([], ["int4"], ["fp32", "fp16"]):
        with pytest.raises(UserError, match="must list fp32, int8 or both"):
            Onnx(formats)
    with pytest.raises(UserError, match="this Sequential is not quantised"):
        Pt2(["int8"]).export(convolutional(), INPUTS, None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_checking_leaves_the_model_as_it_is(exporter: Any) -> None:
    model = convolutional().train()
    model[4].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    exporter.check(model, INPUTS)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_a_graph_is_named_before_training(exporter: Any) -> None:
    model = nn.Sequential(nn.Linear(10, 4), Branching())
    with pytest.raises(UserError, match=r"Sequential cannot be exported at test_single_graph.py:\d+, in module '1'"):
        exporter.check(model, INPUTS)


def test_a_runtime_that_is_not_installed_is_one_line(
    exporter: Any, written: tuple[Path, list[Artefact]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (runtime,) = exporter.runtimes
    line = rf'^export.{exporter.target} needs .*{runtime}.*; pip install -c constraints.txt -e "\.\[deploy\]"$'
    with pytest.raises(UserError, match=line):
        exporter.check(convolutional(), INPUTS)
    with pytest.raises(UserError, match=line):
        exporter.export(convolutional(), INPUTS, None, tmp_path)
    with pytest.raises(UserError, match=line):
        exporter.load(written[0], "fp32", written[1][0].files)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_a_sentence(
    exporter: Any, written: tuple[Path, list[Artefact]], keep: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = written[1][0].files[0]
    content = (written[0] / file).read_bytes()
    (tmp_path / file).write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(UserError, match=f"{file} cannot be loaded, it is damaged") as raised:
        exporter.load(tmp_path, "fp32", (file,))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_another_or_none_is_a_sentence(exporter: Any, tmp_path: Path) -> None:
    file = f"model_fp32.{exporter.suffix}"
    with pytest.raises(UserError, match=f"{file} is missing"):
        exporter.load(tmp_path, "fp32", (file,))
    (tmp_path / file).write_bytes(b"not a model, but a text " * 100)
    with pytest.raises(UserError, match=f"{file} cannot be loaded"):
        exporter.load(tmp_path, "fp32", (file,))


def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    exporter: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("edgetrain.folder.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        exporter.export(convolutional(), INPUTS, None, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
