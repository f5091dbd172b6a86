"""When each layer of one or several models runs, and on which device of a system."""

from dataclasses import dataclass

from edgetrain.folder import Row
from edgetrain.hardware.assignment import Status
from edgetrain.hardware.cost import LayerCost
from edgetrain.report.gantt import Bar, gantt_chart


@dataclass(frozen=True, slots=True)
class Slot:
    """A layer's place: its model, its device, start and end in seconds, joules or None without a model of energy."""

    model: str
    layer: str
    device: str
    start: float
    end: float
    joules: float | None = None


@dataclass(frozen=True)
class Schedule:
    """Every layer that some device covers, by start; `uncovered` are the others, which take no time.

    status: optimal; feasible, ends by the deadline but is not proved to be best; infeasible, nothing can end by the
    deadline; unknown, nothing was found that does. The last two hold the fastest schedule found, so that how much it is
    late is a number. deadline: seconds, None when it was to end as soon as possible.
    """

    slots: tuple[Slot, ...]
    devices: tuple[str, ...]
    makespan: float
    joules: float | None
    status: Status
    deadline: float | None = None
    uncovered: tuple[LayerCost, ...] = ()

    @property
    def in_time(self) -> bool:
        return self.status in ("optimal", "feasible")

    def rows(self) -> list[Row]:
        """As a table, times in milliseconds and energies in millijoules."""
        return [
            {
                "model": slot.model,
                "layer": slot.layer,
                "device": slot.device,
                "start ms": 1e3 * slot.start,
                "end ms": 1e3 * slot.end,
                "mJ": None if slot.joules is None else 1e3 * slot.joules,
            }
            for slot in self.slots
        ]

    def gantt(self) -> bytes:
        """A row a device, a colour a model. Raises UserError when no layer takes any time."""
        bars = [Bar(slot.device, slot.model, slot.layer, 1e3 * slot.start, 1e3 * slot.end) for slot in self.slots]
        deadline = {"deadline": 1e3 * self.deadline} if self.deadline is not None else None
        return gantt_chart(bars, "time (ms)", rows=self.devices, reference=deadline)
