"""Shard a task and its model with torch's `fully_shard` (FSDP2)."""

import lightning
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from edgetrain.errors import UserError
from edgetrain.ops.blocks import blocks

POLICIES = {
    "32-true": MixedPrecisionPolicy(),
    "bf16-mixed": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
}


def shard(task: lightning.LightningModule, mesh: DeviceMesh, precision: str) -> None:
    """In place: every block on its own, the rest with the task. Tied tensors stay one.

    The task is the root and its steps count as its forward, because they read the head's weight without calling the
    head. With bf16-mixed, weights are gathered in bfloat16 and gradients are summed in float32.
    Raises UserError for another precision.
    """
    if precision not in POLICIES:
        raise UserError(
            f"trainer.precision={precision} does not go with trainer.strategy=fsdp2; use {' or '.join(POLICIES)}"
        )
    for block in blocks(task.model):
        fully_shard(block, mesh=mesh, mp_policy=POLICIES[precision])
    fully_shard(task, mesh=mesh, mp_policy=POLICIES[precision])
    for name in ("training_step", "validation_step"):
        register_fsdp_forward_method(task, name)
