"""What every device says of every layer, as an assignment problem."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgetrain.hardware.assignment import FULL, Problem
from edgetrain.hardware.cost import Cost, Device, LayerCost
from edgetrain.hardware.workload import Workload


@dataclass(frozen=True)
class DeviceTable:
    """A workload on several devices. costs: of each alone; layers: those that some device covers, which are the rows of
    `problem`; uncovered: the others, each with every device's reason; silent: a device without energies, or none."""

    workload: Workload
    costs: Mapping[str, Cost]
    layers: tuple[int, ...]
    problem: Problem
    uncovered: Mapping[int, LayerCost]
    silent: str = ""


def device_table(workload: Workload, devices: Mapping[str, Device], bandwidth: float | None) -> DeviceTable:
    """Ask every device once. bandwidth: bytes/s that they share, None when they share none."""
    costs = {name: device.cost(workload) for name, device in devices.items()}
    columns = list(zip(*(cost.rows for cost in costs.values()), strict=True))
    layers = tuple(layer for layer, column in enumerate(columns) if not all(row.uncovered for row in column))
    taken = [
        [_taken(row, cost.memory_level, bandwidth) for row, cost in zip(columns[layer], costs.values(), strict=True)]
        for layer in layers
    ]
    silent = [
        name
        for name, cost in costs.items()
        if any(cost.rows[layer].joules is None and not cost.rows[layer].uncovered for layer in layers)
    ]
    problem = Problem(
        seconds=[[seconds for seconds, _ in row] for row in taken],
        before=_kept(predecessors(workload), layers),
        joules=[[row.joules or 0.0 for row in columns[layer]] for layer in layers] if not silent else None,
        shares=[[share for _, share in row] for row in taken] if bandwidth is not None else None,
    )
    uncovered = {
        layer: LayerCost(
            column[0].name,
            column[0].kind,
            column[0].macs,
            component=column[0].component,
            uncovered="; ".join(f"{name}: {row.uncovered}" for name, row in zip(costs, column, strict=True)),
        )
        for layer, column in enumerate(columns)
        if all(row.uncovered for row in column)
    }
    return DeviceTable(workload, costs, layers, problem, uncovered, silent[0] if silent else "")


def _taken(row: LayerCost, level: str, bandwidth: float | None) -> tuple[float, int]:
    """Seconds, and millionths of the shared bandwidth, rounded down: a tenth ten times is the whole."""
    if row.uncovered:
        return math.inf, 0
    if bandwidth is None:
        return row.seconds, 0
    moving = row.moved.get(level, 0.0) / bandwidth
    seconds = max(row.seconds, moving)
    return seconds, int(FULL * moving / seconds) if seconds else 0


def predecessors(workload: Workload) -> list[set[int]]:
    """The layers that each waits for: those above it that wrote what it reads, or read what it overwrites; of a layer
    without tensors the one before it."""
    writer: dict[str, int] = {}
    readers: dict[str, set[int]] = {}
    found = []
    for number, layer in enumerate(workload):
        reads, writes = ({tensor.name for tensor in side} for side in (layer.inputs, layer.outputs))
        waits = {writer[name] for name in reads | writes if name in writer}
        waits |= {other for name in writes for other in readers.get(name, ())}
        found.append(waits if reads or not number else waits | {number - 1})
        for name in writes:
            writer[name] = number
            readers[name] = set()
        for name in reads - writes:
            readers.setdefault(name, set()).add(number)
    return found


def _kept(before: Sequence[set[int]], layers: Sequence[int]) -> list[list[int]]:
    """The same among `layers` alone: who waits for one that is left out waits for those that it waited for."""
    row = {layer: number for number, layer in enumerate(layers)}
    through: list[set[int]] = []
    for others in before:
        through.append({kept for other in others for kept in ({other} if other in row else through[other])})
    return [sorted(row[other] for other in through[layer]) for layer in layers]


def joined(problems: Sequence[Problem]) -> Problem:
    """Models that run at the same time, without waiting for each other."""
    before, first = [], 0
    for problem in problems:
        before += [[first + other for other in others] for others in problem.before]
        first += len(problem)
    known = all(problem.joules is not None for problem in problems)
    shared = any(problem.shares is not None for problem in problems)
    return Problem(
        seconds=[row for problem in problems for row in problem.seconds],
        before=before,
        joules=[row for problem in problems for row in problem.joules] if known else None,
        shares=[row for problem in problems for row in problem.shares] if shared else None,
    )
