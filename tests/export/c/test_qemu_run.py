"""scripts/qemu_run: answers, a row a layer, and one sentence for bad input."""

import re
import subprocess
from pathlib import Path

import pytest
from c_folders import emulated, exported, floats
from integer_programs import random_network, random_program

from edgetrain.export.c.arena import workload
from edgetrain.export.c.qemu_run import main as qemu_run

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(not (ROOT / ".venv/bin/python").exists(), reason="the script would install an environment")
def test_the_script_runs_from_any_folder(tmp_path):
    done = subprocess.run(
        [ROOT / "scripts/qemu_run", "absent", "cortex_m4"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: there is no folder absent; give the export/c folder of a run\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{c}", "cortex_m9"], "'cortex_m9' is no core .* cortex_m3, cortex_m4, cortex_m7, cortex_m55"),
        (
            ["{c}", "cortex_m4", "--kernels", "fast"],
            "'fast' is no set of kernels; take one of portable, plain, cmsis_nn",
        ),
        (["{c}/absent", "cortex_m4"], "there is no folder .*/absent; give the export/c folder of a run"),
        (["{c}/..", "cortex_m4"], "holds no network in C that was exported here"),
        (["{c}", "cortex_m4", "--kernels", "cmsis_nn"], "need cmsis_nn and cmsis_core, checkouts of"),
        (
            ["{c}", "cortex_m4", "{c}/absent"],
            "cannot read .*/absent: No such file or directory; give a file of float32",
        ),
        (["{c}", "cortex_m4", "{c}/empty", "--kernels", "plain"], "empty is empty; give at least one input"),
        (["{c}", "cortex_m4", "{c}/model.h", "--kernels", "plain"], "stopped under emulation: the last input has"),
        (["{c}"], "the following arguments are required: core; usage: "),
    ],
)
@emulated
def test_bad_input_of_the_command_is_one_sentence(arguments, message, tmp_path, capsys):
    folder = exported(random_program(1), tmp_path / "c")
    (folder / "empty").write_bytes(b"")
    code = qemu_run([word.format(c=folder) for word in arguments])
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and re.match(f"error: .*{message}", err)


@emulated
def test_a_damaged_header_is_one_sentence(tmp_path, capsys):
    folder = exported(random_program(1), tmp_path / "c")
    header = folder / "model.h"
    header.write_text("".join(line for line in header.open() if "INPUT_BYTES" not in line))
    assert qemu_run([str(folder), "cortex_m4"]) == 2
    assert re.match(r"error: .*model.h was damaged; copy the whole folder again", capsys.readouterr().err)


@emulated
def test_the_command_prints_labels_and_a_row_a_layer(tmp_path, capsys):
    network = random_network(3)
    classes = network.program.values[network.program.output].bytes
    labels = [f"label{index}" for index in range(classes)]
    folder = exported(network.program, tmp_path / "c", "keywords", labels)
    x = floats(network, 4, seed=1)
    (tmp_path / "inputs.bin").write_bytes(x.numpy().tobytes())
    assert qemu_run([str(folder), "cortex_m4", str(tmp_path / "inputs.bin"), "--kernels", "plain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == [labels[index] for index in network(x).argmax(1).tolist()]
    for layer in workload(network.program):
        (row,) = [line.split() for line in lines if line.split()[:1] == [layer.name]]
        assert row[2] == f"{layer.macs:,}" or row[2] == str(layer.macs)
    assert "instructions of the last input" in "\n".join(lines)
    assert lines[-1].startswith("Instructions, not cycles and not energy")
    assert qemu_run([str(folder), "cortex_m4", "--kernels", "plain"]) == 0
    assert "instructions of an input of zeros" in capsys.readouterr().out
