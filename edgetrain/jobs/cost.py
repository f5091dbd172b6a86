"""Cost a model, or a table of layers, on the recipe's devices without training anything."""

import torch

from edgetrain.build import build, build_trained
from edgetrain.config import Config
from edgetrain.errors import UserError, listing
from edgetrain.folder import RunFolder
from edgetrain.hardware.costing import cost_devices
from edgetrain.hardware.folding import deployed
from edgetrain.hardware.layer_tables import read_layer_table
from edgetrain.hardware.workload import Workload
from edgetrain.jobs.result import Result


class CostJob:
    """What the verb `cost` runs, and a job of its own for studies over models or devices.

    input: shape of the model's input, [batch, ...], by default what the recipe's task gives; tokens: it holds token
    numbers instead of real ones; table: a file of layers (.csv, .json, .m) instead of a model; network: one of the
    table's networks, all when None.
    """

    def __init__(
        self,
        input: list[int] | None = None,
        tokens: bool = False,
        table: str | None = None,
        network: str | None = None,
    ) -> None:
        if input is not None and (not input or min(input) < 1):
            raise UserError(f"job.input={input} must be the sizes of one input, batch first, as in [1,3,224,224]")
        self.input, self.tokens, self.table, self.network = input, tokens, table, network

    def run(self, config: Config, folder: RunFolder) -> Result:
        """Raises UserError when there is nothing to cost, no device to cost it on, or no input to trace with."""
        if not config.hardware:
            raise UserError("nothing to cost it on; name devices, as in hardware=[cortex_m7,bitfusion,nvdla]")
        devices = {name: build(node) for name, node in config.hardware.items()}
        _, metrics = cost_devices(self.workload(config), devices, folder)
        return Result(metrics)

    def workload(self, config: Config) -> Workload:
        if self.table is not None:
            return chosen(read_layer_table(self.table), self.network)
        if config.model is None:
            raise UserError("nothing to cost; name a model, as in model=timm model.name=resnet18, or a table of layers")
        if self.input is None and config.task and config.data:
            trained = build_trained(config)
            return deployed(trained.model, trained.task.example_inputs(), config.recipe)
        if self.input is None:
            raise UserError("say the shape of the model's input, batch first, as in input=[1,3,224,224]")
        kind = torch.int64 if self.tokens else torch.float32
        name = str(config.model.get("name") or config.model["_target_"].rpartition(".")[2])
        return deployed(build(config.model), (torch.zeros(self.input, dtype=kind),), name)


def chosen(table: Workload, network: str | None) -> Workload:
    """The table, or one of its networks. Raises UserError for a name that it does not have."""
    if network is None:
        return table
    if network not in table.components:
        known = listing(filter(None, table.components)) or "one network without a name"
        raise UserError(f"job.network={network}: the table {table.name} has {known}")
    return table.component(network)
