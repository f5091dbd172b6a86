"""What a keyword network asks of a microcontroller, counted as Hello Edge counts, and three classes of them.

arXiv 1711.07128, section 3 (text unverified; these rules give every memory and operation count of its main table).
Weights and activations have 8 bits; batch norms are folded into the layer before them.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetrain.models.keyword_network import KeywordNetwork
from edgetrain.models.recurrent_cells import GRU, LSTM

INFERENCES_PER_SECOND = 10  # at which the operations below are to run; unverified


@dataclass(frozen=True)
class Microcontroller:
    """memory: bytes; operations: for one inference."""

    name: str
    memory: int
    operations: int


# Unverified, as the paper's text was not at hand; the sizes s, m and l of every family fit them.
MICROCONTROLLERS = (
    Microcontroller("small", 80_000, 6_000_000),
    Microcontroller("medium", 200_000, 20_000_000),
    Microcontroller("large", 500_000, 80_000_000),
)


@dataclass(frozen=True)
class Budget:
    """Of one inference. parameters: stored numbers; macs; operations: two a MAC and one a bias; memory: bytes."""

    parameters: int
    macs: int
    operations: int
    memory: int

    def fits(self, device: Microcontroller) -> bool:
        """To a tenth of a KB, as the paper prints memory: its DNN s of 80.0 KB needs 80,038 bytes."""
        return round(self.memory, -2) <= device.memory and self.operations <= device.operations


@dataclass(frozen=True)
class Step:
    """A layer's share: macs, biases added, and elements that it holds at once."""

    macs: int
    biases: int
    held: int


def budget(network: KeywordNetwork) -> Budget:
    """Memory is the parameters and the most that a layer holds at once; the front end is not counted."""
    steps: list[Step] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        steps.append(step(layer, inputs[0].shape[1:], output.shape[1:]))

    cells = [module for module in network.modules() if isinstance(module, LSTM | GRU)]
    within = {part for cell in cells for part in cell.modules() if part is not cell}
    counted = (LSTM, GRU, nn.Conv2d, nn.Linear, _BatchNorm)
    layers = [module for module in network.modules() if isinstance(module, counted) and module not in within]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    training = network.training
    try:
        with torch.inference_mode():
            parameter = next(network.parameters())
            network.eval()(torch.zeros(1, *network.input_shape, device=parameter.device))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    scales = sum(layer.weight.numel() for layer in layers if is_scaled(layer))
    parameters = sum(parameter.numel() for parameter in network.parameters()) - scales
    macs, biases = sum(step.macs for step in steps), sum(step.biases for step in steps)
    return Budget(parameters, macs, 2 * macs + biases, parameters + max(step.held for step in steps))


def is_scaled(layer: nn.Module) -> bool:
    """A batch norm with a scale that folding multiplies into other weights."""
    return isinstance(layer, _BatchNorm) and isinstance(layer.weight, nn.Parameter)


def step(layer: nn.Module, shape: torch.Size, out: torch.Size) -> Step:
    """From the shapes of its input and output. A recurrent layer holds its inputs, and a frame's gates and state."""
    if isinstance(layer, LSTM):
        products = [layer.input, layer.recurrent] + ([layer.projection] if layer.projection else [])
        diagonals = 0 if layer.peepholes is None else layer.peepholes.numel()
        macs = shape[0] * (sum(product.weight.numel() for product in products) + diagonals)
        state = layer.cells if layer.projection else 0
        return Step(macs, shape[0] * 4 * layer.cells, prod(shape) + 4 * layer.cells + state)
    if isinstance(layer, GRU):
        weights = sum(product.weight.numel() for product in (layer.input, layer.recurrent, layer.candidate))
        return Step(shape[0] * weights, shape[0] * 3 * layer.cells, prod(shape) + 3 * layer.cells)
    if isinstance(layer, _BatchNorm):
        return Step(0, prod(out), 0)  # folded, its shift is a bias
    pixels = prod(out[1:]) if isinstance(layer, nn.Conv2d) else 1
    return Step(layer.weight.numel() * pixels, 0 if layer.bias is None else prod(out), prod(shape) + prod(out))
