"""Several devices as one: layers mapped to them, a memory bandwidth that they share, areas added up.

Heterogeneous sub-accelerators as NASAIC (Yang et al. 2020, arXiv 2002.04116) and XRBench have them. A layer waits for
the layers of its model that write what it reads, or for the one before it where its table has no tensors; models do not
wait for each other. What a tensor costs on its way to the next device is in the devices' own traffic.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from edgetrain.errors import UserError
from edgetrain.hardware.assignment import Assignment, Status
from edgetrain.hardware.cost import Cost, Device, check_sources
from edgetrain.hardware.device_table import DeviceTable, device_table, joined
from edgetrain.hardware.hap import solve
from edgetrain.hardware.schedule import Schedule, Slot
from edgetrain.hardware.workload import Workload

KEPT = 64  # workloads whose costs are kept, so that other deadlines and mixtures ask no device again


class System:
    """Devices by name that run layers at the same time; itself a device.

    bandwidth: of the memory that all share, bytes/s; None: each has its own. A layer then takes at least its bytes (at
    its device's `memory_level`) over the bandwidth, holds that share of it while it runs, and starts when the others
    leave it so much: slowing each other down is not modelled. deadline: of `cost`, s, as in `schedule`; time_limit: of
    CP-SAT, by its deterministic clock, of which a second is several real ones; 0 uses list scheduling alone.
    """

    def __init__(
        self,
        devices: Mapping[str, Device],
        *,
        name: str = "system",
        bandwidth: float | None = None,
        deadline: float | None = None,
        time_limit: float = 0.1,
        sources: Mapping[str, str] | None = None,
        unverified: list[str] | None = None,
    ) -> None:
        if not devices:
            raise UserError(f"hardware {name}: a system needs devices; name at least one under devices")
        if bandwidth is not None and not bandwidth > 0:
            raise UserError(f"hardware {name}: bandwidth={bandwidth} must be above zero bytes/s, or null for none")
        if not time_limit >= 0:
            raise UserError(f"hardware {name}: time_limit={time_limit} must be zero seconds or more")
        self.devices, self.name = dict(devices), name
        self._names = list(devices)
        self.bandwidth, self.time_limit = bandwidth, time_limit
        self.deadline = self._checked(deadline)
        self.sources, self.unverified = dict(sources or {}), list(unverified or [])
        check_sources(name, {} if bandwidth is None else {"bandwidth": bandwidth}, self.sources, self.unverified)
        self._tables: dict[Workload, DeviceTable] = {}

    def schedule(self, workloads: Sequence[Workload], deadline: float | None = None) -> Schedule:
        """Map and time the layers of models that run at once; of models of one name the second is called `name:2`.

        deadline: s; the least energy that ends by then, math.inf for the least at all; None the soonest end, and of
        those the least energy. A layer that no device covers takes no time and is listed in `uncovered`, as in a Cost.
        Raises UserError for a deadline when a device has no model of energy.
        """
        deadline = self._checked(deadline)
        tables = [self.table(workload) for workload in workloads]
        found, status = self._solved(tables, deadline)
        slots: list[Slot] = []
        for model, table in zip(_distinct(workload.name for workload in workloads), tables, strict=True):
            for row, layer in enumerate(table.layers):
                place = len(slots)
                device, start = found.devices[place], found.starts[place]
                joules = table.problem.joules[row][device] if table.problem.joules else None
                end = start + table.problem.seconds[row][device]
                slots.append(Slot(model, table.workload.layers[layer].name, self._names[device], start, end, joules))
        return Schedule(
            tuple(sorted(slots, key=lambda slot: slot.start)),
            tuple(self.devices),
            found.makespan,
            found.joules,
            status,
            deadline,
            tuple(row for table in tables for row in table.uncovered.values()),
        )

    def cost(self, workload: Workload) -> Cost:
        """The workload alone on the system: every row on the device that it is mapped to, `seconds` the makespan."""
        table = self.table(workload)
        found, status = self._solved([table], self.deadline)
        rows = dict(table.uncovered)
        for row, layer in enumerate(table.layers):
            device, seconds = self._names[found.devices[row]], table.problem.seconds[row][found.devices[row]]
            rows[layer] = replace(table.costs[device].rows[layer], seconds=seconds, device=device)
        costs = table.costs.values()
        level, *others = dict.fromkeys(cost.memory_level for cost in costs)
        return Cost(
            self.name,
            workload.name,
            tuple(rows[layer] for layer in range(len(workload))),
            max(cost.weight_bytes for cost in costs),
            area_mm2=_sum(cost.area_mm2 for cost in costs),
            macs_per_second=_sum(cost.macs_per_second for cost in costs),
            bytes_per_second=None if others else self.bandwidth or _sum(cost.bytes_per_second for cost in costs),
            memory_level="" if others else level,
            sources=self.sources
            | {f"{name}.{key}": text for name, cost in table.costs.items() for key, text in cost.sources.items()},
            unverified=(
                *self.unverified,
                *(f"{name}.{key}" for name, cost in table.costs.items() for key in cost.unverified),
            ),
            notes=self._notes(table.costs, status),
            makespan=found.makespan,
        )

    def area_mm2(self, workload: Workload) -> float | None:
        """Of all devices together; None when one does not know its own."""
        return _sum(cost.area_mm2 for cost in self.table(workload).costs.values())

    def table(self, workload: Workload) -> DeviceTable:
        """What every device alone says of a workload; kept for the next time.

        Raises UserError when bandwidth is shared and a device does not count what it moves.
        """
        if workload not in self._tables:
            if len(self._tables) == KEPT:
                del self._tables[next(iter(self._tables))]
            found = device_table(workload, self.devices, self.bandwidth)
            silent = [name for name, cost in found.costs.items() if not cost.memory_level]
            if self.bandwidth is not None and silent:
                raise UserError(
                    f"hardware {self.name}: bandwidth={self.bandwidth:g} cannot be shared, because {silent[0]} does "
                    "not count what it moves; leave bandwidth out"
                )
            self._tables[workload] = found
        return self._tables[workload]

    def _solved(self, tables: Sequence[DeviceTable], deadline: float | None) -> tuple[Assignment, Status]:
        problem = joined([table.problem for table in tables])
        if deadline is not None and problem.joules is None:
            silent = next(table.silent for table in tables if table.silent)
            raise UserError(
                f"hardware {self.name}: a deadline asks for the least energy, and {silent} has no model of energy; "
                "leave deadline out"
            )
        return solve(problem, deadline, self.time_limit)

    def _checked(self, deadline: float | None) -> float | None:
        if deadline is not None and not deadline > 0:
            raise UserError(f"hardware {self.name}: deadline={deadline} must be above zero seconds, or null for none")
        return deadline

    def _notes(self, costs: Mapping[str, Cost], status: Status) -> tuple[str, ...]:
        aim = "the soonest end" if self.deadline is None else f"least energy by {1e3 * self.deadline:g} ms"
        said = {
            "optimal": "proved to be best",
            "feasible": "not proved to be best",
            "infeasible": "which nothing can: this ends soonest",
            "unknown": "which nothing found does: this ends soonest",
        }
        notes = [f"layers are mapped for {aim}, {said[status]}"]
        if any(cost.limits for cost in costs.values()):
            notes.append("whether each device's share fits into its own memory is not checked")
        return (*notes, *(f"{name}: {note}" for name, cost in costs.items() for note in cost.notes))


def _sum(values: Iterable[float | None]) -> float | None:
    """None when one of them is not known."""
    values = list(values)
    return None if None in values else sum(values)


def _distinct(names: Iterable[str]) -> list[str]:
    """The second `x` is `x:2`."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return found
