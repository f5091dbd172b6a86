"""The main story, from a command line to a run folder: contracts, bad input, resume."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, SMALL

from edgetrain.folder import RunFolder

Call = Callable[..., tuple[int, str, str]]
RUN = ["run", "recipe=layerskip_llama", *SMALL, "measure=[]", "export=[]"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_run_becomes_one_folder(finished_run: RunFolder) -> None:
    there = {path.name for path in finished_run.path.iterdir()}
    assert {
        "config.yaml",
        "environment.json",
        "metrics.json",
        "report.html",
        "report.md",
        "checkpoints",
        "logs",
    } <= there
    metrics, environment = finished_run.read_json("metrics.json"), finished_run.read_json("environment.json")
    assert metrics["steps"] == 6
    assert metrics["tokens_trained"] == 6 * 4 * 32
    assert {"test/loss", "tokens_per_s", "corpus_sha256"} <= metrics.keys()
    assert {"command", "commit", "processor", "seed", "finished", "packages"} <= environment.keys()
    assert "exits/loss_last" in metrics


def test_a_checkpoint_holds_plain_containers(finished_run: RunFolder) -> None:
    checkpoint = torch.load(finished_run.checkpoints / "last.ckpt", weights_only=True)
    assert checkpoint["edgetrain"]["plans"] == {"layerskip": {"layers": 4}}
    assert checkpoint["edgetrain"]["config"] == yaml.safe_load((finished_run.path / "config.yaml").read_text())


def test_the_last_checkpoint_is_that_of_the_last_step(
    edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when an earlier one fell due: Lightning then writes none at the end."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    monkeypatch.setattr(ModelCheckpoint, "on_train_end", lambda *_: None)
    monkeypatch.setattr(ModelCheckpoint, "on_train_epoch_end", lambda *_: None)
    assert edgetrain(*RUN, "out=run")[0] == 0
    last = torch.load(workplace / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6


def test_the_same_seed_gives_the_same_weights_and_another_does_not(edgetrain: Call, workplace: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert edgetrain(*RUN, f"out={name}", f"seed={seed}")[0] == 0
    assert same_weights(workplace / "a", workplace / "b")
    assert not same_weights(workplace / "a", workplace / "c")


def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(edgetrain: Call, workplace: Path) -> None:
    whole = ["trainer.max_steps=8", "task.total_steps=8", "method.layerskip.total_steps=8"]
    parts = ["trainer.max_steps=3", *whole[1:]]
    assert edgetrain(*RUN, "out=whole", *whole)[0] == 0
    assert edgetrain(*RUN, "out=parts", *parts)[0] == 0
    code, _, err = edgetrain("run", "resume=parts", "trainer.max_steps=8")
    assert code == 0, err
    assert same_weights(workplace / "whole", workplace / "parts")
    curves = RunFolder(workplace / "parts").training_curves()
    assert [step for step, _ in curves] == sorted(step for step, _ in curves)


def test_a_job_without_a_model_leaves_a_folder_and_a_report(
    edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETRAIN_RECIPES", str(ROOT / "tests" / "recipes"))
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "recipes"))
    code, _, err = edgetrain("recipe=hello_simulation", "out=hello")
    assert code == 0, err
    folder = RunFolder.open("hello")
    # M/M/1: the mean wait is load/(1-load) = 4 services at load 0.8
    assert folder.read_json("metrics.json")["waiting_over_service"] == pytest.approx(4, rel=0.5)
    assert folder.read_json("claims.json")[0]["verdict"] == "seen"
    assert "Waiting times" in (folder.path / "report.html").read_text()
    assert not folder.checkpoints.exists()


def test_lora_runs_beside_layerskip_from_the_command_line(edgetrain: Call, workplace: Path) -> None:
    code, _, err = edgetrain(*RUN, "method=[layerskip,lora]", "method.lora.rank=2", "out=lora")
    assert code == 0, err
    code, out, err = edgetrain("eval", "run=lora")
    assert code == 0, err
    trained = json.loads((workplace / "lora" / "metrics.json").read_text())
    assert f"test/loss        {trained['test/loss']:.4g}" in out


def test_eval_repeats_the_runs_own_figures(edgetrain: Call, finished_run: RunFolder) -> None:
    code, out, _ = edgetrain("eval", f"run={finished_run.path}")
    assert code == 0
    assert f"{finished_run.read_json('metrics.json')['test/loss']:.4g}" in out


def test_init_from_a_run_starts_with_its_weights(edgetrain: Call, workplace: Path, finished_run: RunFolder) -> None:
    still = ["optimizer.lr=0.0", "trainer.max_steps=1"]
    code, _, err = edgetrain(
        *RUN, *still, f"data.path={finished_run.path.parent / 'texts'}", f"init_from={finished_run.path}", "out=again"
    )
    assert code == 0, err
    assert same_weights(workplace / "again", finished_run.path)


def test_ctrl_c_saves_and_says_how_to_resume(workplace: Path) -> None:
    command = [sys.executable, "-m", "edgetrain", *RUN, "trainer.max_steps=100000", "out=long"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=workplace)
    curve = workplace / "long" / "logs" / "part_0" / "metrics.csv"
    waited = time.monotonic() + 120
    while not curve.exists() and time.monotonic() < waited:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "resume with: python -m edgetrain resume=long" in err
    assert (workplace / "long" / "checkpoints" / "last.ckpt").is_file()


# Bad input: one sentence, exit code 2, nothing half-written


def fails(call: Call, *arguments: str) -> str:
    code, _, err = call(*arguments)
    assert code == 2, err
    assert "Traceback" not in err
    sentences = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    return sentences[0]


def test_an_unknown_verb_lists_the_verbs(edgetrain: Call) -> None:
    assert "did you mean 'list'" in fails(edgetrain, "lst")


def test_a_folder_with_files_is_never_overwritten(edgetrain: Call, workplace: Path) -> None:
    (workplace / "full").mkdir()
    (workplace / "full" / "mine.txt").write_text("keep")
    assert "not an empty folder" in fails(edgetrain, *RUN, "out=full")
    assert [path.name for path in (workplace / "full").iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_written_is_one_sentence(edgetrain: Call) -> None:
    assert "cannot write the run folder" in fails(edgetrain, *RUN, "out=/dev/full/run")


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(workplace: Path) -> None:
    """The tests may run as root, whom no permission stops: a limit on file size stands for the full disk."""
    limited = "ulimit -f 1; trap '' XFSZ; exec \"$@\""
    command = [sys.executable, "-m", "edgetrain", *RUN, "data.vocab_size=301", "out=small"]
    ended = subprocess.run(["bash", "-c", limited, "bash", *command], capture_output=True, text=True, cwd=workplace)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "cannot write" in ended.stderr
    assert not list(workplace.rglob("*.ckpt"))


def test_a_run_that_is_not_there_is_one_sentence(edgetrain: Call) -> None:
    assert "is not a run folder" in fails(edgetrain, "eval", "run=nowhere")
    assert "say which run" in fails(edgetrain, "eval")
    long = "x" * 400
    assert "is not a run folder" in fails(edgetrain, "run", f"resume={long}")
    assert "no weights there" in fails(edgetrain, *RUN, f"init_from={long}", "out=a")
    assert "cannot write the run folder" in fails(edgetrain, *RUN, f"out={long}")


def test_a_run_without_a_checkpoint_is_one_sentence(edgetrain: Call, finished_run: RunFolder, workplace: Path) -> None:
    copy_of(finished_run, workplace / "copy")
    for path in (workplace / "copy" / "checkpoints").iterdir():
        path.unlink()
    assert "holds no checkpoint" in fails(edgetrain, "eval", "run=copy")


def test_a_truncated_checkpoint_is_one_sentence(edgetrain: Call, finished_run: RunFolder, workplace: Path) -> None:
    for path in copy_of(finished_run, workplace / "copy").glob("checkpoints/*.ckpt"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut short or damaged" in fails(edgetrain, "eval", "run=copy")


class Payload:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


def test_code_pickled_in_a_checkpoint_is_not_run(edgetrain: Call, finished_run: RunFolder, workplace: Path) -> None:
    for path in copy_of(finished_run, workplace / "copy").glob("checkpoints/*.ckpt"):
        torch.save({"state_dict": {}, "payload": Payload()}, path)
    assert "it holds code or objects" in fails(edgetrain, "eval", "run=copy")
    assert not (workplace / "executed").exists()


def test_a_foreign_class_in_a_run_folder_needs_trust(edgetrain: Call, finished_run: RunFolder, workplace: Path) -> None:
    path = copy_of(finished_run, workplace / "copy") / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["method"]["theirs"] = {"_target_": "pathlib.Path.touch", "self": "executed"}
    path.write_text(yaml.safe_dump(config))
    assert "trust=[pathlib]" in fails(edgetrain, "eval", "run=copy")
    assert not (workplace / "executed").exists()


def test_resuming_with_a_changed_model_is_refused(edgetrain: Call, finished_run: RunFolder) -> None:
    message = fails(edgetrain, "run", f"resume={finished_run.path}", "model.dim=48")
    assert "model.dim differs" in message


def test_resuming_after_config_yaml_was_edited_is_refused(
    edgetrain: Call, finished_run: RunFolder, workplace: Path
) -> None:
    path = copy_of(finished_run, workplace / "copy") / "config.yaml"
    path.write_text(path.read_text().replace("dim: 32", "dim: 48"))
    assert "do not fit this model" in fails(edgetrain, "run", "resume=copy")


def test_weights_of_another_shape_are_refused(edgetrain: Call, finished_run: RunFolder) -> None:
    assert "do not fit this model" in fails(edgetrain, *RUN, "model.dim=64", f"init_from={finished_run.path}", "out=x")


def test_init_from_a_recipe_without_a_run_says_how_to_make_one(edgetrain: Call) -> None:
    assert "python -m edgetrain recipe=layerskip_llama" in fails(edgetrain, *RUN, "init_from=recipe:layerskip_llama")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["model.dim=33"], "must be a multiple of"),
        (["method.layerskip.p_max=2.0"], "p_max=2.0 is outside 0 to 1"),
        (["data.path=nowhere"], "nowhere"),
        (["data.context=100000", "model.context=32"], "tokens"),
        (["modle=llama"], "did you mean 'model'"),
        (["trainer.max_epoch=3"], "did you mean 'max_epochs'"),
        (["model.layers=two"], "model.layers"),
        (["model=lama"], "did you mean 'llama'"),
        (["logger=[wandb]"], "needs a package that is not installed"),
        (["trainer.precision=bf17"], "trainer: "),
        (["trainer.limit_val_batches=-1"], "trainer: "),
    ],
)
def test_bad_settings_are_one_sentence(edgetrain: Call, workplace: Path, changes: list[str], words: str) -> None:
    assert words in fails(edgetrain, *RUN, *changes, "out=bad")
    assert not (workplace / "bad" / "checkpoints").exists()


def copy_of(folder: RunFolder, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder.path, target))
