"""FSDP2 on two processes: what is one tensor stays one, what is visited twice is summed, bfloat16 is only a format."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from edgetrain.errors import UserError
from edgetrain.models.llama import Llama
from edgetrain.ops.blocks import prepared_blocks
from edgetrain.tasks.language import Language
from edgetrain.tasks.sharding import shard


def make_task(changes: dict[str, object]) -> Language:
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "dim": 16, "layers": 3, "heads": 2, "kv_heads": 1, "hidden_dim": 24, "context": 8}
    return Language(Llama(**sizes | changes), [], None, total_steps=1).train()


def batch_of(rank: int) -> Tensor:
    return torch.randint(31, (4, 9), generator=torch.Generator().manual_seed(rank))


def gradients_of_both(changes: dict[str, object]) -> dict[str, Tensor]:
    task = make_task(changes)
    for rank in range(2):
        (task.training_step(batch_of(rank), 0) / 2).backward()
    return {name: weight.grad for name, weight in task.model.named_parameters()}


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tied": False}, {"share": "immediate"}, {"share": "repeat_all", "share_kv": True}],
    ids=["tied", "untied", "shared", "shared kv"],
)
def test_gradients_are_the_mean_of_both(tmp_path: Path, changes: dict[str, object], recomputed: bool) -> None:
    def train(rank: int) -> None:
        dist.init_process_group("gloo")
        task = make_task(changes)
        with prepared_blocks(task.model, compiled=False, recomputed=recomputed):
            shard(task, init_device_mesh("cpu", (2,)), "32-true")
            assert all(isinstance(weight, DTensor) for weight in task.parameters())
            assert (task.model.lm_head.weight is task.model.model.embed_tokens.weight) == task.model.tied
            task.training_step(batch_of(rank), 0).backward()
        torch.save({name: w.grad.full_tensor() for name, w in task.model.named_parameters()}, tmp_path / f"{rank}.pt")

    ended = ranks(train, tmp_path)
    assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.said for rank in ended)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, gradients_of_both(changes), rtol=1e-5, atol=1e-7)


def test_bf16_gathers_in_bfloat16_and_keeps_weights_and_sums_in_float32(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        dist.init_process_group("gloo")
        task = make_task({})
        shard(task, init_device_mesh("cpu", (2,)), "bf16-mixed")
        gathered = []
        task.model.model.layers[1].mlp.register_forward_hook(
            lambda module, inputs, output: gathered.append((module.up_proj.weight.dtype, output.dtype))
        )
        task.training_step(batch_of(rank), 0).backward()
        assert gathered == [(torch.bfloat16, torch.bfloat16)]
        assert {(w.dtype, w.grad.dtype) for w in task.parameters()} == {(torch.float32, torch.float32)}
        torch.save({name: w.grad.full_tensor() for name, w in task.model.named_parameters()}, tmp_path / f"{rank}.pt")

    ended = ranks(train, tmp_path)
    assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.said for rank in ended)
    found, expected = torch.load(tmp_path / "0.pt"), gradients_of_both({})
    head = found["model.embed_tokens.weight"]
    assert not torch.equal(head, head.bfloat16().float())  # the mean of two bfloat16 numbers needs more bits than one
    for name, gradient in expected.items():
        assert torch.linalg.norm(found[name] - gradient) < 0.03 * torch.linalg.norm(gradient), name


def test_another_precision_is_refused() -> None:
    with pytest.raises(
        UserError, match="trainer.precision=16-mixed does not go with trainer.strategy=fsdp2; use 32-true"
    ):
        shard(make_task({}), None, "16-mixed")
