"""What every fit watches and keeps: throughput and memory, in each checkpoint all that a bit-exact resume needs, and
the weights that validation sees.
"""

import random
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from edgetrain.build import Trained, load_method_states, method_states
from edgetrain.jobs.efficiency import Shape, peak_memory


class Throughput(Callback):
    """Units (tokens, images) trained on, and per second of training steps, validation left out; in logs and bar.

    shapes: how many batches had inputs of these shapes, on all devices; memory_gib: the largest of any process.
    """

    def __init__(self) -> None:
        self.units = 0
        self.seconds = 0.0
        self.shapes: Counter[tuple[Shape, ...]] = Counter()
        self.memory_gib = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, task: lightning.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        seconds = time.perf_counter() - self.started
        units = task.units(batch) * trainer.world_size
        self.units += units
        self.seconds += seconds
        self.shapes[tuple(tuple(tensor.shape) for tensor in task.inputs(batch))] += trainer.world_size
        task.log(f"{task.unit}_per_s", units / seconds, prog_bar=True)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        task.log(
            f"{task.unit}_trained", float(self.units), sync_dist=True
        )  # beside the validation's losses: the x axis of studies

    def on_train_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        device = trainer.strategy.root_device
        largest = torch.tensor(peak_memory(device), device=device)
        self.memory_gib = float(trainer.strategy.reduce(largest, reduce_op="max"))

    def state_dict(self) -> dict[str, Any]:
        return {"units": self.units, "seconds": self.seconds, "shapes": dict(self.shapes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.units, self.seconds, self.shapes = state["units"], state["seconds"], Counter(state["shapes"])


class JudgedWeights(Callback):
    """Validation sees the weights that the run would ship, where a method keeps others than those that train.

    Batch by batch: checkpoints, which may be written between two of them, hold the weights that train.
    """

    def __init__(self) -> None:
        self.held = ExitStack()

    def on_validation_batch_start(self, trainer: lightning.Trainer, task: lightning.LightningModule, *_: Any) -> None:
        for method in task.methods:
            if hasattr(method, "judged_weights"):
                self.held.enter_context(method.judged_weights(task.model))

    def on_validation_batch_end(self, *_: Any) -> None:
        self.held.close()


class RunState(Callback):
    """Keeps the config, the methods' plans and states, and random states in every checkpoint, as plain containers."""

    def __init__(self, trained: Trained) -> None:
        self.trained = trained

    def on_save_checkpoint(self, trainer: Any, task: Any, checkpoint: dict[str, Any]) -> None:
        for method in task.methods:
            if hasattr(method, "state_dict"):  # a task hears of a step only after the callback that saves
                method.after_step(task.model, trainer.global_step)
        _, keys, position, has_gauss, gauss = np.random.get_state()
        checkpoint["edgetrain"] = {
            "config": self.trained.config.to_dict(),
            "plans": self.trained.plans,
            "methods": method_states(self.trained),
            "python_random": random.getstate(),
            "numpy_random": (keys.tolist(), position, has_gauss, gauss),
            "torch_random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,  # of its own device
        }

    def on_load_checkpoint(self, trainer: Any, task: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["edgetrain"]
        load_method_states(self.trained, state["methods"])
        version, keys, gauss = state["python_random"]
        random.setstate((version, tuple(keys), gauss))
        numpy_keys, position, has_gauss, numpy_gauss = state["numpy_random"]
        np.random.set_state(("MT19937", np.array(numpy_keys, dtype=np.uint32), position, has_gauss, numpy_gauss))
        torch.set_rng_state(state["torch_random"])
        if state["cuda_random"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_random"])
