"""Out of memory names the keys to lower, with their values; any other error is left alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL

from edgetrain.config import Config
from edgetrain.jobs.memory import out_of_memory

Call = Callable[..., tuple[int, str, str]]

CONFIG = Config(
    recipe="tiny",
    data={"_target_": "x.Data", "batch_size": 16, "context": 256},
    model={"_target_": "x.Model", "dim": 128, "layers": 8, "heads": 2},
    trainer={"_target_": "x.Trainer", "accumulate_grad_batches": 3},
)
GPU = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.1 GiB is free."
)


def raised(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def test_a_real_failed_allocation_on_the_processor() -> None:
    """2**60 bytes are 1 EiB."""
    sentence = out_of_memory(raised(lambda: torch.empty(2**60, dtype=torch.uint8)), CONFIG)
    assert sentence == (
        "this machine is out of memory (it asked for 1 EiB); lower data.batch_size=16 (to 8; with "
        "trainer.accumulate_grad_batches=6 every optimiser step stays what it was), data.context=256, model.dim=128 "
        "or model.layers=8"
    )
    assert "(it asked for 8 PiB)" in out_of_memory(raised(lambda: np.empty(2**50)), CONFIG)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError(GPU), "the GPU is out of memory (it asked for 2.5 GiB); lower"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "the GPU is out"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "the GPU is out of memory; lower"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1536 bytes."),
            "this machine is out of memory (it asked for 1.5 KiB); lower",
        ),
        (MemoryError(), "this machine is out of memory; lower"),
    ],
)
def test_every_kind_of_failed_allocation_is_known(error: Exception, where: str) -> None:
    assert out_of_memory(error, CONFIG).startswith(where)


@pytest.mark.parametrize(
    ("asked", "shown"),
    [(1023, "1023 B"), (1024, "1 KiB"), (2**20 - 2**10, "1023 KiB"), (2**20, "1 MiB"), (3 * 2**39, "1.5 TiB")],
)
def test_bytes_are_shown_in_the_largest_unit_that_fits(asked: int, shown: str) -> None:
    error = RuntimeError(f"DefaultCPUAllocator: not enough memory: you tried to allocate {asked} bytes.")
    assert f"(it asked for {shown})" in out_of_memory(error, CONFIG)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), OSError("full")]
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert out_of_memory(error, CONFIG) is None


def test_only_keys_that_exist_and_can_fall_are_named() -> None:
    one = Config(recipe="tiny", data={"_target_": "x", "batch_size": 1, "context": 64}, model={"_target_": "x"})
    assert out_of_memory(MemoryError(), one) == "this machine is out of memory; lower data.context=64"
    odd = Config(recipe="tiny", data={"_target_": "x", "batch_size": 5}, model={"_target_": "x", "width": 8})
    assert out_of_memory(MemoryError(), odd).endswith("lower data.batch_size=5 (to 2) or model.width=8")
    assert out_of_memory(MemoryError(), Config(recipe="tiny")).endswith("use a smaller model or smaller batches")


@pytest.mark.parametrize(
    "asks", ["torch.empty(2**60)", "self.model.register_forward_hook(lambda *_: torch.empty(2**60))"]
)
def test_a_run_without_enough_memory_ends_with_the_sentence(edgetrain: Call, workplace: Path, asks: str) -> None:
    """A user's own model asks for four exbibytes, when it is built or in its first step."""
    name = "built" if asks.startswith("torch") else "trained"
    (workplace / f"greedy_{name}.py").write_text(
        "import torch\nfrom edgetrain.models.llama import Llama\n\n\n"
        f"class Greedy(Llama):\n    def reset_parameters(self):\n        {asks}\n"
    )
    model = f"model._target_=greedy_{name}.Greedy"
    code, _, err = edgetrain("recipe=layerskip_llama", *SMALL, model, "measure=[]", "out=greedy")
    assert code == 2, err
    assert "out of memory (it asked for 4 EiB); lower data.batch_size=4 (to 2; with trainer.accumulate" in err
    assert "Traceback" not in err
    assert not (workplace / "greedy" / "metrics.json").exists()
