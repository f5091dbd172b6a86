"""Numbers that are not finite and disks that are full stop a run with one sentence and leave a good checkpoint."""

import errno
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL

from edgetrain.checkpoint import read_checkpoint
from edgetrain.folder import RunFolder
from edgetrain.jobs import checkpoints
from edgetrain.models.llama import Llama, SwiGLU

Call = Callable[..., tuple[int, str, str]]
RUN = ["run", "recipe=layerskip_llama", *SMALL, "measure=[]", "export=[]", "job.checkpoint_steps=2", "out=run"]


def fails(call: Call, *arguments: str) -> str:
    code, _, err = call(*arguments)
    assert code == 2, err
    assert "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return sentence


def checkpoint(name: str) -> dict[str, Any]:
    return read_checkpoint(Path("run/checkpoints") / name)


def finite(state: dict[str, torch.Tensor]) -> bool:
    return all(value.isfinite().all() for value in state.values())


def break_layer(monkeypatch: pytest.MonkeyPatch, layer: int, batch: int) -> None:
    """From that training batch on, the feed-forward part of that layer gives one infinite number."""
    build, forward = Llama.__init__, SwiGLU.forward
    broken: list[SwiGLU] = []
    calls = []

    def build_and_mark(self: Llama, *arguments: Any, **settings: Any) -> None:
        build(self, *arguments, **settings)
        broken.append(self.model.layers[layer].mlp)

    def forward_or_break(self: SwiGLU, x: torch.Tensor) -> torch.Tensor:
        output = forward(self, x)
        if self is broken[-1] and self.training:
            calls.append(1)
            if len(calls) >= batch + 1:
                output = output + torch.inf * torch.nn.functional.one_hot(torch.tensor(0), output.shape[-1])
        return output

    monkeypatch.setattr(Llama, "__init__", build_and_mark)
    monkeypatch.setattr(SwiGLU, "forward", forward_or_break)


def test_a_loss_that_is_not_finite_stops_at_once_and_names_batch_and_layer(
    edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch 3 is the fourth; checkpoints were written after steps 2 and none since."""
    break_layer(monkeypatch, layer=2, batch=3)
    sentence = fails(edgetrain, *RUN, "method.layerskip.p_max=0.0")
    assert "the loss of batch 3 in step 3 is nan" in sentence
    assert "the first output that is not finite is that of model.layers.2.mlp;" in sentence
    assert "with init_from=" in sentence
    assert RunFolder(Path("run")).read_json("fault.json") == {
        "batch": 3,
        "step": 3,
        "loss": "nan",
        "module": "model.layers.2.mlp",
        "weight": None,
    }
    assert checkpoint("last.ckpt")["global_step"] == 2
    assert finite(checkpoint("last.ckpt")["state_dict"])


def test_a_resumed_run_meets_the_same_batch_again(
    edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_layer(patch, layer=0, batch=3)
        fails(edgetrain, *RUN, "method.layerskip.p_max=0.0")
    assert edgetrain("run", "resume=run")[0] == 0
    assert checkpoint("last.ckpt")["global_step"] == 6
    assert not Path("run/fault.json").exists()


def test_weights_that_a_gradient_made_infinite_are_named_and_never_saved(edgetrain: Call, workplace: Path) -> None:
    """The loss is finite and only a backward pass overflows: it shows in the weights that a checkpoint would hold."""

    def overflow(self: torch.optim.AdamW, closure: Callable) -> Any:
        loss = step(self, closure)
        if self.state_dict()["state"][0]["step"] == 4:
            self.param_groups[1]["params"][-1].data[0] = torch.inf
        return loss

    step = torch.optim.AdamW.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", overflow)
        sentence = fails(edgetrain, *RUN)
    assert "after step 4 the weight model.norm.weight is not finite" in sentence
    assert checkpoint("last.ckpt")["global_step"] == 2
    assert not Path("run/checkpoints/previous.ckpt").exists()


def test_weights_found_out_by_the_next_loss_are_named(
    edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step

    def overflow(self: torch.optim.AdamW, closure: Callable) -> Any:
        loss = step(self, closure)
        self.param_groups[1]["params"][-1].data[0] = torch.inf
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    sentence = fails(edgetrain, *RUN)
    assert "the loss of batch 1 in step 1 is nan: the weight model.norm.weight is not finite since the step" in sentence


def test_a_nearly_full_disk_refuses_before_training(
    edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """56,352 fp32 weights: 3 checkpoints of 12 bytes each and one export of 4 bytes a weight."""
    usage = namedtuple("usage", "total used free")
    parameters = 300 * 32 * 2 + 4 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
    needed = parameters * (3 * 12 + 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, needed - 1))
    command = [*RUN[:-1], "export=[huggingface]", "model.tied=false"]
    sentence = fails(edgetrain, *command, "out=run")
    assert f"({needed} bytes) for checkpoints and exports" in sentence
    assert f"({needed - 1} bytes) free" in sentence
    assert not list(workplace.rglob("*.ckpt"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, needed))
    assert edgetrain(*command, "out=fits")[0] == 0


def test_a_disk_that_fills_up_in_a_checkpoint_keeps_the_one_before_it(
    edgetrain: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 2 and 4 are saved; half way through step 6's the disk is full. Then there is room again."""
    save, count = torch.save, iter(range(1, 100))

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            if self.file.tell() > 50_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoints.torch, "save", lambda state, file: save(state, Full(file) if next(count) == 3 else file)
        )
        sentence = fails(edgetrain, *RUN)
    assert "training stopped: [Errno 28] No space left on device; free some space and go on with resume=" in sentence
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert [checkpoint(name)["global_step"] for name in ("last.ckpt", "previous.ckpt")] == [4, 2]
    assert edgetrain("run", "resume=run")[0] == 0
    assert edgetrain(*RUN[:-1], "out=whole")[0] == 0
    whole = read_checkpoint(Path("whole/checkpoints/last.ckpt"))
    torch.testing.assert_close(checkpoint("last.ckpt")["state_dict"], whole["state_dict"], rtol=0, atol=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_real_full_disk(edgetrain: Call, workplace: Path) -> None:
    """Enough when the run starts; then somebody else's file leaves room for two checkpoints of 0.7 MB and no third."""
    place = workplace / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        from edgetrain.jobs.faults import check_disk

        def check_and_fill(folder: RunFolder, trained: Any) -> None:
            check_disk(folder, trained)
            free = shutil.disk_usage(place).free
            (place / "filler").write_bytes(bytes(free - 1_500_000))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgetrain.jobs.fit.check_disk", check_and_fill)
            sentence = fails(edgetrain, *RUN[:-1], "out=disk/run")
        assert "No space left on device; free some space and go on with resume=" in sentence
        kept = sorted(path.name for path in (place / "run" / "checkpoints").iterdir())
        assert kept == ["last.ckpt", "previous.ckpt"]
        (place / "filler").unlink()
        code, _, err = edgetrain("run", "resume=disk/run")
        assert code == 0, err
    finally:
        subprocess.run(["umount", str(place)], check=True)
