"""The verbs that answer at once, and those that read a finished run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from edgetrain.folder import RunFolder

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["show", "recipe=layerskip_llama"], ["new", "mine"]])
def test_light_verbs_import_no_torch(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; from edgetrain.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'transformers', 'datasets'} & sys.modules.keys(); sys.exit(code or bool(heavy))"
    )
    ended = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_help_names_every_verb(edgetrain: Call) -> None:
    from edgetrain.cli import VERBS

    code, out, _ = edgetrain("--help")
    assert code == 0
    assert all(f"\n  {verb} " in out or f"\n  {verb}\n" in out for verb in VERBS)


def test_list_shows_every_recipe_in_one_sentence(edgetrain: Call) -> None:
    _, out, _ = edgetrain("list")
    shown = {line.split()[0] for line in out.splitlines()}
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} <= shown
    assert all(line.endswith(".") for line in out.splitlines())


def test_list_takes_a_pattern(edgetrain: Call) -> None:
    assert edgetrain("list", "skip_paper")[1].startswith("layerskip_paper ")
    code, _, err = edgetrain("list", "nonsense")
    assert code == 2
    assert "no recipe matches 'nonsense'" in err


def test_new_copies_a_recipe_that_can_be_shown(edgetrain: Call, workplace: Path) -> None:
    code, out, _ = edgetrain("new", "mine", "from=layerskip_llama")
    assert code == 0
    assert "python -m edgetrain recipe=mine" in out
    assert "recipe=mine" in (workplace / "recipes" / "mine.yaml").read_text()
    assert edgetrain("show", "recipe=mine")[0] == 0
    assert "is there already" in edgetrain("new", "mine")[2]
    assert "cannot name a recipe" in edgetrain("new", "a/b")[2]


def test_generate_streams_a_continuation(edgetrain: Call, finished_run: RunFolder) -> None:
    run = f"run={finished_run.path}"
    code, greedy, err = edgetrain("generate", run, "prompt=def f", "tokens=12")
    assert code == 0, err
    assert greedy.startswith("def f")
    assert "tokens/s" in err
    code, drafted, err = edgetrain("generate", run, "prompt=def f", "tokens=12", "exit_layer=2", "draft=3")
    assert code == 0, err
    assert drafted == greedy
    assert "of drafts accepted" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prompt=x", "exit_layer=9", "draft=2"], "exit_layer=9 is outside 1 to 3"),
        (["prompt=x", "exit_layer=0", "draft=2"], "exit_layer=0 is outside 1 to 3"),
        (["prompt=x", "exit_layer=0"], "exit_layer=0 is outside 1 to 4"),
        (["prompt=x", "exit_layer=2", "draft=0"], "draft_length=0 must be at least 1"),
        (["prompt=x", "draft=2"], "needs exit_layer=E"),
        (["prompt=" + "long words " * 40], "leaves no room in the model's context of 32"),
        (["prompt=x", "tokens=many"], "tokens=many is not a whole number"),
        (["prompt=x", "weights=int7"], "weights=int7 is no format (did you mean 'int8'?)"),
        (["prompt=x", "compiled=yes"], "compiled=yes is neither true nor false"),
        (["prompt=x", "draft_weights=int8"], "draft_weights= needs exit_layer=E and draft=D"),
        (["prompt=x", "weights=int8", "exit_layer=2"], "exit_layer=2 without draft=D exits early"),
        (["prompt=x", "draft=auto", "exit_layer=9"], "exit_layer=9 is outside 1 to 3"),
        ([], "say what to continue"),
    ],
)
def test_a_bad_request_is_one_sentence(
    edgetrain: Call, finished_run: RunFolder, arguments: list[str], words: str
) -> None:
    code, _, err = edgetrain("generate", f"run={finished_run.path}", *arguments)
    assert code == 2, err
    assert words in err
    assert "Traceback" not in err


def test_measure_and_report_run_again_from_a_finished_run(
    edgetrain: Call, finished_run: RunFolder, workplace: Path
) -> None:
    import shutil

    shutil.copytree(finished_run.path, workplace / "copy")
    (workplace / "copy" / "report.html").unlink()
    assert edgetrain("measure", "run=copy", "measure=[exits]", "measure.exits.batches=1")[0] == 0
    assert (workplace / "copy" / "report.html").is_file()
    (workplace / "copy" / "report.html").unlink()
    assert edgetrain("report", "run=copy")[0] == 0
    assert (workplace / "copy" / "report.html").is_file()


def test_doctor_says_what_is_missing_and_the_fix(edgetrain: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetrain import doctor

    monkeypatch.setattr(doctor, "REQUIRED", {"torch": "torch"})
    monkeypatch.setattr(doctor, "OPTIONAL", {"no_such_module": ("nothing", "deploy")})
    code, out, _ = edgetrain("doctor")
    assert code == 0
    assert 'not installed; pip install -c constraints.txt -e ".[deploy]"' in out
    assert out.endswith("fit\n")
    monkeypatch.setattr(doctor, "REQUIRED", {"no_such_module": "nothing"})
    code, out, _ = edgetrain("doctor")
    assert code == 1
    assert "does not load: No module named 'no_such_module'" in out


def test_the_wheel_lists_and_smokes_from_an_empty_folder(tmp_path: Path) -> None:
    """conf/ and recipes/ travel inside the wheel; it is put before the checkout on the path."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    empty.mkdir()

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, "-m", "edgetrain", *arguments]
        ended = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert "layerskip_llama " in run("list")
    assert (site / "edgetrain" / "recipes" / "layerskip_llama.yaml").is_file()
    run("recipe=layerskip_llama", "--smoke", "out=run")
    assert (empty / "run" / "report.html").is_file()
