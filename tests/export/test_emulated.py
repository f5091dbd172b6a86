"""An emulated processor has to say what the artefact says here; its instructions stand in tables."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_classifier import run_folder, trained_net

from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact, Emulation
from edgetrain.export.shipping import ship

LAYERS = [
    {"layer": "conv", "kind": "conv", "macs": 100, "instructions": 700},
    {"layer": "fc", "kind": "linear", "macs": 20, "instructions": 41},
]


class Emulating:
    """Its artefact is the model; its processors run it on `items` items, after `change`."""

    formats: tuple[str, ...] | None = ("fp32",)
    opening_runs_code = False

    def __init__(self, items: int = 3, change: float = 0.0) -> None:
        self.items, self.change, self.seen = items, change, 0

    def export(self, model: nn.Module, example_inputs: Any, calibration: Any, out: Path) -> list[Artefact]:
        torch.save(model.state_dict(), out / "weights.pt")

        def run(x: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
            self.seen += len(x)
            return model(x) + self.change, LAYERS

        plain = [row | {"instructions": 10 * row["instructions"]} for row in LAYERS]
        emulations = [
            Emulation("cortex_m4", "portable", self.items, run, {"flags": "-O3"}),
            Emulation("cortex_m4", "plain", 1, lambda x: (model(x), plain)),
        ]
        return [replace(Artefact("fp32", ("weights.pt",), model, model, 0.0), emulations=emulations)]


def test_a_processor_has_a_row_counted_from_its_own_items(tmp_path: Path) -> None:
    trained, folder = trained_net(), run_folder(tmp_path)
    exporter = Emulating(items=3)
    ship(trained, {"c": exporter}, folder, [])
    assert exporter.seen == 3
    rows = {row["row"]: row for row in csv.DictReader((folder.path / "tables/artefacts.csv").open())}
    kept = list(csv.DictReader((folder.path / "tables/predictions_c_fp32_cortex_m4.csv").open()))
    whole = list(csv.DictReader((folder.path / "tables/predictions_float.csv").open()))
    assert [row["predicted"] for row in kept] == [row["predicted"] for row in whole[:3]]
    right = sum(row["target"] == row["predicted"] for row in whole[:3])
    assert rows["c_fp32_cortex_m4"]["items"] == "3"
    assert float(rows["c_fp32_cortex_m4"]["accuracy"]) == pytest.approx(right / 3)
    assert rows["c_fp32_cortex_m4"]["differs"] == "0"
    assert rows["c_fp32_cortex_m4"]["instructions"] == "741"


def test_instructions_stand_by_layer_processor_and_kernels(tmp_path: Path) -> None:
    trained, folder = trained_net(), run_folder(tmp_path)
    ship(trained, {"c": Emulating()}, folder, [])
    rows = list(csv.DictReader((folder.path / "tables/instructions_c.fp32.csv").open()))
    assert [row["layer"] for row in rows] == ["conv", "fc", "total"]
    assert [row["cortex_m4 portable"] for row in rows] == ["700", "41", "741"]
    assert [row["cortex_m4 plain"] for row in rows] == ["7000", "410", "7410"]
    assert rows[-1]["macs"] == "120"
    metrics = folder.read_json("metrics.json")
    assert metrics["export/c/fp32/cortex_m4/portable/instructions"] == 741
    manifest = json.loads((folder.path / "export/c/manifest.json").read_text())
    (ours, plain) = manifest["forms"]["fp32"]["emulated"]
    assert (ours["items"], ours["flags"], ours["layers"]) == (3, "-O3", LAYERS)
    assert (plain["items"], plain["instructions"]) == (1, 7410)
    assert (folder.path / "figures/instructions_c.fp32.png").is_file()


def test_other_numbers_than_here_fail_and_leave_nothing(tmp_path: Path) -> None:
    trained, folder = trained_net(), run_folder(tmp_path)
    with pytest.raises(UserError, match="fp32 on cortex_m4 with portable kernels gives other numbers .* for 2 of 2"):
        ship(trained, {"c": Emulating(items=2, change=1e-6)}, folder, [])
    assert not (folder.path / "export/c").exists()


def test_more_items_than_are_held_out_are_all_of_them(tmp_path: Path) -> None:
    trained, folder = trained_net(), run_folder(tmp_path)
    exporter = Emulating(items=10_000)
    ship(trained, {"c": exporter}, folder, [])
    held_out = len(list(csv.DictReader((folder.path / "tables/predictions_float.csv").open())))
    assert exporter.seen == held_out


def test_an_export_without_emulation_leaves_no_instructions_of_the_one_before(tmp_path: Path) -> None:
    trained, folder = trained_net(), run_folder(tmp_path)
    ship(trained, {"c": Emulating(), "c_q7": Emulating()}, folder, [])
    silent = Emulating()
    silent.export = lambda *given: [replace(artefact, emulations=()) for artefact in Emulating.export(silent, *given)]
    ship(trained, {"c": silent}, folder, [])
    assert sorted(path.name for path in folder.path.glob("*/instructions_*")) == [
        "instructions_c_q7.fp32.csv",
        "instructions_c_q7.fp32.png",
    ]
    assert {item["name"] for item in folder.report_items() if "instructions" in item["name"]} == {
        "instructions_c_q7.fp32"
    }
