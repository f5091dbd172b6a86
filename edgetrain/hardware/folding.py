"""Batch norms folded into the layer before them, as every deployment of a trained network does."""

from collections import Counter
from dataclasses import replace

from edgetrain.hardware.workload import MAC_KINDS, Layer, Workload


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
            and before.kind in MAC_KINDS
            and readers[read] == 1
            and owners[before.weight_name] <= 1
            and before.weights
        ):
            layers[writer[read]] = replace(before, outputs=layer.outputs, biases=layer.weights // 2)
            continue
        writer |= {tensor.name: len(layers) for tensor in layer.outputs}
        layers.append(layer)
    return replace(workload, layers=tuple(layers))


def is_batch_norm(layer: Layer) -> bool:
    """A norm with weights that only scales and shifts: two operations an element, where others also take statistics."""
    elements = sum(tensor.elements for tensor in layer.outputs)
    return layer.kind == "norm" and layer.weights > 0 and layer.operations == 2 * elements
