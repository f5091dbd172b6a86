"""Whether a network fits a board: constants in its flash, the arena in its RAM. Code and stack come on top of both."""

from collections.abc import Mapping

from edgetrain.errors import UserError
from edgetrain.export.c.arena import Arena
from edgetrain.models.integer import IntegerProgram, Multipliers, Operation

INT32 = 4  # bytes of a bias, a multiplier, a shift


def constant_bytes(operation: Operation) -> int:
    """Of an operation's weights, biases, multipliers and shifts."""
    weight, bias = getattr(operation, "weight", None), getattr(operation, "bias", None)
    if weight is None or bias is None:
        return 0
    rescale = getattr(operation, "rescale", None)
    words = 3 if isinstance(rescale, Multipliers) else 1
    return weight.numel() + words * INT32 * bias.numel()


def check_board(
    program: IntegerProgram, plans: Mapping[str, Arena], flash_bytes: int | None, ram_bytes: int | None
) -> None:
    """plans: those that are used. Raises UserError for a board that is too small; None is a board without a limit."""
    constants = {operation.name: constant_bytes(operation) for operation in program.operations}
    total = sum(constants.values())
    if flash_bytes is not None and total > flash_bytes:
        largest = max(constants, key=constants.__getitem__)
        raise UserError(
            f"export.c.flash_bytes={flash_bytes}: weights and other constants take {total:,} bytes, "
            f"{total - flash_bytes:,} too many, {constants[largest]:,} of them in '{largest}', and code comes on top; "
            "make that layer smaller or take another board"
        )
    arena = max(plans.values(), key=lambda plan: plan.bytes)
    if ram_bytes is not None and arena.bytes > ram_bytes:
        raise UserError(
            f"export.c.ram_bytes={ram_bytes}: the arena takes {arena.bytes:,} bytes, {arena.bytes - ram_bytes:,} too "
            f"many, most while '{arena.peak_layer}' runs, and the stack comes on top; make what that layer reads or "
            "writes smaller or take another board"
        )
