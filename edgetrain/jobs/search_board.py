"""Whether a network fits a board, found without training: flash, memory, operations and modelled time."""

from dataclasses import dataclass
from typing import Any

from edgetrain.build import build
from edgetrain.config import Config
from edgetrain.errors import UserError
from edgetrain.hardware.cost import Device
from edgetrain.hardware.folding import deployed
from edgetrain.hardware.workload import MAC_KINDS, Workload

COUNTED = {"flash": "bytes", "RAM": "bytes", "operations": "", "milliseconds": "ms, modelled"}  # needs, and their units


@dataclass(frozen=True)
class Need:
    """What a network needs of something, and what there is of it; None: no limit."""

    name: str
    unit: str
    needed: float
    available: float | None = None

    @property
    def missing(self) -> float:
        """What the limit is exceeded by; 0 where it holds."""
        return 0 if self.available is None else max(0, self.needed - self.available)

    @property
    def sentence(self) -> str:
        return f"{self.name} by {quantity(self.missing, self.unit)}"


@dataclass(frozen=True)
class Verdict:
    """What a network needs of a board. problem: why it has no figures, as the error says."""

    needs: tuple[Need, ...] = ()
    problem: str = ""

    @property
    def feasible(self) -> bool:
        return not self.problem and not any(need.missing for need in self.needs)

    @property
    def excess(self) -> float:
        """By how many times its limit the need that misses most does so; 0 where all hold."""
        return max((need.missing / need.available for need in self.needs if need.missing), default=0.0)

    @property
    def reason(self) -> str:
        """Why it is not feasible; empty when it is."""
        return self.problem or ", ".join(need.sentence for need in self.needs if need.missing)

    def of(self, name: str) -> float | None:
        return next((need.needed for need in self.needs if need.name == name), None)


@dataclass(frozen=True)
class Board:
    """A device and what else limits an inference on it: operations, and modelled milliseconds.

    Raises UserError for a limit that nothing could keep.
    """

    device: Device
    operations: float | None = None
    milliseconds: float | None = None

    def __post_init__(self) -> None:
        for key in ("operations", "milliseconds"):
            limit = getattr(self, key)
            if limit is not None and not limit > 0:
                raise UserError(f"job.{key}={limit}: no network keeps that; give a limit above 0, or null for none")

    def limit(self, need: str) -> float | None:
        """Of operations or milliseconds; None where there is none."""
        return {"operations": self.operations, "milliseconds": self.milliseconds}[need]

    def judge(self, config: Config) -> Verdict:
        """The configuration's model, batch norms folded, on the device.

        A model that cannot be built is not feasible. Raises UserError for a device without limits, or with none left.
        """
        try:
            model = build(config.model)
            task = build(config.task, model=model, methods=[], optimizer=None)
            workload = deployed(model, task.example_inputs(), config.recipe)
        except UserError as error:
            return Verdict(problem=str(error).splitlines()[0])
        cost = self.device.cost(workload)
        for limit in cost.limits:
            if limit.available <= 0:
                raise UserError(
                    f"hardware {self.device.name}: 0 bytes of {limit.name}, into which no network fits; set "
                    f"hardware.{self.device.name}.{limit.name.lower()}_bytes to what the board has"
                )
        if self.milliseconds is not None and cost.uncovered:
            layer = cost.uncovered[0]
            return Verdict(problem=f"{layer.name} has no modelled time: {layer.uncovered}")
        needs = [Need(limit.name, "bytes", limit.needed, limit.available) for limit in cost.limits]
        needs.append(Need("operations", "", operations(workload), self.operations))
        needs.append(Need("milliseconds", "ms", 1e3 * cost.seconds, self.milliseconds))
        if all(need.available is None for need in needs):
            raise UserError(
                f"hardware {self.device.name} says no flash or RAM, and job.operations and job.milliseconds are null: "
                "nothing limits the search; name a microcontroller, as hardware=[cortex_m7], or give a limit"
            )
        return Verdict(tuple(needs))


def operations(workload: Workload) -> int:
    """Of one inference as Hello Edge counts them: two a MAC, and one for every bias that is added."""
    products = [layer for layer in workload if layer.kind in MAC_KINDS]
    biases = sum(tensor.elements for layer in products if layer.biases for tensor in layer.outputs)
    return 2 * sum(layer.macs for layer in products) + biases


def quantity(value: float, unit: str = "") -> str:
    """With its unit, and thousands apart."""
    number = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"
    return f"{number} {unit}".strip()


def saved(verdict: Verdict) -> dict[str, Any]:
    """In plain containers."""
    return {"problem": verdict.problem, "needs": [[n.name, n.unit, n.needed, n.available] for n in verdict.needs]}


def restored(plain: dict[str, Any]) -> Verdict:
    return Verdict(tuple(Need(*need) for need in plain["needs"]), plain["problem"])
