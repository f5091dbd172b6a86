"""What a device says of a workload: time, energy and traffic of every layer, memory, area, and its sources.

All figures are modelled, none is measured. Units are SI: seconds, joules, bytes; areas in mm2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from edgetrain.errors import UserError, listing
from edgetrain.hardware.workload import MAC_KINDS, Workload


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer on one device.

    joules: None where the device has no model of energy; moved: bytes by memory level; energy: joules by part (core,
    SRAM, DRAM), which add up to `joules`; uncovered: why the device has no figure for this layer, which then counts
    nothing and is listed; device: which one of a system runs it.
    """

    name: str
    kind: str
    macs: int
    seconds: float = 0.0
    joules: float | None = None
    moved: Mapping[str, float] = field(default_factory=dict)
    energy: Mapping[str, float] = field(default_factory=dict)
    component: str = ""
    uncovered: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class Limit:
    """A capacity of a board: what is needed of it, and what there is, in bytes. Too little is a result, no error."""

    name: str
    needed: int
    available: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


@dataclass(frozen=True)
class Cost:
    """A workload on a device.

    activation_bytes: most that live at once, None where the device has no plan of it; weight_bytes: stored weights,
    shared ones once; macs_per_second: most that the device computes in the workload's format; bytes_per_second: most
    that crosses `memory_level`, a key of the rows' `moved`; sources: where each constant is from, of which `unverified`
    ones have not been read in their source; notes: what to know of the figures; watts: by component, where the device
    knows how often each runs.
    """

    device: str
    workload: str
    rows: tuple[LayerCost, ...]
    weight_bytes: int
    activation_bytes: int | None = None
    area_mm2: float | None = None
    macs_per_second: float | None = None
    bytes_per_second: float | None = None
    memory_level: str = ""
    limits: tuple[Limit, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    watts: Mapping[str, float] = field(default_factory=dict)
    makespan: float | None = None

    @cached_property
    def seconds(self) -> float:
        """From the start of the first layer to the end of the last."""
        return sum(row.seconds for row in self.rows) if self.makespan is None else self.makespan

    @cached_property
    def joules(self) -> float | None:
        """None when no row has a figure, and when a row that takes time has none: a part would look like the whole."""
        known = [row.joules for row in self.rows if row.joules is not None]
        partial = any(row.joules is None and not row.uncovered for row in self.rows)
        return None if partial or not known else sum(known)

    @property
    def uncovered(self) -> tuple[LayerCost, ...]:
        return tuple(row for row in self.rows if row.uncovered)

    @property
    def fits(self) -> bool:
        return all(limit.fits for limit in self.limits)


class Device(Protocol):
    """Anything that has a name and costs workloads. Raises UserError for a workload that it cannot read."""

    name: str

    def cost(self, workload: Workload) -> Cost: ...


def check_sources(
    device: str, constants: Mapping[str, object], sources: Mapping[str, str], unverified: list[str]
) -> None:
    """Raises UserError when a constant has no source, or when a source or a mark is for none of them."""
    for name in constants:
        if not str(sources.get(name, "")).strip():
            raise UserError(
                f"hardware {device}: the constant '{name}' has no source; say in sources.{name} where it is from"
            )
    unknown = [name for name in (*sources, *unverified) if name not in constants]
    if unknown:
        raise UserError(
            f"hardware {device}: {listing(dict.fromkeys(unknown))} in sources or unverified is none of its constants; "
            f"they are {listing(constants)}"
        )


def check_sizes(device: str, workload: Workload) -> None:
    """Raises UserError for a layer with a loop or a tensor of no size."""
    for layer in workload:
        loops = next((name for name, size in layer.loops._asdict().items() if size < 1), None)
        tensor = next((one.name for one in (*layer.inputs, *layer.outputs) if one.elements < 1), None)
        if loops or tensor:
            what = f"{loops}={getattr(layer.loops, loops)}" if loops else f"the tensor '{tensor}' has no elements"
            raise UserError(f"hardware {device}: layer '{layer.name}' of {workload.name} has no size: {what}")


def ignored_facts(workload: Workload, density: bool = False, rank: bool = False) -> list[str]:
    """Notes on what layers say of themselves and a device does not use, unless it is said to use it."""
    notes = []
    if not density and any(layer.density < 1 for layer in workload):
        notes.append("zero weights are stored and multiplied")
    if not rank and any(layer.rank is not None for layer in workload):
        notes.append("weights of low rank are costed whole, not as their two factors")
    products = [layer for layer in workload if layer.kind in MAC_KINDS and layer.kind != "recurrent"]
    if any(layer.macs != layer.loops.macs for layer in products if not layer.degenerate):
        notes.append("some layers say other MACs than their loops have")
    return notes
