"""Train one model with Lightning. The only place that creates a Trainer."""

import logging
import signal
import warnings
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed.tensor import DTensor

from edgetrain.allocator import keep_freed_memory
from edgetrain.build import Trained, build, build_trained, finish, load_trained
from edgetrain.checkpoint import load_weights, model_weights, resume_point
from edgetrain.config import Config
from edgetrain.errors import Interrupted, UserError
from edgetrain.export.judging import check_called
from edgetrain.folder import RunFolder
from edgetrain.hardware.exported_graph import evaluating
from edgetrain.jobs import fsdp2  # noqa: F401 - makes trainer.strategy=fsdp2 known
from edgetrain.jobs.callbacks import JudgedWeights, RunState, Throughput
from edgetrain.jobs.checkpoints import Checkpoints, WholeFiles
from edgetrain.jobs.efficiency import peak_flops, training_flops
from edgetrain.jobs.faults import FiniteLoss, check_disk, fault_sentence
from edgetrain.jobs.group import OneFolder, part, watched
from edgetrain.jobs.result import Result
from edgetrain.models.quantized import float_network
from edgetrain.ops.blocks import blocks, prepared_blocks
from edgetrain.processes import is_first
from edgetrain.signals import stop

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)  # their notices repeat what the report holds
warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")  # Lightning and torch.export, of torch itself
warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # of a resumed run it does

MONTH = 31 * 24 * 60  # minutes


