"""What an operator's cost is written down as: rows, before they have names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from edgetrain.hardware.formats import Format
from edgetrain.hardware.workload import Kind, Loops


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor as an operator reads or writes it, maybe a part of a larger one.

    elements: distinct ones, fewer than the shape's after `expand`; stored: weights of that name, empty for an
    activation and for what is made of no weights; constant: known before the model runs; start: where in the whole.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    elements: int
    constant: bool = False
    stored: str = ""
    start: int = 0

    def part(self, *shape: int) -> "Operand":
        return replace(self, shape=shape, elements=prod(shape))


@dataclass(frozen=True)
class Row:
    """A layer before it has a name. reads: activations and weights alike; weights: their count where it is not that of
    the weights read; suffix: tells the rows of a module apart; carried: an input that comes back as an output."""

    kind: Kind
    loops: Loops
    reads: Sequence[Operand | None]
    writes: Sequence[Operand]
    operations: int
    macs: int = 0
    biases: Sequence[Operand | None] = ()
    weights: int | None = None
    suffix: str = ""
    carried: Sequence[tuple[Operand, Operand]] = ()


@dataclass(frozen=True)
class Call:
    """An operator at work. arguments: by the names of its schema; new: makes a tensor between two of its rows."""

    name: str
    arguments: dict[str, Any]
    outputs: tuple[Operand, ...]
    new: Callable[[tuple[int, ...], Format], Operand]

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def tensors(self) -> list[Operand]:
        """All tensors among the arguments, those in lists too."""
        found: list[Operand] = []
        for value in self.arguments.values():
            values = value if isinstance(value, (list, tuple)) else [value]
            found += [item for item in values if isinstance(item, Operand)]
        return found

    @property
    def output(self) -> Operand:
        return self.outputs[0]


def sizes(shape: tuple[int, ...]) -> Loops:
    """For a layer without a loop nest: [batch, channels, height, width] or [batch, tokens, features]."""
    if len(shape) > 3:
        batch, channels, height, width = shape[0], shape[1], shape[2], prod(shape[3:])
    else:
        batch, height, channels = ((1,) * (3 - len(shape)) + shape) if len(shape) != 2 else (shape[0], 1, shape[1])
        width = 1
    return Loops(batch, 1, channels, channels, height, width)


def product_rows(kind: Kind, loops: Loops, call: Call, reads: Sequence[Operand | None], **more: Any) -> list[Row]:
    """One row of MACs, as many as its loops have."""
    return [Row(kind, loops, reads, call.outputs[:1], 2 * loops.macs, loops.macs, **more)]
