"""LayerSkip in two processes: whatever each of them drops, all parameters get the mean of both gradients in time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from edgetrain.methods.layerskip import LayerSkip
from edgetrain.models.llama import Llama
from edgetrain.ops.blocks import prepared_blocks
from edgetrain.tasks.language import Language
from edgetrain.tasks.sharding import shard

BATCHES = (1, 5)  # samples of process 0 and of process 1
STEPS = 3
CASES = {
    "one layer never runs": [0.0, 1.0, 0.5, 0.5],
    "no layer ever runs": [1.0, 1.0, 1.0, 1.0],
    "some do": [0.0, 0.4, 0.6, 0.8],
}


def make_task() -> Language:
    torch.manual_seed(0)
    model = Llama(vocab_size=31, dim=16, layers=4, heads=2, kv_heads=1, hidden_dim=24, context=8)
    method = LayerSkip(p_max=0.5, e_scale=0.3, total_steps=STEPS, rotation=2)
    method.apply(model, method.plan(model, None))
    return Language(model, [method], None, total_steps=STEPS).train()


def batch_of(rank: int, step: int) -> Tensor:
    return torch.randint(31, (BATCHES[rank], 9), generator=torch.Generator().manual_seed(10 * step + rank))


def begin_step(task: Language, step: int, probabilities: list[float]) -> None:
    task.after_step(step)
    for layer, probability in zip(task.model.model.layers, probabilities, strict=True):
        layer.drop_probabilities = [probability]


def descend(model: nn.Module) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight -= 0.5 * weight.grad
            weight.grad = None


def alone(probabilities: list[float]) -> dict[str, Tensor]:
    """Both processes' batches one after the other, in one process."""
    task = make_task()
    for step in range(STEPS):
        for rank in range(2):
            begin_step(task, step, probabilities)
            (task.training_step(batch_of(rank, step), 0) / 2).backward()
        assert all(weight.grad is not None for weight in task.parameters())
        descend(task)
    return task.model.state_dict()


class Steps(nn.Module):
    """training_step as forward, which is what DistributedDataParallel wraps; Lightning does the same."""

    def __init__(self, task: Language) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Tensor) -> Tensor:
        return self.task.training_step(batch, 0)


def data_parallel(task: Language) -> Callable[[Tensor], Tensor]:
    return DistributedDataParallel(Steps(task))


def sharded(task: Language) -> Callable[[Tensor], Tensor]:
    shard(task, init_device_mesh("cpu", (2,)), "32-true")
    return lambda batch: task.training_step(batch, 0)


@pytest.mark.parametrize("wrap", [data_parallel, sharded])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_unequal_batches_and_layers_that_never_run_end_with_the_mean_gradient(
    tmp_path: Path, case: str, recomputed: bool, wrap: Callable[[Language], Callable[[Tensor], Tensor]]
) -> None:
    """Within the 60 seconds of `ranks`: a parameter without a gradient would make one process wait for the other."""

    def train(rank: int) -> None:
        dist.init_process_group("gloo")
        task = make_task()
        with prepared_blocks(task.model, compiled=False, recomputed=recomputed):
            step_of = wrap(task)
            for step in range(STEPS):
                begin_step(task, step, CASES[case])
                step_of(batch_of(rank, step)).backward()
                descend(task)
        state = {
            name: getattr(value, "full_tensor", lambda value=value: value)()
            for name, value in task.model.state_dict().items()
        }
        torch.save(state, tmp_path / f"{rank}.pt")

    ended = ranks(train, tmp_path)
    assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.said for rank in ended)
    expected = alone(CASES[case])
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-5, atol=1e-6)
