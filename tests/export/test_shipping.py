"""What is exported is judged itself, counted from kept predictions, and there whole or not at all."""

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_classifier import Data, run_folder, trained_net

from edgetrain.errors import UserError
from edgetrain.export.again import check_data, judge_again
from edgetrain.export.artefact import Artefact
from edgetrain.export.judging import judge
from edgetrain.export.manifest import read_manifest
from edgetrain.export.shipping import ship
from edgetrain.folder import RunFolder
from edgetrain.models.quantized import QuantizedModel, Scheme


class Saved:
    """Exports the weights as torch saves them, and runs them after `change`."""

    formats: tuple[str, ...] | None = ("fp32",)
    opening_runs_code = False

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda logits: logits, tolerance: float = 1e-4) -> None:
        self.change, self.tolerance = change, tolerance

    def export(self, model: nn.Module, example_inputs: Any, calibration: Any, out: Path) -> list[Artefact]:
        torch.save(model.state_dict(), out / "weights.pt")
        return [Artefact("fp32", ("weights.pt",), lambda x: self.change(model(x)), model, self.tolerance)]

    def load(self, folder: Path, name: str, files: tuple[str, ...]) -> Any:
        trained = trained_net()
        trained.model.load_state_dict(torch.load(folder / files[0], weights_only=True))
        return trained.model


def test_the_table_is_counted_from_the_predictions_that_were_kept(tmp_path: Path) -> None:
    """An artefact that never says `low`: its row by hand from the labels, and its disagreements with the model."""
    trained, folder = trained_net(), run_folder(tmp_path)
    never_low = Saved(lambda logits: logits - 100 * torch.eye(3)[0], tolerance=101)
    ship(trained, {"toy": never_low}, folder, [])
    metrics = folder.read_json("metrics.json")
    x, y = trained.data.splits["test"].tensors
    said = trained.model(x)[:, 1:].argmax(1) + 1
    right, plain = (said == y).float().mean().item(), (trained.model(x).argmax(1) == y).float().mean().item()
    rows = {row["row"]: row for row in folder.read_table("artefacts")}
    assert list(rows) == ["chance", "majority", "float", "toy_fp32"]
    assert float(rows["toy_fp32"]["accuracy"]) == pytest.approx(right)
    assert float(rows["float"]["accuracy"]) == pytest.approx(plain)
    assert float(rows["toy_fp32"]["change"]) == pytest.approx(right - plain)
    assert int(rows["toy_fp32"]["differs"]) == int((trained.model(x).argmax(1) != said).sum())
    assert float(rows["chance"]["accuracy"]) == pytest.approx(1 / 3)
    assert float(rows["majority"]["accuracy"]) == pytest.approx(0.4)
    kept = folder.read_table("predictions_toy_fp32")
    assert [int(row["predicted"]) for row in kept] == said.tolist()
    assert [row["speaker"] for row in kept[:2]] == ["ann", "bob"]
    assert metrics["export/toy/fp32/accuracy"] == pytest.approx(right)
    assert metrics["export/float/accuracy"] == pytest.approx(plain)
    assert metrics["export/toy/fp32/parity"] == pytest.approx(100, rel=1e-4)


def test_parity_is_the_largest_difference_on_held_out_items(tmp_path: Path) -> None:
    """A logit of one item of the first batch differs by 0.5, and one of the last by 0.25: no example would show it."""
    trained = trained_net()
    x = trained.data.splits["test"].tensors[0]

    def predict(inputs: Tensor) -> Tensor:
        logits = trained.model(inputs).clone()
        logits[(inputs == x[3]).all(1), 2] += 0.5
        logits[(inputs == x[57]).all(1), 2] -= 0.25
        return logits

    judged = judge(Artefact("fp32", (), predict, trained.model, 1e-4), trained.task, trained.data.test_dataloader())
    assert judged.parity == pytest.approx(0.5, abs=1e-5)
    same = (predict(x).argmax(1) == trained.model(x).argmax(1)).float().mean().item()
    assert judged.agreement == pytest.approx(same)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda logits: logits + 2e-4, "outputs of fp32 differ from the model's by 0.0002"),
        (lambda logits: logits * float("nan"), "outputs of fp32 differ from the model's by nan"),
        (lambda logits: torch.where(logits > 1e9, 1.0, float("inf")), "by inf"),
    ],
)
def test_a_failed_gate_is_a_sentence_and_leaves_what_was_there(
    change: Callable[[Tensor], Tensor], said: str, tmp_path: Path
) -> None:
    folder = run_folder(tmp_path)
    ship(trained_net(), {"toy": Saved()}, folder, [])
    before = (folder.path / "export/toy/manifest.json").read_bytes()
    with pytest.raises(UserError, match=said):
        ship(trained_net(), {"toy": Saved(change)}, folder, [])
    assert (folder.path / "export/toy/manifest.json").read_bytes() == before
    assert [path.name for path in (folder.path / "export").iterdir()] == ["toy"]


