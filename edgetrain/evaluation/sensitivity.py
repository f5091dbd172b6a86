"""What each layer loses when it alone is in few bits: which ones to spare, and how far quantisation can go."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.methods.calibration import draw, first_of_loader
from edgetrain.methods.quantize_capture import FRONT_END, LAYERS, batch_norms, capture, folded
from edgetrain.methods.quantize_training import INPUT, Rounding, plain_layers, round_layers
from edgetrain.models.quantized import float_network
from edgetrain.report.figures import bar_chart
from edgetrain.tasks.predictions import Predictions

ALL = "all layers"
MOST_BARS = 30
Ranges = dict[str, Tensor]
CAPTION = (
    "A row is one layer rounded alone, weights to so many bits with a scale for each output channel, what it reads "
    "to 8 bits, on the test split. loss_change: nats an item; change: of the accuracy, item by item against the float "
    "network, with an interval that holds in at least 95% of samples (Clopper and Pearson's of the two shares that "
    "only one gets right, 97.5% each); differs: items of which it says something else."
)


class Sensitivity:
    """The measure `sensitivity`, for networks with convolutions or linear layers; batch norms are folded.

    bits: of the weights, each 2 to 8; samples: of the train split, for the ranges of what layers read; batches: how
    many of the test split are judged, None takes all; seed: of the draw of samples.
    """

    def __init__(
        self, bits: Sequence[int] = (8, 4), samples: int = 256, batches: int | None = None, seed: int = 0
    ) -> None:
        if not bits or not all(2 <= each <= 8 for each in bits):
            raise UserError(f"measure.sensitivity.bits={list(bits)} must be numbers from 2 to 8")
        for name, value in (("samples", samples), ("batches", batches)):
            if value is not None and value < 1:
                raise UserError(f"measure.sensitivity.{name}={value} must be at least 1")
        self.bits, self.samples, self.batches, self.seed = list(bits), samples, batches, seed

    def check(self, model: nn.Module) -> None:
        """Raises UserError for a model without convolutions and linear layers."""
        if not layers_of(float_network(model)):
            raise UserError(f"measure.sensitivity: {type(model).__name__} has no convolution and no linear layer")

    def measure(self, trained: Any, folder: RunFolder) -> dict[str, float]:
        """Table and figure `sensitivity`; sensitivity/all_<bits> and worst_<bits>, the changes of the loss in nats."""
        self.check(trained.model)
        task, data, model = trained.task, trained.data, float_network(trained.model).eval()
        network = folded(model, norms_of(model, task.example_inputs()))
        data.setup("test")

        def judged() -> Predictions:
            return task.predictions(network, islice(data.test_dataloader(), self.batches))

        ranges = input_ranges(network, self.inputs(task, data))
        exact = judged()
        rows: list[Row] = []
        for bits in self.bits:
            for name in [*ranges, ALL]:
                chosen = ranges if name == ALL else {name: ranges[name]}
                round_inputs_and_weights(network, chosen, bits)
                rows.append({"layer": name, "bits": bits} | changes(exact, judged()))
                plain_layers(network)
        folder.add_table("sensitivity", rows, "What each layer loses in few bits", CAPTION)
        draw_changes(folder, rows)
        return metrics_of(rows)

    def inputs(self, task: Any, data: Any) -> Iterator[Tensor]:
        """Batches of the train split, as the model reads them: `samples` items, or all of fewer."""
        if hasattr(data, "samples"):
            return draw(data, self.samples, self.seed).batches()
        batches = (task.inputs(batch)[0] for batch in data.train_dataloader())
        return first_of_loader(batches, self.samples)


def layers_of(model: nn.Module) -> list[str]:
    """Names of its convolutions and linear layers but those of a front end."""
    named = model.named_modules()
    return [name for name, each in named if isinstance(each, LAYERS) and FRONT_END not in name.split(".")]


def norms_of(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """Batch norms that can be folded; without any, the model need not be one that can be captured."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return {}
    return batch_norms(model, capture(model, example_inputs))


@torch.inference_mode()
def input_ranges(network: nn.Module, batches: Iterable[Tensor]) -> Ranges:
    """Smallest and largest value that each layer reads, [2], by its name, in the order in which they first run."""
    ranges: Ranges = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = torch.stack(inputs[0].float().aminmax())
            known = ranges.setdefault(name, seen)
            ranges[name] = torch.stack((torch.minimum(known[0], seen[0]), torch.maximum(known[1], seen[1])))

        return hook

    hooks = [network.get_submodule(name).register_forward_pre_hook(watch(name)) for name in layers_of(network)]
    for batch in batches:
        network(batch)
    for hook in hooks:
        hook.remove()
    return ranges


def round_inputs_and_weights(network: nn.Module, ranges: Ranges, bits: int) -> None:
    """Let the layers that have a range round; `plain_layers` undoes it."""
    round_layers(network, ranges, None, Rounding(bits, on=True))
    for name, bounds in ranges.items():
        network.get_submodule(name)._buffers[INPUT].copy_(bounds)


def changes(exact: Predictions, judged: Predictions) -> Row:
    pairs = judged.compared_with(exact)
    paired = {key: pairs[key] for key in ("change", "change_low", "change_high", "differs")}
    return {"loss_change": judged.mean_loss - exact.mean_loss, "accuracy": judged.accuracy, **paired}


def draw_changes(folder: RunFolder, rows: list[Row]) -> None:
    """Bars of the layers that change the loss most, in the network's order."""
    worst = sorted({row["layer"] for row in rows}, key=lambda name: -max_change(rows, name))[:MOST_BARS]
    series: dict[str, dict[str, float | None]] = {}
    for row in rows:
        if row["layer"] in worst:
            series.setdefault(f"weights of {row['bits']} bits", {})[row["layer"]] = row["loss_change"]
    figure = bar_chart(series, "change of the held-out loss (nats)")
    caption = "Each layer rounded alone, and all together. Right of 0 the loss is higher than in floating point."
    folder.add_figure("sensitivity", figure, "What each layer loses in few bits", caption)


def max_change(rows: list[Row], name: str) -> float:
    return max(abs(row["loss_change"]) for row in rows if row["layer"] == name)


def metrics_of(rows: list[Row]) -> dict[str, float]:
    metrics = {}
    for bits in dict.fromkeys(row["bits"] for row in rows):
        found = {row["layer"]: row["loss_change"] for row in rows if row["bits"] == bits}
        metrics[f"sensitivity/all_{bits}"] = found.pop(ALL)
        metrics[f"sensitivity/worst_{bits}"] = max(found.values())
    return metrics
