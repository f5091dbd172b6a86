"""Submit a run to SLURM, one task a GPU: python scripts/slurm.py out=DIR [slurm.KEY=value] recipe=NAME [key=value]

    python scripts/slurm.py out=runs/125m slurm.partition=gpu slurm.time=4320 recipe=mobilellm_125m trainer.num_nodes=4

Needs the extra `slurm` (submitit). Nodes and tasks are those of trainer.num_nodes and trainer.devices; every other key
of sbatch is slurm.KEY, time in minutes. A mistake in the recipe is reported here, before the job waits. A job that
reaches its time limit is queued again and goes on from its last checkpoint. DIR must be seen by all machines.
"""

import sys
from pathlib import Path
from typing import Any

from edgetrain.cli import main, take_value
from edgetrain.compose import compose
from edgetrain.config import Config
from edgetrain.errors import UserError


class Run:
    """What every task of the job does."""

    def __init__(self, arguments: list[str], out: str) -> None:
        self.arguments, self.out = arguments, out

    def __call__(self) -> None:
        code = main(self.arguments)
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> Any:
        """What submitit queues when the time is over."""
        from submitit.helpers import DelayedSubmission

        begun = (Path(self.out) / "config.yaml").is_file()
        return DelayedSubmission(Run([f"resume={self.out}"], self.out) if begun else self)


def resources(config: Config, settings: dict[str, str]) -> dict[str, Any]:
    """submitit's parameters for this run. Raises UserError when trainer.devices is no number."""
    devices = config.trainer.get("devices")
    if not isinstance(devices, int) or devices < 1:
        raise UserError(f"trainer.devices={devices}: say how many GPUs every node has")
    gpus = {} if config.trainer.get("accelerator") == "cpu" else {"gpus_per_node": devices}
    nodes = config.trainer.get("num_nodes", 1)
    return {"nodes": nodes, "tasks_per_node": devices} | gpus | {f"slurm_{key}": v for key, v in settings.items()}


def submit(arguments: list[str]) -> str:
    """Returns the job's number."""
    chosen = [argument for argument in arguments if argument.startswith("slurm.")]
    settings = dict(argument.removeprefix("slurm.").split("=", 1) for argument in chosen if "=" in argument)
    arguments = [argument for argument in arguments if argument not in chosen]
    out = take_value([*arguments], "out")
    if not out:
        raise UserError("say where the run's folder will be: out=DIR, on a disk that all machines see")
    config = compose(arguments)
    if config.seeds:
        raise UserError("a study starts its own processes; submit one of its runs: variant=NAME seed=K seeds=[]")
    asked = {"name": Path(config.recipe).stem} | resources(config, settings)
    try:
        import submitit
    except ModuleNotFoundError:
        raise UserError('this needs submitit; install it with: pip install -e ".[slurm]"') from None
    try:
        executor = submitit.AutoExecutor(folder=Path(out).with_name(f"{Path(out).name}.slurm"), cluster="slurm")
    except RuntimeError as error:
        raise UserError(f"submitit: {error}") from error
    executor.update_parameters(**asked)
    return executor.submit(Run(["run", *arguments], out)).job_id


if __name__ == "__main__":
    try:
        print(f"job {submit(sys.argv[1:])}")
    except UserError as error:
        sys.exit(f"error: {error}")
