"""Train one model with Lightning. The only place that creates a Trainer."""

import logging
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from edgetrain.build import Trained, build, build_trained, finish
from edgetrain.checkpoint import last_checkpoint, load_weights, model_weights, read_checkpoint
from edgetrain.config import Config
from edgetrain.errors import Interrupted, UserError
from edgetrain.folder import RunFolder
from edgetrain.jobs.callbacks import RunState, Throughput
from edgetrain.jobs.result import Result

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its notices repeat what the report holds


class Fit:
    """Build, train, and judge on held-out data.

    checkpoint_minutes: how often a checkpoint is written; one is also written at the end and on any interruption.
    """

    def __init__(self, checkpoint_minutes: float = 5.0) -> None:
        self.checkpoint_minutes = checkpoint_minutes

    def run(self, config: Config, folder: RunFolder) -> Result:
        """Train, or with `config.resume` go on from the folder's last checkpoint."""
        checkpoint = last_checkpoint(folder) if config.resume else None
        state = read_checkpoint(checkpoint) if checkpoint else {}
        trained = build_trained(config, state.get("edgetrain", {}).get("plans"))
        if checkpoint:  # fails with a sentence where Lightning would with a traceback; it loads them again itself
            load_weights(trained.model, model_weights(state), str(checkpoint))
        check_measures(config, trained)
        folder.write_json("plans.json", trained.plans)
        throughput = Throughput()
        trainer = self.trainer(config, folder, [throughput, RunState(trained, folder.checkpoints / "last.ckpt")])
        try:
            trainer.fit(trained.task, trained.data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise Interrupted from None
            raise
        except OSError as error:
            raise UserError(f"training stopped: {error}; free some space and use resume={folder.path}") from error
        return Result(self.metrics(finish(trained), trainer, throughput), {"model": trained})

    def trainer(self, config: Config, folder: RunFolder, callbacks: list[Any]) -> lightning.Trainer:
        node = dict(config.trainer)
        if node.get("precision") == "auto":
            node["precision"] = fastest_precision()
        place = folder.new_log_part()
        loggers = [build(logger, save_dir=place) for logger in config.logger.values()]
        kept = ModelCheckpoint(
            folder.checkpoints,
            filename="step={step}",
            auto_insert_metric_name=False,
            train_time_interval=timedelta(minutes=self.checkpoint_minutes),
            save_last=True,
            save_on_exception=True,
        )
        bar = [RichProgressBar(leave=True)] if node.get("enable_progress_bar", True) else []
        monitors = [LearningRateMonitor("step")] if loggers else []
        try:
            return build(
                node,
                logger=loggers,
                callbacks=[*callbacks, kept, *bar, *monitors],
                default_root_dir=folder.path,
            )
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UserError(f"trainer: {str(error).splitlines()[0]}") from error

    def metrics(self, trained: Trained, trainer: lightning.Trainer, throughput: Throughput) -> dict[str, Any]:
        unit = trained.task.unit
        trained.data.setup("test")
        held_out = trained.task.evaluate(trained.model, trained.data.test_dataloader())
        return {
            "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
            "steps": trainer.global_step,
            f"{unit}_trained": throughput.units,
            f"{unit}_per_s": throughput.units / throughput.seconds if throughput.seconds else 0.0,
            "train_seconds": throughput.seconds,
            "precision": str(trainer.precision),
            **{f"test/{name}": value for name, value in held_out.items()},
            **trained.data.facts(),
        }


def check_measures(config: Config, trained: Trained) -> None:
    """A measurement that cannot fit the model fails here, not after an hour of training."""
    for node in config.measure.values():
        measure = build(node)
        if hasattr(measure, "check"):
            measure.check(trained.model)


def fastest_precision() -> str:
    """bf16-mixed where the hardware multiplies bfloat16 natively, else 32-true. What `precision: auto` means."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"
