"""Look at the states between the layers of a Llama-family model while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def captured_hidden_states(layers: nn.ModuleList) -> Iterator[list[Tensor]]:
    """Within the block, every forward of the layers fills the list with x_1..x_L, each [batch, n, dim]."""
    states: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda module, inputs, output: states.append(output)) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
