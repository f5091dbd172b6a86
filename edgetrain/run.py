"""The main story: seed, build, job, measure, cost, export, judge, report. One run becomes one folder."""

import time
from typing import Any

from rich.console import Console

from edgetrain.build import Trained, build, seed_everything, write_config
from edgetrain.claims import judge
from edgetrain.config import Config
from edgetrain.environment import describe, now
from edgetrain.errors import UserError
from edgetrain.export.shipping import ship
from edgetrain.folder import RunFolder
from edgetrain.hardware.costing import cost_devices
from edgetrain.hardware.folding import deployed
from edgetrain.jobs.memory import out_of_memory
from edgetrain.licences import licences
from edgetrain.models.quantized import float_network
from edgetrain.processes import is_first
from edgetrain.report.page import write_report

console = Console(stderr=True, highlight=False)


def run(config: Config, folder: RunFolder) -> dict[str, float | int | str]:
    """Carry out a checked config in a run folder, and return what was measured.

    Of several processes the first does all that follows training; the others end with it, and return nothing.
    """
    started = time.monotonic()
    seed_everything(config.seed)
    environment = begin(config, folder) if is_first() else {}

    try:
        result = build(config.job).run(config, folder)
        if not is_first():
            return {}
        folder.update_metrics(result.metrics)
        for trained in result.models.values():
            measure(trained, folder)
            cost(trained, folder)
            export(trained, folder)
    except (RuntimeError, MemoryError) as error:
        sentence = out_of_memory(error, config)
        if sentence is None:
            raise
        raise UserError(sentence) from error

    finished = now()
    environment |= {"finished": finished, "wall_seconds": round(time.monotonic() - started, 1)}
    folder.write_json("environment.json", environment)
    report(config, folder)
    return folder.read_json("metrics.json", {})


def begin(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Write what repeats the run into its folder. Returns what environment.json holds."""
    if config.resume:  # the first command stays the one that repeats the run
        folder.remove_parts()
        environment = folder.read_json("environment.json", {})
        environment.pop("finished", None)
        environment["resumed"] = [*environment.get("resumed", []), describe()]
    else:
        environment = describe() | {"seed": config.seed}
        write_config(config.to_dict(), folder)
    folder.write_json("environment.json", environment)
    return environment


def measure(trained: Trained, folder: RunFolder) -> None:
    """Every measurement that the recipe lists, each into metrics.json, tables and figures."""
    for name, node in trained.config.measure.items():
        console.print(f"measure {name}")
        folder.update_metrics(build(node).measure(trained, folder))


def cost(trained: Trained, folder: RunFolder) -> None:
    """The model traced once, and what it costs on every device that the recipe lists."""
    if trained.config.hardware:
        console.print(f"cost {', '.join(trained.config.hardware)}")
        devices = {name: build(node) for name, node in trained.config.hardware.items()}
        workload = deployed(float_network(trained.model), trained.task.example_inputs(), trained.config.recipe)
        folder.update_metrics(cost_devices(workload, devices, folder)[1])


def export(trained: Trained, folder: RunFolder) -> None:
    """Every export that the recipe lists, each judged on the artefact itself."""
    if trained.config.export:
        exporters = {name: build(node) for name, node in trained.config.export.items()}
        ship(trained, exporters, folder, licences(trained.config))


def report(config: Config, folder: RunFolder) -> None:
    """Judge the recipe's claims by what was measured, and draw the page."""
    folder.write_json("claims.json", judge(config, folder))
    page = write_report(folder)
    console.print(f"report  {page}")