def test_an_export_replaces_the_one_before(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for change in (0.0, 1.0):
        ship(trained_net(), {"toy": Saved(lambda logits, change=change: logits + change, tolerance=2)}, folder, [])
        form = json.loads((folder.path / "export/toy/manifest.json").read_text())["forms"]["fp32"]
        assert form["parity"] == pytest.approx(change, abs=1e-5)
    assert [path.name for path in (folder.path / "export").iterdir()] == ["toy"]


def test_nan_in_one_batch_of_several_fails_the_gate(tmp_path: Path) -> None:
    """25, 25 and 10 items: only the first batch has it."""
    first = [True]

    def once(logits: Tensor) -> Tensor:
        return logits * float("nan") if first and first.pop() else logits

    with pytest.raises(UserError, match="differ from the model's by nan"):
        ship(trained_net(), {"toy": Saved(once)}, run_folder(tmp_path), [])


def test_a_form_that_is_no_longer_exported_leaves_nothing_behind(tmp_path: Path) -> None:
    class Two(Saved):
        def export(self, model: nn.Module, example_inputs: Any, calibration: Any, out: Path) -> list[Artefact]:
            (artefact,) = super().export(model, example_inputs, calibration, out)
            return [artefact, replace(artefact, name="other")]

    folder = run_folder(tmp_path)
    ship(trained_net(), {"toy": Two()}, folder, [])
    assert "export/toy/other/accuracy" in folder.read_json("metrics.json")
    ship(trained_net(), {"toy": Saved()}, folder, [])
    assert not any(name.startswith("export/toy/other") for name in folder.read_json("metrics.json"))
    assert not (folder.path / "tables" / "predictions_toy_other.csv").exists()


def test_exports_judged_on_other_clips_stand_in_no_common_table(tmp_path: Path) -> None:
    """As many items, but others: a pair of them would compare different clips."""
    folder, trained = run_folder(tmp_path), trained_net()
    ship(trained, {"old": Saved()}, folder, [])
    x, y = trained.data.splits["test"].tensors
    trained.data.splits["test"] = torch.utils.data.TensorDataset(x.flip(0), y.flip(0))
    ship(trained, {"new": Saved()}, folder, [])
    assert [row["row"] for row in folder.read_table("artefacts")] == ["chance", "majority", "float", "new_fp32"]
    (item,) = (item for item in folder.report_items() if item["name"] == "artefacts")
    assert item["caption"].endswith("judged on other data: old.")


def test_a_refused_export_changes_nothing_in_the_run_folder(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    ship(trained_net(), {"toy": Saved()}, folder, [])
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError):
        ship(trained_net(), {"toy": Saved(lambda logits: logits + 1)}, folder, [])
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_data_that_the_run_did_not_have_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, trained = run_folder(tmp_path), trained_net()
    trained.data.facts = lambda: {"corpus_sha256": "b"}
    folder.update_metrics({"corpus_sha256": "a"})
    ship(trained, {"toy": Saved()}, folder, [])
    said = "it was judged on other data than the run's own, and the run may have learned from parts of it"
    assert json.loads((folder.path / "export/toy/manifest.json").read_text())["warnings"] == [said]
    assert said[0].upper() + said[1:] in (folder.path / "export/toy/MODEL_CARD.md").read_text()


def test_an_error_that_is_not_of_the_disk_is_not_called_one(tmp_path: Path) -> None:
    class Gone(Saved):
        def export(self, model: Any, example_inputs: Any, calibration: Any, out: Path) -> list[Artefact]:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "clip.wav")

    with pytest.raises(FileNotFoundError):
        ship(trained_net(), {"toy": Gone()}, run_folder(tmp_path), [])


def test_differences_of_int8_are_counted_in_steps_of_its_output(tmp_path: Path) -> None:
    trained, folder = trained_net(), run_folder(tmp_path)
    step = 0.25
    trained.model = QuantizedModel(trained.model, trained.model, Scheme("int8", step))

    class Int8(Saved):
        formats = None

        def export(self, model: Any, example_inputs: Any, calibration: Any, out: Path) -> list[Artefact]:
            (artefact,) = super().export(model.graph, example_inputs, calibration, out)
            shifted = replace(artefact, name="int8", predict=lambda x: model.graph(x) + self.change(torch.tensor(step)))
            return [replace(shifted, lsb=step, tolerance=2 * step)]

    ship(trained, {"toy": Int8(lambda x: 2 * x)}, folder, [])
    metrics = folder.read_json("metrics.json")
    assert metrics["export/toy/int8/parity"] == pytest.approx(0.5)
    manifest = json.loads((folder.path / "export/toy/manifest.json").read_text())
    assert manifest["forms"]["int8"]["parity_lsb"] == pytest.approx(2)
    assert manifest["quantization"]["scheme"] == "int8"
    assert "export/quantized/accuracy" in metrics
    with pytest.raises(UserError, match=r"by 0\.75 \(3 LSB\)"):
        ship(trained, {"toy": Int8(lambda x: 3 * x)}, folder, [])


