"""The job and the verb `cost`, from the command line to the tables."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, write_texts
from conftest import SMALL as SMALL_RUN

from edgetrain.cli import main
from edgetrain.folder import RunFolder

SMALL = ["model=timm", "model.name=mobilenetv3_small_050", "input=[1,3,32,32]"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["cost", *arguments]) == 2
    return capsys.readouterr().err


def test_a_timm_model_is_costed_layer_by_layer_on_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", *SMALL, "out=run"]) == 0
    printed = capsys.readouterr().out
    assert "conv_stem" in printed and "modelled, not measured" in printed
    folder = RunFolder.open("run")
    metrics = folder.read_json("metrics.json")
    rows = folder.read_table("cost_layers")
    assert metrics["cost/macs"] == sum(int(row["macs"]) for row in rows)
    for device in ("cortex_m7", "bitfusion", "nvdla"):
        times = [float(row[f"{device} ms"]) for row in rows if row[f"{device} ms"]]
        assert metrics[f"cost/{device}/milliseconds"] == pytest.approx(sum(times), rel=1e-9)
    assert not any(row["kind"] == "norm" for row in rows)
    assert "Which layers cost what" in (folder.path / "report.html").read_text()


def test_a_recipe_that_costs_keeps_its_input_and_one_that_trains_gives_its_own(elsewhere: Path) -> None:
    assert main(["cost", "recipe=not_all_ops", "hardware=[nvdla]", "--smoke", "out=costs"]) == 0
    costs = RunFolder.open("costs").read_json("metrics.json")
    assert costs["cost/macs"] < 1.82e9 * (64 / 224) ** 2 * 1.1  # resnet18 at 64 pixels, of 1.82 G at 224
    write_texts(elsewhere / "texts")
    assert main(["cost", "recipe=layerskip_llama", "hardware=[nvdla]", *SMALL_RUN, "out=trains"]) == 0
    rows = RunFolder.open("trains").read_table("cost_components")
    assert [row["component"] for row in rows] == ["prefill", "decode"]
    assert not (elsewhere / "trains" / "checkpoints").exists()


def test_a_written_workload_costs_what_the_model_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", *SMALL, "out=model", "hardware=[cortex_m7]"]) == 0
    assert main(["cost", "table=model/workload.csv", "out=csv", "hardware=[cortex_m7]"]) == 0
    assert main(["cost", "table=model/workload.json", "out=json", "hardware=[cortex_m7]"]) == 0
    metrics = [RunFolder.open(name).read_json("metrics.json") for name in ("model", "csv", "json")]
    assert metrics[0] == metrics[1] == metrics[2]


def test_a_device_of_ones_own_is_a_file(elsewhere: Path) -> None:
    (elsewhere / "half.yaml").write_text(
        "defaults: [cortex_m7]\nname: half\nclock_hz: 108000000\nram_bytes: 4096\n"
        "sources: {clock_hz: half of the other's}"
    )
    assert main(["cost", *SMALL, "hardware=[cortex_m7,half.yaml]", "out=run"]) == 0
    metrics = json.loads((elsewhere / "run/metrics.json").read_text())
    assert metrics["cost/half/milliseconds"] == pytest.approx(2 * metrics["cost/cortex_m7/milliseconds"])
    assert metrics["cost/half/fits"] == 0  # a result, not an error
    assert yaml.safe_load((elsewhere / "run/config.yaml").read_text())["hardware"]["half"]["name"] == "half"


def test_the_documentation_s_own_board_is_costed(elsewhere: Path) -> None:
    text = (ROOT / "docs" / "hardware.md").read_text()
    (elsewhere / "my_board.yaml").write_text(re.search(r"```yaml\n(# my_board.yaml\n.*?)```", text, re.S)[1])
    command = re.search(r"python -m edgetrain (cost .*my_board.yaml\].*)", text)[1]
    assert main([*shlex.split(command), "out=run"]) == 0
    metrics = json.loads((elsewhere / "run/metrics.json").read_text())
    times = [metrics[f"cost/{name}/milliseconds"] for name in ("cortex_m7", "my_board")]
    assert times[0] / times[1] == pytest.approx(480 / 216)


TABLE = """Network one { Layer a { Type: CONV Dimensions { K: 8, C: 3, R: 3, S: 3, Y: 10, X: 10 } } }
Network two { Layer b { Type: CONV Dimensions { K: 4, C: 8, R: 1, S: 1, Y: 8, X: 8 } } }
"""


def test_networks_of_a_table_are_costed_together_or_apart(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "nets.m").write_text(TABLE)
    macs = {"one": 8 * 3 * 9 * 64, "two": 4 * 8 * 64}
    for name, expected in {**macs, None: sum(macs.values())}.items():
        chosen = [f"network={name}"] if name else []
        assert main(["cost", "table=nets.m", *chosen, "hardware=[nvdla]", f"out={name}"]) == 0
        assert RunFolder.open(str(name)).read_json("metrics.json")["cost/macs"] == expected
    assert "the table nets has one, two" in refusal(capsys, "table=nets.m", "network=three", "hardware=[nvdla]")


def test_bad_input_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to cost; name a model" in refusal(capsys)
    assert "say the shape of the model's input" in refusal(capsys, "model=timm", "model.name=resnet18")
    assert "must be the sizes of one input" in refusal(capsys, "model=timm", "model.name=resnet18", "input=[0,3,8,8]")
    assert "timm has no such model (did you mean" in refusal(capsys, "model=timm", "model.name=resnet_18", SMALL[2])
    assert "hardware has no option 'cortex_m9'" in refusal(capsys, *SMALL, "hardware=[cortex_m9]")
    assert "name devices, as in hardware=" in refusal(capsys, *SMALL, "hardware=[]")
    assert "board.yaml: there is no such file" in refusal(capsys, *SMALL, "hardware=[board.yaml]")
    assert "cannot be exported at mobilenetv3.py" in refusal(capsys, SMALL[0], SMALL[1], "input=[1,4,32,32]")
