"""Networks that give masks: each artefact is judged on held-out images, at one size and at a free one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex
from toy_classifier import Net, run_folder
from toy_segmenter import IGNORED, LABELS, SIZE, trained_segmenter

from edgetrain.build import Trained
from edgetrain.errors import UserError
from edgetrain.evaluation.arithmetic import evaluate_in
from edgetrain.export.again import judge_again
from edgetrain.export.artefact import Artefact
from edgetrain.export.executorch import ExecuTorch
from edgetrain.export.judging import judge, read_predictions
from edgetrain.export.manifest import read_manifest
from edgetrain.export.onnx import Onnx
from edgetrain.export.pt2 import Pt2
from edgetrain.export.shipping import ship
from edgetrain.folder import RunFolder
from edgetrain.jobs.fit import check_exports
from edgetrain.models.segmenter import segmenter

EXPORTERS = {"executorch": ExecuTorch, "onnx": Onnx, "pt2": Pt2}
NODES = {
    "executorch": {"_target_": "edgetrain.export.executorch.ExecuTorch"},
    "onnx": {"_target_": "edgetrain.export.onnx.Onnx"},
    "pt2": {"_target_": "edgetrain.export.pt2.Pt2"},
}
FREE = {"dynamic": True, "sides": [16, 64]}


def by_hand(trained: Trained, predict: Any = None) -> dict[str, float]:
    """Of a loop over the held-out images and torchmetrics."""
    jaccard = MulticlassJaccardIndex(len(LABELS), average="none", ignore_index=IGNORED)
    nats, right, pixels = 0.0, 0, 0
    with torch.inference_mode():
        for image, labels in trained.data.splits["test"]:
            logits = (predict or trained.model)(image[None])
            logits = F.interpolate(logits, labels.shape, mode="bilinear", align_corners=False)
            jaccard.update(logits.argmax(1), labels[None])
            nats += F.cross_entropy(logits, labels[None], ignore_index=IGNORED, reduction="sum").item()
            right += int((logits.argmax(1)[0] == labels)[labels != IGNORED].sum())
            pixels += int((labels != IGNORED).sum())
    there = jaccard.confmat.sum(0) + jaccard.confmat.sum(1) > 0
    return {"mean_iou": jaccard.compute()[there].mean().item(), "accuracy": right / pixels, "loss": nats / pixels}


def exporting(trained: Trained, nodes: dict[str, Any]) -> Trained:
    """The same, with these targets in its config."""
    return replace(trained, config=replace(trained.config, export=nodes))


def rows_of(folder: RunFolder) -> dict[str, dict[str, str]]:
    return {row["row"]: row for row in folder.read_table("artefacts")}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, RunFolder]:
    """One size: to ExecuTorch also in int8, of which ONNX Runtime's sums saturate on processors without VNNI."""
    trained, folder = exporting(trained_segmenter(), NODES), run_folder(tmp_path_factory.mktemp("masks"))
    ship(trained, {"onnx": Onnx(["fp32"]), "executorch": ExecuTorch(), "pt2": Pt2(["fp32"])}, folder, [])
    return trained, folder