def test_the_models_own_quantisation_is_made_once_for_all_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both targets get the same quantised model, made with the data's train split."""
    made, given = [], []

    def post_training(model: nn.Module, inputs: Any, data: Any) -> QuantizedModel:
        made.append(data)
        return QuantizedModel(model, model, Scheme("int8", 1.0))

    class Any8(Saved):
        formats = None

        def export(self, model: Any, example_inputs: Any, calibration: Any, out: Path) -> list[Artefact]:
            given.append(model)
            return super().export(model.float_model, example_inputs, calibration, out)

    monkeypatch.setattr("edgetrain.export.shipping.post_training", post_training)
    trained = trained_net()
    ship(trained, {"a": Any8(), "b": Any8(), "c": Saved()}, run_folder(tmp_path), [])
    assert made == [trained.data]
    assert given[0] is given[1]
    assert not isinstance(trained.model, QuantizedModel)  # the run's own model stays as it was


def test_a_full_disk_is_a_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    class Full(Saved):
        def export(self, model: Any, example_inputs: Any, calibration: Any, out: Path) -> list[Artefact]:
            (out / "half").write_bytes(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")

    folder = run_folder(tmp_path)
    with pytest.raises(UserError, match=r"export toy: cannot write .*No space left on device; free some space"):
        ship(trained_net(), {"toy": Full()}, folder, [])
    assert list((folder.path / "export").iterdir()) == []


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = run_folder(tmp_path)
    trained = trained_net()
    object.__setattr__(trained.config, "export", {"toy": {"_target_": "test_shipping.Saved"}})
    ship(trained, {"toy": Saved()}, folder, [])
    return folder.path / "export" / "toy"


def test_an_exported_folder_is_judged_again_as_it_was(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(exported)
    parts = {"Data": Data, "Saved": Saved}
    task = trained_net().task

    def build(node: dict[str, Any], **_: Any) -> Any:
        return parts[name]() if (name := node["_target_"].rpartition(".")[2]) in parts else task

    monkeypatch.setattr("edgetrain.export.again.build", build)
    config = replace(trained_net().config, export=manifest["config"]["export"])
    found = judge_again(exported, manifest, config)
    assert found == {f"fp32/{name}": value for name, value in manifest["forms"]["fp32"]["metrics"].items()} | found
    assert found["fp32/accuracy"] == pytest.approx(manifest["forms"]["fp32"]["metrics"]["accuracy"])
    assert found["fp32/loss"] == pytest.approx(manifest["forms"]["fp32"]["metrics"]["loss"])
    monkeypatch.setattr(Saved, "opening_runs_code", True)
    with pytest.raises(UserError, match=r"may run code that is in it; .* add trust=\[toy\]"):
        judge_again(exported, manifest, config)
    assert judge_again(exported, manifest, replace(config, trust=["toy"])) == found
    monkeypatch.undo()
    monkeypatch.setattr("edgetrain.export.again.build", build)
    with pytest.raises(UserError, match="is for toy; leave out export= to judge it"):
        judge_again(exported, manifest, replace(config, export={"onnx": {}}))
    with pytest.raises(UserError, match="form=int8 is not in .*; it holds fp32"):
        judge_again(exported, manifest, config, "int8")


def test_files_that_are_not_those_judged_are_refused(exported: Path) -> None:
    weights = exported / "weights.pt"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"weights\.pt is not the file that was judged: its sha256 differs"):
        read_manifest(exported)
    weights.unlink()
    with pytest.raises(UserError, match=r"weights\.pt is missing, though manifest\.json lists it"):
        read_manifest(exported)
    (exported / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(exported)
    (exported / "manifest.json").unlink()
    with pytest.raises(UserError, match="is not an exported folder"):
        read_manifest(exported)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": None}, "target is not what it was"),
        ({"target": "other"}, r"config\.export is not what it was"),
        ({"files": []}, "files is not what it was"),
        ({"files": {"weights.pt": {}}}, "files is not what it was"),
        ({"forms": {"fp32": []}}, r"forms\.fp32 is not what it was"),
        ({"forms": {"fp32": {"files": [], "metrics": {}}}}, r"forms\.fp32 is not what it was"),
        ({"forms": {"fp32": {"files": ["../other"], "metrics": {}}}}, r"forms\.fp32 is not what it was"),
        ({"forms": {"fp32": {"files": ["weights.pt"], "metrics": {"loss": "x"}}}}, r"forms\.fp32 is not what it was"),
        ({"config": {}}, r"config\.export is not what it was"),
        ({"schema": 0}, "has schema 0, this version reads 1"),
    ],
)
def test_a_damaged_manifest_is_one_sentence(exported: Path, change: dict[str, Any], said: str) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    (exported / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=said):
        read_manifest(exported)


