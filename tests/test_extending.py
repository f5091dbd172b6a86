"""docs/extending.md, followed to the letter in a folder outside the project."""

import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

from edgetrain.folder import RunFolder


def blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "extending.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_every_file_and_command_works_as_written(tmp_path: Path) -> None:
    (tmp_path / "my_parts.py").write_text("\n\n".join(blocks("python")))
    recipe, option = blocks("yaml")
    for path, text in (("recipes/my_words.yaml", recipe), ("conf/model/bigram.yaml", option)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    commands = [line for block in blocks("console") for line in block.splitlines() if line.startswith("python ")]
    assert len(commands) == 3
    outputs = []
    for command in commands:
        arguments = [sys.executable, *command.split()[1:]]
        ended = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        outputs.append(ended.stdout)
    assert "my_words  A bigram model learns to count." in outputs[0]
    metrics = RunFolder.open(tmp_path / "counted").read_json("metrics.json")
    assert metrics["test/accuracy"] > 0.9  # counting is all that a bigram has to learn
    assert f"{metrics['test/loss']:.4g}" in outputs[2]
    refused = subprocess.run(
        [sys.executable, "-m", "edgetrain", "eval", "run=counted"], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "trust=[my_parts]" in refused.stderr
