"""When a run's state is saved, and how: only whole files, only states that a resumed run goes on from bit-equal.

Lightning's own ModelCheckpoint keeps the cadence. What it would do differently: it also saves while gradients are
accumulating or a batch is half done, which no resumed run can repeat; it writes through the system's temporary folder,
in one step only where that is the same disk; and it keeps one checkpoint, so that one bad sector loses the run.
"""

import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from edgetrain.checkpoint import LAST, PREVIOUS
from edgetrain.errors import Interrupted
from edgetrain.folder import atomic
from edgetrain.jobs.faults import NotFinite, first_not_finite_weight
from edgetrain.jobs.group import anybodys
from edgetrain.signals import stop


class Checkpoints(ModelCheckpoint):
    """last.ckpt every `minutes` or every `steps` optimiser steps, at the end, and when Ctrl-C or SIGTERM arrives.

    A signal is acted upon after the optimiser step that it falls into, in a validation after the batch.
    """

    def __init__(self, folder: Path, minutes: float, steps: int | None) -> None:
        super().__init__(
            folder,
            filename=Path(LAST).stem,
            enable_version_counter=False,
            every_n_train_steps=steps,
            train_time_interval=None if steps else timedelta(minutes=minutes),  # by the monotonic clock
        )
        self.step = self.saved = -1
        self.whole = True  # no gradients are accumulating

    def on_train_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        super().on_train_start(trainer, task)
        self.step = self.saved = trainer.global_step
        stop.patient = True
        stop.listen(signal.SIGINT, signal.SIGTERM)  # Lightning puts back what it found before training

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        self.whole, self.step = trainer.global_step != self.step, trainer.global_step
        if not self.whole:
            return
        self._stop_if_asked(trainer)
        super().on_train_batch_end(trainer, *rest)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if stop.patient and self.whole:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        if self.saved != trainer.global_step:
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {}  # Lightning's holds paths, which are others when the folder has moved

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def _save(self, trainer: lightning.Trainer) -> None:
        self._save_checkpoint(trainer, str(Path(self.dirpath) / LAST))

    def _save_checkpoint(self, trainer: lightning.Trainer, filepath: str) -> None:
        """What every way of saving comes through. Raises NotFinite, and keeps the good checkpoints."""
        bad = anybodys(first_not_finite_weight(trainer.lightning_module.model))
        if bad:
            raise NotFinite(f"after step {trainer.global_step} the weight {bad} is not finite")
        for logger in trainer.loggers:
            logger.save()  # a killed run's curves reach as far as its checkpoint
        super()._save_checkpoint(trainer, filepath)
        self.saved = trainer.global_step

    def _stop_if_asked(self, trainer: lightning.Trainer) -> None:
        # All processes stop after the same step, or those that go on would wait for the others for ever.
        if trainer.strategy.reduce_boolean_decision(bool(stop.number), all=False):
            if self.saved != trainer.global_step:
                self._save(trainer)
            raise Interrupted(stop.number or signal.SIGTERM)


class WholeFiles(TorchCheckpointIO):
    """A checkpoint takes its name when it is whole and on the disk; the one that had the name is kept beside it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        with atomic(path, keep=path.with_name(PREVIOUS)) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch says "unexpected pos" of a disk that is full
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
