"""The repeated blocks of a model: where they are, and how to compile them and recompute their activations, in place.

A block is prepared beneath what a method has put before its class: the method's own part stays as it is, and runs once
however often the block's part runs. State-dict keys stay.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Forward = Callable[..., Any]


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The blocks of a model that says its `repeated_blocks()` or is arranged like Llama; none of another."""
    if hasattr(model, "repeated_blocks"):
        return model.repeated_blocks()
    return getattr(getattr(model, "model", None), "layers", nn.ModuleList())


@contextmanager
def prepared_blocks(model: nn.Module, compiled: bool, recomputed: bool) -> Iterator[None]:
    """Inside, every block is compiled, keeps only its inputs for the backward pass, or both."""
    before = [(block, type(block)) for block in blocks(model)]
    for block, block_class in before:
        block.__class__ = prepared(block_class, compiled, recomputed)
    try:
        yield
    finally:
        for block, block_class in before:
            block.__class__ = block_class


@lru_cache
def prepared(block_class: type[nn.Module], compiled: bool, recomputed: bool) -> type[nn.Module]:
    """The class with its forward prepared; one compiled function serves all blocks of a class."""
    if not (compiled or recomputed):
        return block_class
    first, *rest = block_class.__bases__
    if not issubclass(first, nn.Module):  # a method's mixin
        return type(block_class.__name__, (first, prepared(*rest, compiled, recomputed)), {})
    forward = block_class.forward
    if recomputed:
        forward = recomputing(forward)
    if compiled:
        forward = torch.compile(forward)
    return type(block_class.__name__, (block_class,), {"forward": forward})


def recomputing(forward: Forward) -> Forward:
    """Run again in the backward pass instead of keeping what it needs (Chen et al. 2016, arXiv 1604.06174)."""

    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return forward(self, *args, **kwargs)
        contexts = {"context_fn": lambda: (nullcontext(), untracked(self))} if norms_of(self) else {}
        return checkpoint(forward, self, *args, use_reentrant=False, **contexts, **kwargs)

    return run


def norms_of(block: nn.Module) -> list[_BatchNorm]:
    """Those of a block that keep statistics of their batches."""
    return [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@contextmanager
def untracked(block: nn.Module) -> Iterator[None]:
    """Inside, batch norms do not count a batch: they have counted it when it passed for the first time."""
    norms = norms_of(block)
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # statistics move by nothing; without them other tensors would be saved than before
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
