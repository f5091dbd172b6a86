"""What comes from strangers is read and never run: checkpoints, weights, tokenizers, configurations."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SMALL

from edgetrain.checkpoint import DamagedCheckpoint, kept_checkpoints, read_checkpoint, read_weights
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder

Call = Callable[..., tuple[int, str, str]]
RUN = ["run", "recipe=layerskip_llama", *SMALL, "measure=[]", "export=[]"]
# The same for a model from elsewhere.
THEIRS = [
    *(item for item in RUN if not item.startswith(("model.", "method."))),
    "method=[]",
    "model=transformers",
    "model.name=theirs",
]
EVIL = "from pathlib import Path\nPath('executed').touch()\n"
LLAMA = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}


class Payload:
    """Unpickling it makes a file."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


def evil(path: Path, legacy: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}, "payload": Payload()}, path, _use_new_zipfile_serialization=not legacy)
    return path


def refused(call: Call, *arguments: str) -> str:
    code, _, err = call(*arguments)
    assert code == 2, err
    assert "Traceback" not in err
    assert not Path("executed").exists()
    return err


def copy_of(folder: RunFolder, target: Path) -> Path:
    return Path(shutil.copytree(folder.path, target))


def test_the_payload_would_work(workplace: Path) -> None:
    torch.load(evil(workplace / "a.ckpt"), weights_only=False)
    assert (workplace / "executed").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_with_code_is_neither_run_nor_put_aside(
    edgetrain: Call, finished_run: RunFolder, workplace: Path, legacy: bool
) -> None:
    """No older one is taken in its place: somebody put it there."""
    last = evil(copy_of(finished_run, workplace / "run") / "checkpoints" / "last.ckpt", legacy)
    shutil.copy(finished_run.checkpoints / "last.ckpt", last.with_name("previous.ckpt"))
    for command in (["run", "resume=run"], ["eval", "run=run"], [*RUN, f"init_from={last}"], [*RUN, "init_from=run"]):
        assert "it holds code or objects, which are never loaded" in refused(edgetrain, *command)
    assert last.is_file()


def test_a_file_that_is_no_mapping_is_a_sentence(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="holds a list, not a checkpoint's mapping"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99, -1])
def test_a_checkpoint_cut_short_anywhere_is_damaged(tmp_path: Path, keep: float) -> None:
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "a.ckpt")
    whole = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(tmp_path / "a.ckpt")


def test_one_flipped_bit_in_a_tensor_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (entry,) = [item for item in archive.infolist() if item.filename.endswith("/data/0")]
    content[entry.header_offset + 2000] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(1000.0))  # torch does not notice
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(path)


def test_the_newest_checkpoint_comes_first_whatever_its_time(tmp_path: Path) -> None:
    for name in ("last.ckpt", "previous.ckpt", "other.ckpt"):
        evil(tmp_path / "checkpoints" / name)
    assert [path.name for path in kept_checkpoints(RunFolder(tmp_path))] == ["last.ckpt", "previous.ckpt"]


def test_pickled_weights_of_a_folder_are_not_opened(edgetrain: Call, workplace: Path) -> None:
    evil(workplace / "theirs" / "pytorch_model.bin")
    (workplace / "theirs" / "config.json").write_text(json.dumps({"model_type": "llama", **LLAMA}))
    assert "no weights there" in refused(edgetrain, *RUN, "init_from=theirs", "out=a")
    with pytest.raises(UserError, match="no weights there"):
        read_weights("theirs")
    assert "model.name=theirs cannot be loaded" in refused(edgetrain, *THEIRS, "out=b")


def test_a_models_own_code_is_not_run(edgetrain: Call, workplace: Path) -> None:
    """config.json names classes in a Python file beside it, as hub models with trust_remote_code do."""
    (workplace / "theirs").mkdir()
    for name in ("modeling_evil", "configuration_evil"):
        (workplace / "theirs" / f"{name}.py").write_text(EVIL)
    auto = {"AutoConfig": "configuration_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    for kind in ("evil", "llama"):
        (workplace / "theirs" / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": auto, **LLAMA}))
        assert "model.name=theirs cannot be loaded" in refused(edgetrain, *THEIRS, f"out={kind}")


def test_a_tokenizers_own_code_is_not_run(edgetrain: Call, workplace: Path) -> None:
    (workplace / "theirs").mkdir()
    (workplace / "theirs" / "tokenization_evil.py").write_text(EVIL)
    settings = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}
    (workplace / "theirs" / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "data.tokenizer=theirs" in refused(edgetrain, *RUN, "data.tokenizer=theirs", "out=a")


@pytest.mark.parametrize(
    "verb", [["run", "resume=run"], ["eval", "run=run"], ["generate", "run=run", "prompt=x"], ["measure", "run=run"]]
)
@pytest.mark.parametrize(
    ("path", "node"),
    [
        ("model", {"_target_": "os.system", "command": "touch executed"}),
        ("method.theirs", {"_target_": "edgetrain.folder.os.system", "command": "touch executed"}),
        ("trainer.callbacks", [{"_target_": "subprocess.Popen", "args": ["touch", "executed"]}]),
        ("data.path", {"_target_": "builtins.eval", "_args_": ["open('executed', 'w')"]}),
        ("seed", {"_target_": "os.system", "command": "touch executed"}),
        ("data.path", "${oc.env:HOME}"),
    ],
)
def test_a_run_folders_configuration_runs_nothing(
    edgetrain: Call, finished_run: RunFolder, workplace: Path, verb: list[str], path: str, node: object
) -> None:
    file = copy_of(finished_run, workplace / "run") / "config.yaml"
    config = yaml.safe_load(file.read_text())
    *parents, key = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[key] = node
    file.write_text(yaml.safe_dump(config))
    refused(edgetrain, *verb)
