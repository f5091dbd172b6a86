"""A module exported by `torch.export`, and what its graph says of the tensors of an operator."""

import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.experimental import _config

from edgetrain.errors import UserError
from edgetrain.hardware.operator_rows import Operand

TORCH = str(Path(torch.__file__).parent)


def exported(
    module: nn.Module, inputs: tuple[Any, ...], name: str, dynamic_shapes: tuple[Any, ...] | None = None
) -> ExportedProgram:
    """The graph of a module. Its operators are still whole (attention, LSTM); outputs that are no tensors are gone.

    dynamic_shapes: of the inputs, as torch.export takes them; None: the sizes are those of the inputs.
    """
    hook = module.register_forward_hook(lambda module, inputs, output: tuple(tensors_of(output)))
    try:
        with evaluating(module), torch.no_grad(), silence(), every_size(dynamic_shapes is not None):
            return torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes)
    except UserError:
        raise
    except Exception as error:
        raise UserError(refusal(module, error, name)) from error
    finally:
        hook.remove()


def every_size(free: bool) -> AbstractContextManager[None]:
    """Inside, free sizes are not told apart from 1, or anything else, by the example: the graph holds for all."""
    return _config.patch(backed_size_oblivious=free)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module has its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def silence() -> Iterator[None]:
    """Nothing of what torch tells its own developers; an error is told once, as a sentence."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def refusal(module: nn.Module, error: Exception, name: str) -> str:
    """What torch.export said, at which line of the model and in which module, and what to do."""
    paths = {id(part): path for path, part in module.named_modules()}
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if id(owner) in paths and not frame.f_code.co_filename.startswith(TORCH):
            path = paths[id(owner)]
            place = f" at {Path(frame.f_code.co_filename).name}:{line}" + (f", in module '{path}'" if path else "")
    cause = re.search(r"Caused by: \((.*?)\)", str(error))
    if not place and cause:
        place = f" at {cause[1]}"
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    said = said.partition(" (unhinted")[0].rstrip(".")
    held = re.search(r"Dim\('\w+', min=(\d+), max=(\d+)\)", str(error))
    if held:  # torch.export's suggestion where a free size has bounds that the graph does not hold for
        return f"{name} cannot be exported with sides as free as that: its graph holds from {held[1]} to {held[2]}"
    return (
        f"{name} cannot be exported{place}: {said}; check that the example inputs fit, and where control flow depends "
        "on values, trace the parts that take and give tensors, by wrapper modules or through components()"
    )


def memory(value: Tensor) -> int:
    """What tells two tensors apart, and not a tensor and its view."""
    return value.untyped_storage()._cdata


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The tensors of a value, however nested; what is none (a cache object) is left out."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (list, tuple, Mapping)):
        for item in output.values() if isinstance(output, Mapping) else output:
            yield from tensors_of(item)


def without_empty(argument: Any) -> Any:
    """A list of operands without those that have no elements."""
    if isinstance(argument, (list, tuple)):
        return [item for item in argument if not isinstance(item, Operand) or item.elements]
    return argument


def arguments_of(schema: torch.FunctionSchema, node: fx.Node) -> dict[str, Any]:
    """A call's arguments by the names of its schema, left-out ones with their default."""
    named = {argument.name: argument.default_value for argument in schema.arguments}
    return named | dict(zip(named, node.args, strict=False)) | dict(node.kwargs)


def written_to(node: fx.Node) -> list[Tensor]:
    """The tensors that an operator writes in place."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return []
    arguments = arguments_of(node.target._schema, node)
    found = [
        arguments.get(argument.name)
        for argument in node.target._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [value.meta["val"] for value in found if isinstance(value, fx.Node)]