class Fit:
    """Build, train, and judge on held-out data.

    checkpoint_minutes: how often a checkpoint is written; one is also written at the end and on Ctrl-C or SIGTERM.
    checkpoint_steps: count optimiser steps instead of minutes.
    compile: compile every block of the model for training; activation_checkpointing: keep only the inputs of every
    block for the backward pass. Raises UserError for either when the model's blocks are not arranged like Llama's.
    """

    def __init__(
        self,
        checkpoint_minutes: float = 5.0,
        checkpoint_steps: int | None = None,
        compile: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        if not 0 <= checkpoint_minutes <= MONTH:
            raise UserError(f"job.checkpoint_minutes={checkpoint_minutes} is outside 0 to {MONTH}")
        if checkpoint_steps is not None and checkpoint_steps < 1:
            raise UserError(f"job.checkpoint_steps={checkpoint_steps} must be at least 1, or null")
        self.checkpoint_minutes, self.checkpoint_steps = checkpoint_minutes, checkpoint_steps
        self.compile, self.activation_checkpointing = compile, activation_checkpointing

    def run(self, config: Config, folder: RunFolder) -> Result:
        """Train, or with `config.resume` go on from the newest whole checkpoint, or from the start before the first."""
        trained, metrics = self.train(config, folder)
        if trained is None:
            return Result({})
        trained.data.setup("test")
        held_out = trained.task.evaluate(trained.model, trained.data.test_dataloader())
        judged = {f"test/{name}": value for name, value in held_out.items()}
        return Result(metrics | judged | trained.data.facts(), {"model": trained})

    def train(self, config: Config, folder: RunFolder) -> tuple[Trained | None, dict[str, Any]]:
        """What `run` trains and what that took; the test split is not looked at. None but in the first process."""
        keep_freed_memory()
        checkpoint, state = resume_point(folder) if config.resume else (None, {})
        trained = build_trained(config, state.get("edgetrain", {}).get("plans"))
        if checkpoint:  # fails with a sentence where Lightning would with a traceback; it loads them again itself
            load_weights(trained.model, model_weights(state), str(checkpoint))
        self.check_blocks(trained)
        if is_first():
            check_measures(config, trained)
            check_exports(config, trained)
            folder.write_json("plans.json", trained.plans)
            check_disk(folder, trained)
        throughput = Throughput()
        callbacks = [OneFolder(folder), throughput, RunState(trained), FiniteLoss(folder), JudgedWeights()]
        trainer = self.trainer(config, folder, callbacks)
        prepared = prepared_blocks(trained.model, self.compile, self.activation_checkpointing)
        try:
            with prepared, watched(trainer, folder):
                trainer.fit(trained.task, trained.data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as error:  # Lightning makes this of Ctrl-C
            if isinstance(error.__context__, KeyboardInterrupt):
                raise Interrupted(signal.SIGINT) from None
            raise
        except Exception as error:
            sentence = fault_sentence(error, folder)
            if sentence is None:
                raise
            raise UserError(sentence) from error
        finally:
            stop.patient = False
        stop.check()
        part()
        if not is_first():
            return None, {}
        sharded = any(isinstance(parameter, DTensor) for parameter in trained.model.parameters())
        trained = load_trained(folder, config) if sharded else finish(trained)
        return trained, self.metrics(trained, trainer, throughput)

    def check_blocks(self, trained: Trained) -> None:
        for key in ("compile", "activation_checkpointing"):
            if getattr(self, key) and not blocks(trained.model):
                raise UserError(
                    f"job.{key}=true needs a model with `model.layers`, as Llama has, or `repeated_blocks()`; "
                    f"{type(trained.model).__name__} is arranged otherwise"
                )

    def trainer(self, config: Config, folder: RunFolder, callbacks: list[Any]) -> lightning.Trainer:
        node = dict(config.trainer)
        if node.get("precision") == "auto":
            node["precision"] = fastest_precision()
        place = folder.new_log_part()
        loggers = [build(logger, save_dir=place) for logger in config.logger.values()]
        kept = Checkpoints(folder.checkpoints, self.checkpoint_minutes, self.checkpoint_steps)
        bar = [RichProgressBar(leave=True)] if node.get("enable_progress_bar", True) else []
        monitors = [LearningRateMonitor("step")] if loggers else []
        try:
            trainer = build(
                node,
                logger=loggers,
                callbacks=[*callbacks, kept, *bar, *monitors],
                default_root_dir=folder.path,
            )
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UserError(f"trainer: {str(error).splitlines()[0]}") from error
        trainer.strategy.checkpoint_io = WholeFiles()
        return trainer

    def metrics(self, trained: Trained, trainer: lightning.Trainer, throughput: Throughput) -> dict[str, Any]:
        unit = trained.task.unit
        return {
            "parameters": sum(parameter.numel() for parameter in float_network(trained.model).parameters()),
            "steps": trainer.global_step,
            f"{unit}_trained": throughput.units,
            f"{unit}_per_s": throughput.units / throughput.seconds if throughput.seconds else 0.0,
            "train_seconds": throughput.seconds,
            **self.efficiency(trained, trainer, throughput),
            "precision": str(trainer.precision),
        }

    def efficiency(self, trained: Trained, trainer: lightning.Trainer, throughput: Throughput) -> dict[str, float]:
        """Model FLOPs a unit and a second, their share of the peak where that is known, and peak memory."""
        found = {"peak_memory_gib": throughput.memory_gib}
        if not throughput.seconds:
            return found
        try:
            network, dtype = float_network(trained.model), trained.task.example_inputs()[0].dtype
            counts = throughput.shapes.items()
            flops = sum(count * training_flops(network, shapes, dtype) for shapes, count in counts)
        except (RuntimeError, NotImplementedError):  # a model that looks at values cannot be counted without them
            return found
        found[f"flops_per_{trained.task.unit.removesuffix('s')}"] = flops / throughput.units
        found["flops_per_s"] = flops / throughput.seconds
        peak = peak_flops(trainer.strategy.root_device)
        if peak:
            found["mfu"] = found["flops_per_s"] / (peak * trainer.world_size)
        return found


def check_measures(config: Config, trained: Trained) -> None:
    """A measurement that cannot fit the model fails here, not after an hour of training."""
    for node in config.measure.values():
        measure = build(node)
        if hasattr(measure, "check"):
            measure.check(trained.model)


def check_exports(config: Config, trained: Trained) -> None:
    """So does a target that is not installed, that lacks an operator of the model or a form to be quantised to, or
    whose images would have another size than the data's."""
    schemes = [method.scheme for method in trained.task.methods if hasattr(method, "scheme")]
    with evaluating(trained.model):
        for node in config.export.values():
            exporter = build(node)
            for scheme in schemes if hasattr(exporter, "check_scheme") else ():
                exporter.check_scheme(scheme)
            if hasattr(exporter, "check"):
                exporter.check(trained.model, trained.task.example_inputs())
            check_called(exporter, trained.task, trained.data)


def fastest_precision() -> str:
    """bf16-mixed where the hardware multiplies bfloat16 natively, else 32-true. What `precision: auto` means."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"
