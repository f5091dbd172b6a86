"""What can go wrong in a training run, found early and said in one sentence: numbers, disk."""

import errno
import math
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from edgetrain.build import Trained
from edgetrain.checkpoint import kept_checkpoints
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.jobs.group import anybodys, lost
from edgetrain.processes import is_first

FAULT = "fault.json"  # which batch and step, and where the number was found
LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe", re.IGNORECASE)  # when another process has died
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotFinite(Exception):
    """A loss or a weight is NaN or infinite; the message says which, and where it began."""


class FiniteLoss(Callback):
    """Stops training at the first loss that is not finite, before the optimiser takes it into the weights.

    Every process stops at the batch at which one finds such a loss, and says what that one found. Costs one look at a
    number a batch; on a GPU the host waits there for the backward pass.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_train_start(self, *_: Any) -> None:
        if is_first():
            (self.folder.path / FAULT).unlink(missing_ok=True)

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, index: int) -> None:
        self.batch, self.index = batch, index

    def on_before_backward(self, trainer: Any, task: Any, loss: Tensor) -> None:
        self.loss = loss.detach()

    def on_after_backward(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        value = self.loss.item()
        finite = math.isfinite(value)
        if not trainer.strategy.reduce_boolean_decision(not finite, all=False):
            return
        where, sentence = anybodys(self.diagnosis(trainer, task, value))
        if is_first():
            self.folder.write_json(FAULT, where)
        raise NotFinite(sentence)

    def diagnosis(
        self, trainer: lightning.Trainer, task: lightning.LightningModule, value: float
    ) -> tuple[dict[str, Any], str] | None:
        """What fault.json and the user are told; None where this process's loss is finite."""
        where = {"batch": self.index, "step": trainer.global_step, "loss": str(value)}
        weight = anybodys(first_not_finite_weight(task.model))
        if weight:
            cause = f"the weight {weight} is not finite since the step before, whose gradients overflowed"
        else:
            where["module"] = module = first_not_finite_output(trainer, task, self.batch, self.index)
            cause = (
                f"the first output that is not finite is that of {module}"
                if module
                else "the output of every module is finite, so it arises in the loss itself"
            )
        if math.isfinite(value):
            return None  # the step was repeated because the others wait for this process in it
        sentence = f"the loss of batch {self.index} in step {trainer.global_step} is {value}: {cause}"
        return where | {"weight": weight}, sentence


def first_not_finite_weight(model: nn.Module) -> str | None:
    """Of the part that this process holds."""
    parts = ((name, w.to_local() if isinstance(w, DTensor) else w) for name, w in model.named_parameters())
    return next((name for name, weight in parts if not weight.isfinite().all()), None)


def first_not_finite_output(
    trainer: lightning.Trainer, task: lightning.LightningModule, batch: Any, index: int
) -> str | None:
    """The name of the innermost module that first gives NaN or infinity on this batch, by running it once more."""
    found: list[str] = []

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            if not all(item.isfinite().all() for item in tensors if isinstance(item, Tensor)):
                found.append(name)

        return hook

    with ExitStack() as stack:
        for name, module in task.model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(hook_for(name)).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(trainer.precision_plugin.train_step_context())
        task.training_step(batch, index)
    return found[0] if found else None


def check_disk(folder: RunFolder, trained: Trained) -> None:
    """Raises UserError when the disk has no room for what the run will write.

    Three checkpoints (the last, the one before it, the one being written), each the weights and two moments of those
    that are trained, and one copy of the weights an export.
    """
    parameters = list(trained.model.parameters())
    weights = sum(weight.nbytes for weight in parameters)
    checkpoint = weights + 2 * sum(weight.nbytes for weight in parameters if weight.requires_grad)
    there = sum(path.stat().st_size for path in kept_checkpoints(folder))
    needed = max(0, 3 * checkpoint - there) + len(trained.config.export) * weights
    free = shutil.disk_usage(folder.path).free
    if free < needed:
        raise UserError(
            f"{folder.path} needs about {megabytes(needed)} for checkpoints and exports and its disk has "
            f"{megabytes(free)} free; free some space or choose another folder with out=DIR"
        )


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB ({count} bytes)"


def fault_sentence(error: Exception, folder: RunFolder) -> str | None:
    """What stopped training and what to do; None for an error that is not for the user to mend."""
    there = Path(folder.path)
    if isinstance(error, NotFinite):
        return (
            f"training stopped: {error}; start anew from the last good weights with init_from={there} and a lower "
            f"optimizer.lr (resume={there} repeats it exactly)"
        )
    if isinstance(error, OSError):
        full = "free some space and go on" if error.errno in FULL else "go on"
        return f"training stopped: {str(error).splitlines()[0]}; {full} with resume={there}"
    if isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and LOST.search(str(error))):
        return lost(folder)
    return None
