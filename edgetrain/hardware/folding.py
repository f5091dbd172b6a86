"""Batch norms folded into the layer before them, as every deployment of a trained network does."""

from collections import Counter
from dataclasses import replace
from typing import Any

from torch import nn

from edgetrain.hardware.tracing import trace
from edgetrain.hardware.workload import Layer, Workload


def deployed(model: nn.Module, example_inputs: tuple[Any, ...], name: str) -> Workload:
    """The model traced, its batch norms folded: what devices are asked to cost. Raises UserError as `trace` does."""
    return fold_batch_norms(trace(model, example_inputs, name))


def fold_batch_norms(workload: Workload) -> Workload:
    """Without the batch norms that directly follow a convolution or linear layer whose output nobody else reads.

    Scale goes into that layer's weights and shift into its biases (Jacob et al. 2018, arXiv 1712.05877, section 3.2);
    weights that several layers share stay as they are.
    """
    readers = Counter(tensor.name for layer in workload for tensor in layer.inputs)
    readers.update(workload.outputs)
    owners = Counter(layer.weight_name for layer in workload if layer.weight_name)
    layers: list[Layer] = []
    writer: dict[str, int] = {}  # place in `layers` of what wrote a tensor
    for layer in workload:
        read = layer.inputs[0].name if layer.inputs else ""
        before = layers[writer[read]] if read in writer else None
        if (
            is_batch_norm(layer)
            and before is not None
            and readers[read] == 1
            and owners[before.weight_name] <= 1
            and channels(before) == layer.weights // 2
        ):
            layers[writer[read]] = replace(before, outputs=layer.outputs, biases=layer.weights // 2)
            continue
        writer |= {tensor.name: len(layers) for tensor in layer.outputs}
        layers.append(layer)
    return replace(workload, layers=tuple(layers))


def channels(layer: Layer) -> int | None:
    """Output channels that a batch norm after the layer would scale one by one; None where it cannot be folded."""
    if not (layer.weights and layer.outputs):
        return None
    shape = layer.outputs[0].shape
    if layer.kind in ("conv", "depthwise", "grouped"):
        return shape[1]
    return shape[1] if layer.kind == "linear" and len(shape) == 2 else None  # of three, the norm's axis is tokens


def is_batch_norm(layer: Layer) -> bool:
    """A norm with weights that only scales and shifts: two operations an element, where others also take statistics."""
    elements = sum(tensor.elements for tensor in layer.outputs)
    return layer.kind == "norm" and layer.weights > 0 and layer.operations == 2 * elements