def test_a_file_that_was_not_judged_is_refused(exported: Path) -> None:
    (exported / "extra.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"extra\.onnx is not listed in manifest\.json"):
        read_manifest(exported)


def test_data_is_held_to_the_artefacts_labels_and_preprocessing(exported: Path) -> None:
    manifest, data = read_manifest(exported), Data()
    inputs = (torch.zeros(5, 6),)
    check_data(data, inputs, manifest)
    with pytest.raises(UserError, match=r"takes inputs of \[\[6\]\], and the data gives \[\[7\]\]"):
        check_data(data, (torch.zeros(5, 7),), manifest)
    data.preprocessing = lambda: {"sample_rate": 8000}
    with pytest.raises(UserError, match="prepared with sample_rate=16000, and the data's are with sample_rate=8000"):
        check_data(data, inputs, manifest)
    data.labels = ["high", "middle", "low"]
    with pytest.raises(UserError, match="answers low, middle, high, in this order, and the data has high, middle, low"):
        check_data(data, inputs, manifest)


def test_a_manifest_cannot_name_files_outside_of_its_folder(exported: Path) -> None:
    (exported.parent / "other").write_text("x")
    manifest = json.loads((exported / "manifest.json").read_text())
    manifest["files"]["../other"] = {"bytes": 1, "sha256": "0"}
    (exported / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"names \.\./other, which is outside of the folder"):
        read_manifest(exported)


def test_the_card_says_use_origin_figures_groups_and_limits(tmp_path: Path) -> None:
    trained, folder = trained_net(), run_folder(tmp_path)
    licences = [{"what": "data", "name": "clips", "source": "a site", "licence": "CC BY-NC 4.0"}]
    ship(trained, {"toy": Saved()}, folder, licences)
    card = (folder.path / "export/toy/MODEL_CARD.md").read_text()
    x, y = trained.data.splits["test"].tensors
    ann = (trained.model(x).argmax(1) == y)[::2].float().mean().item()
    assert f"| ann | 30 | {ann:.1%} |" in card
    assert "low, middle, high" in card
    assert "| sample_rate | 16000 |" in card
    assert "| data | clips | a site | CC BY-NC 4.0 |" in card
    assert "Data clips (CC BY-NC 4.0) is not for commercial use" in card
    manifest = json.loads((folder.path / "export/toy/manifest.json").read_text())
    assert manifest["macs"] == 6 * 16 + 16 * 3
    assert manifest["parameters"] == 6 * 16 + 16 + 16 * 3 + 3
    assert manifest["labels"] == ["low", "middle", "high"]


def test_a_text_that_leaves_the_models_is_refused(finished_run: RunFolder, tmp_path: Path) -> None:
    """Greedy continuation without any cache is the oracle of an artefact's own decoding."""
    from edgetrain.build import load_trained, read_config
    from edgetrain.compose import compose

    trained = load_trained(finished_run, compose([], base=read_config(finished_run)))

    def greedy(prompt: Tensor, new: int, wrong_at: int = -1) -> Tensor:
        tokens = prompt
        for index in range(new):
            logits = trained.model(tokens[None])[0, -1]
            tokens = torch.cat((tokens, logits.topk(2).indices[None, int(index == wrong_at)]))
        return tokens

    class Generates(Saved):
        wrong_at = -1

        def export(self, model: Any, example_inputs: Any, calibration: Any, out: Path) -> list[Artefact]:
            (artefact,) = super().export(model, example_inputs, calibration, out)
            return [replace(artefact, generate=lambda prompt, new: greedy(prompt, new, self.wrong_at))]

    ship(trained, {"toy": Generates()}, run_folder(tmp_path), [])
    wrong = Generates()
    wrong.wrong_at = 3
    with pytest.raises(UserError, match="leaves the model's after 11 tokens of 24"):
        ship(trained, {"toy": wrong}, RunFolder.create("x", str(tmp_path / "other")), [])
