"""Every command of the README, in its order, in one empty folder; trainings are shrunk with --smoke.

Of a training by itself the settings are composed alone: `test_all_recipes` runs every recipe in small.
"""

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, write_texts
from sets import sets

from edgetrain.cli import main
from edgetrain.compose import compose

README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("python -m edgetrain")]
    return [shlex.split(line)[3:] for line in lines]


def alone(arguments: list[str], later: list[list[str]]) -> bool:
    """Whether a training neither reads what is here nor leaves what a later command reads, nor asks for a smoke run."""
    values = [argument.partition("=")[2] for argument in arguments]
    folders = [value for argument, value in zip(arguments, values, strict=True) if argument.startswith("out=")]
    read = any(folder in argument for folder in folders for other in later for argument in other)
    return not read and "--smoke" not in arguments and not any(value and Path(value).exists() for value in values)


def test_every_command_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "my_texts")
    monkeypatch.setenv("EDGETRAIN_DATA", str(sets(tmp_path)))
    monkeypatch.setattr("edgetrain.doctor.REQUIRED", {"torch": "torch"})  # importing all takes half a minute
    monkeypatch.setattr("edgetrain.doctor.OPTIONAL", {})
    typed = commands()
    assert len(typed) == 32
    for place, arguments in enumerate(typed):
        if arguments[0].startswith("recipe=") and alone(arguments, typed[place + 1 :]):
            assert compose(arguments).job["_target_"], arguments
            continue
        trains = (arguments[0].startswith("recipe=") or arguments[0] == "sweep") and "--smoke" not in arguments
        shrunk = ["--smoke", *(["retrain=1"] if arguments[0] == "sweep" else [])] if trains else []
        assert main([*arguments, *shrunk]) == 0, arguments


def test_the_scripts_are_there_and_executable() -> None:
    named = set(re.findall(r"^(scripts/\w+)", README, flags=re.MULTILINE))
    assert named == {"scripts/run", "scripts/test", "scripts/qemu_run"}
    assert all((ROOT / name).stat().st_mode & 0o111 for name in named)


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_python_snippets_name_what_exists() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        for line in block.splitlines():
            if line.startswith("from edgetrain"):
                exec(line, {})