def test_every_artefact_gives_the_models_mean_iou(shipped: tuple[Trained, RunFolder]) -> None:
    trained, folder = shipped
    expected, rows = by_hand(trained), rows_of(folder)
    names = ["executorch_fp32", "executorch_int8", "onnx_fp32", "pt2_fp32"]
    assert list(rows) == ["chance", "majority", "float", "quantized", *names]
    for name in ("float", "executorch_fp32", "onnx_fp32", "pt2_fp32"):
        found = {key: float(rows[name][key]) for key in expected}
        assert found == pytest.approx(expected, abs=1e-4), name
    assert expected["mean_iou"] > 0.6
    for name in ("quantized", "executorch_int8"):
        assert float(rows[name]["mean_iou"]) == pytest.approx(expected["mean_iou"], abs=0.05), name
    metrics = folder.read_json("metrics.json")
    for target in ("onnx", "executorch"):
        assert metrics[f"export/{target}/fp32/mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-4)
        assert metrics[f"export/{target}/fp32/parity"] < 1e-4
        assert metrics[f"export/{target}/fp32/argmax_agreement"] > 0.999
    assert metrics["export/float/mean_iou"] == pytest.approx(expected["mean_iou"])


def test_an_artefact_of_its_own_runtime_is_judged_by_hand(shipped: tuple[Trained, RunFolder]) -> None:
    trained, folder = shipped
    predict = ExecuTorch().load(folder.path / "export" / "executorch", "int8", ("model_int8.pte",))
    found = {key: float(rows_of(folder)["executorch_int8"][key]) for key in ("mean_iou", "accuracy", "loss")}
    assert found == pytest.approx(by_hand(trained, predict), rel=1e-4)


def test_the_table_is_counted_again_from_the_kept_predictions(shipped: tuple[Trained, RunFolder]) -> None:
    _, folder = shipped
    reference = read_predictions(folder, "float")
    for name, row in rows_of(folder).items():
        if name in ("chance", "majority"):
            continue
        kept = read_predictions(folder, name)
        assert float(row["mean_iou"]) == pytest.approx(kept.mean_iou)
        assert int(row["items"]) == len(kept) == 8
        if name != "float":
            assert int(row["differs"]) == int((kept.digest != reference.digest).sum())
            assert float(row["change"]) == pytest.approx(kept.mean_iou - reference.mean_iou)
            assert float(row["change_low"]) <= float(row["change"]) <= float(row["change_high"])
    assert [row["city"] for row in folder.read_table("predictions_executorch_int8")[:2]] == ["Bonn", "Ulm"]


def test_the_majority_is_trainings_most_frequent_class_everywhere(shipped: tuple[Trained, RunFolder]) -> None:
    trained, folder = shipped
    often = int(trained.data.class_pixels("train").argmax())
    of_test = trained.data.class_pixels("test")
    row, share = rows_of(folder)["majority"], (of_test[often] / of_test.sum()).item()
    assert float(row["accuracy"]) == pytest.approx(share)
    assert float(row["mean_iou"]) == pytest.approx(share / int((of_test > 0).sum()))
    assert float(rows_of(folder)["chance"]["accuracy"]) == 1 / 4


def test_the_card_speaks_of_pixels_and_of_groups_of_images(shipped: tuple[Trained, RunFolder]) -> None:
    _, folder = shipped
    card = (folder.path / "export" / "onnx" / "MODEL_CARD.md").read_text()
    assert "The output is a score of every pixel for each of: road, tree, sky, car." in card
    assert "| form | loss | accuracy | mean_iou |" in card
    assert "On 8 items of the test split" in card
    assert "nothing is known of other cameras, places, light or weather" in card
    bonn = read_predictions(folder, "onnx_fp32").at([0, 2, 4, 6]).accuracy
    assert f"| Bonn | 4 | {bonn:.1%} |" in card
    assert "free" not in card


def test_an_exported_folder_is_judged_again_alone(shipped: tuple[Trained, RunFolder]) -> None:
    trained, folder = shipped
    place = folder.path / "export" / "executorch"
    found = judge_again(place, read_manifest(place), trained.config)
    for form in ("fp32", "int8"):
        assert found[f"{form}/mean_iou"] == pytest.approx(float(rows_of(folder)[f"executorch_{form}"]["mean_iou"]))


def test_int8_steps_are_those_of_the_logits_before_they_are_resized(shipped: tuple[Trained, RunFolder]) -> None:
    _, folder = shipped
    form = read_manifest(folder.path / "export" / "executorch")["forms"]["int8"]
    assert 0 < form["lsb"] < 1
    assert form["parity"] <= 2.001 * form["lsb"]


def test_whole_numbers_are_judged_by_the_same_lines() -> None:
    """Where the arithmetic has no form for the network it is a sentence; the score takes masks."""
    with pytest.raises(UserError, match="upsample"):
        evaluate_in(trained_segmenter(), "int8")


@pytest.fixture(scope="module", params=sorted(EXPORTERS))
def free(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Trained, RunFolder]:
    """A network traced at 24 x 32, and judged on images of 40 x 56."""
    node = {request.param: NODES[request.param] | FREE}
    trained, folder = exporting(trained_segmenter(size=(40, 56)), node), run_folder(tmp_path_factory.mktemp("free"))
    ship(trained, {request.param: EXPORTERS[request.param](**FREE)}, folder, [])
    return request.param, trained, folder


def test_a_free_size_gives_the_same_mean_iou_at_other_sizes(free: tuple[str, Trained, RunFolder]) -> None:
    target, trained, folder = free
    row = rows_of(folder)[f"{target}_fp32"]
    assert {key: float(row[key]) for key in ("mean_iou", "accuracy", "loss")} == pytest.approx(
        by_hand(trained), abs=1e-4
    )
    place = folder.path / "export" / target
    assert [form["sizes"] for form in read_manifest(place)["forms"].values()] == ["16 to 64 pixels"]
    assert "Height and width are free: 16 to 64 pixels." in (place / "MODEL_CARD.md").read_text()
    again = judge_again(place, read_manifest(place), replace(trained.config, trust=[target]))
    assert again["fp32/mean_iou"] == pytest.approx(float(row["mean_iou"]))


@pytest.mark.parametrize("size", [(16, 16), (17, 63), (64, 64), (33, 20)])
def test_a_free_size_runs_every_side_within_its_bounds(
    free: tuple[str, Trained, RunFolder], size: tuple[int, int]
) -> None:
    target, trained, folder = free
    file = next((folder.path / "export" / target).glob("model_fp32.*"))
    predict = EXPORTERS[target]().load(file.parent, "fp32", (file.name,))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(predict(images), trained.model(images), atol=1e-5)


def test_a_file_of_one_size_says_so_when_it_gets_another(shipped: tuple[Trained, RunFolder]) -> None:
    _, folder = shipped
    for target, name in (("onnx", "model_fp32.onnx"), ("executorch", "model_fp32.pte")):
        predict = EXPORTERS[target]().load(folder.path / "export" / target, "fp32", (name,))
        with pytest.raises(UserError, match=rf"{name} does not run inputs of \[1, 3, 40, 56\]: "):
            predict(torch.zeros(1, 3, 40, 56))


def test_other_sizes_than_the_models_are_refused_before_training_and_before_an_export(tmp_path: Path) -> None:
    trained, folder = exporting(trained_segmenter(size=(40, 56)), {"onnx": NODES["onnx"]}), run_folder(tmp_path)
    sentence = (
        r"export.onnx: the model is exported for images of 24 x 32 \(model.input_shape\), but the test split gives it "
        r"40 x 56; make them the same, or set export.onnx.dynamic=true"
    )
    with pytest.raises(UserError, match=sentence):
        check_exports(trained.config, trained)
    with pytest.raises(UserError, match=sentence):
        ship(trained, {"onnx": Onnx()}, folder, [])
    with pytest.raises(UserError, match=r"free from 16 to 48 pixels, but the test split gives the model 40 x 56"):
        ship(trained, {"onnx": Onnx(dynamic=True, sides=[16, 48])}, folder, [])
    assert not (folder.path / "export" / "onnx").exists()


def test_windows_of_the_models_size_are_exported_at_one_size(tmp_path: Path) -> None:
    """The artefact is called with windows, each compared with the model's answer, and the mask is put together."""
    slide = {"mode": "slide", "window": list(SIZE), "stride": [12, 16]}
    trained = exporting(trained_segmenter(size=(40, 56), **slide), {"onnx": NODES["onnx"]})
    folder = run_folder(tmp_path)
    ship(trained, {"onnx": Onnx(["fp32"])}, folder, [])
    found = trained.task.evaluate(trained.model, trained.data.test_dataloader())
    assert float(rows_of(folder)["onnx_fp32"]["mean_iou"]) == pytest.approx(found["mean_iou"], abs=1e-4)
    assert found["mean_iou"] != pytest.approx(by_hand(trained)["mean_iou"], abs=1e-6)
    place = folder.path / "export" / "onnx"
    again = judge_again(place, read_manifest(place), trained.config)
    assert again["fp32/mean_iou"] == pytest.approx(found["mean_iou"], abs=1e-4)


def test_parity_and_agreement_are_of_every_window() -> None:
    slide = {"mode": "slide", "window": list(SIZE), "stride": list(SIZE)}
    trained = trained_segmenter(size=(48, 32), **slide)
    first = trained.data.splits["test"].images[0, :, :24]

    def predict(images: Tensor) -> Tensor:
        logits = trained.model(images).clone()
        for place in (images == first).flatten(1).all(1).nonzero().flatten().tolist():
            logits[place, 3, 5, 6] += 50
        return logits

    judged = judge(Artefact("fp32", (), predict, trained.model, 1e-4), trained.task, trained.data.test_dataloader())
    assert judged.parity == pytest.approx(50)
    assert judged.answers == 8 * 48 * 32
    assert judged.same == judged.answers - 1
    assert judged.predictions.same(judged.reference).tolist() == [False] + [True] * 7


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"formats": ["int8"]}, r"export.onnx.formats=\['int8'\]: int8 is written at one size"),
        ({"sides": [64, 32]}, r"export.onnx.sides=\[64, 32\] must be the least and the most"),
        ({"sides": [32]}, r"export.onnx.sides=\[32\]"),
        ({"sides": [0, 32]}, r"export.onnx.sides=\[0, 32\]"),
        ({"step": 0}, r"export.onnx.step=0 must be at least 1 pixel"),
        (
            {"sides": [33, 95], "step": 32},
            r"export.onnx.sides=\[33, 95\] holds no two multiples of export.onnx.step=32",
        ),
    ],
)
def test_settings_of_a_free_size_that_cannot_be_are_sentences(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Onnx(**{"dynamic": True, **settings})


def test_a_free_size_is_for_images_and_holds_the_example() -> None:
    with pytest.raises(UserError, match=r"dynamic=true is for a model of images .* takes \[\[1, 6\]\]"):
        Onnx(dynamic=True).check(Net(), (torch.zeros(1, 6),))
    net = trained_segmenter().model
    with pytest.raises(UserError, match=r"model.input_shape=\[3, 24, 32\] is not within export.onnx.sides=\[64, 512\]"):
        Onnx(dynamic=True).check(net, (torch.zeros(1, 3, *SIZE),))
    with pytest.raises(UserError, match=r"export.onnx.step=16, height and width of 16 to 64 pixels, multiples of 16"):
        Onnx(dynamic=True, sides=[16, 64], step=16).check(net, (torch.zeros(1, 3, *SIZE),))


def test_a_model_that_needs_its_own_size_cannot_be_free() -> None:
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[2] != 24:
                raise ValueError("24 rows only")
            return images

    with pytest.raises(UserError, match="export.onnx: Fixed cannot be exported.*height"):
        Onnx(**FREE).check(Fixed(), (torch.zeros(1, 3, *SIZE),))


def test_sides_are_free_in_steps(tmp_path: Path) -> None:
    model = trained_segmenter().model
    (artefact,) = Pt2(dynamic=True, sides=[16, 64], step=8).export(model, (torch.zeros(1, 3, *SIZE),), None, tmp_path)
    for size in ((16, 64), (24, 40)):
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            torch.testing.assert_close(artefact.predict(images), model(images), rtol=0, atol=1e-5)


def test_bounds_that_a_graph_does_not_hold_for_are_named() -> None:
    class Large(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            torch._check(images.shape[2] >= 20)
            return images + images[:, :, 19:20]

    with pytest.raises(UserError, match="Large cannot be .*as free as that: its graph holds from 20 to"):
        Onnx(**FREE).check(Large(), (torch.zeros(1, 3, *SIZE),))


def test_an_artefact_of_other_answers_is_not_shipped(tmp_path: Path) -> None:
    """A logit that is 0.01 off at one pixel of one image is more than the gate allows."""

    class Off(Onnx):
        def export(self, *args: Any) -> list[Artefact]:
            (one,) = super().export(*args)
            spot = F.one_hot(torch.tensor(5), 24 * 32).view(24, 32)
            return [Artefact(one.name, one.files, lambda x: one.predict(x) + 0.01 * spot, one.reference, one.tolerance)]

    folder = run_folder(tmp_path)
    with pytest.raises(UserError, match=r"outputs of fp32 differ from the model's by 0.01 on held-out data"):
        ship(trained_segmenter(), {"onnx": Off(["fp32"])}, folder, [])
    assert not (folder.path / "export" / "onnx").exists()


def hrvit(size: tuple[int, int]) -> nn.Module:
    torch.manual_seed(0)
    model = segmenter("hrvit_nano", num_classes=4, head_channels=16, input_shape=[3, *size]).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.ones_(module.weight)  # else attention adds nothing
    return model


@pytest.mark.slow
@pytest.mark.parametrize("target", ["executorch", "onnx"])
def test_hrvit_is_exported_at_one_size(target: str, tmp_path: Path) -> None:
    """Sides that are no multiples of its windows, so that stripes are cut."""
    model, example = hrvit((40, 56)), (torch.zeros(1, 3, 40, 56),)
    (artefact,) = EXPORTERS[target](["fp32"]).export(model, example, None, tmp_path)
    images = torch.randn(2, 3, 40, 56)
    with torch.inference_mode():
        assert (artefact.predict(images) - model(images)).abs().max() < artefact.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("target", ["executorch", "onnx"])
def test_hrvit_is_exported_for_every_size(target: str, tmp_path: Path) -> None:
    model, example = hrvit((40, 56)), (torch.zeros(1, 3, 40, 56),)
    (artefact,) = EXPORTERS[target](dynamic=True, sides=[33, 160]).export(model, example, None, tmp_path)
    for size in ((40, 56), (33, 160), (97, 65), (128, 128)):
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            assert (artefact.predict(images) - model(images)).abs().max() < artefact.tolerance, size
