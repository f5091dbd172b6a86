"""How parameters are trained: the learning rate over the steps, and which of them share settings.

`poly` is the schedule of mmseg's PolyLrUpdaterHook by iterations: the rate falls from the first step on, and warm-up
multiplies what has fallen. The other schedules fall after the warm-up. Groups by name are those of mmcv's
`paramwise_cfg.custom_keys`; there only the longest fragment acts on a name, here decay and rate are looked up each on
its own, so that a norm within a head loses its decay and keeps the head's rate.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from edgetrain.errors import UserError, listing

ScheduleName = Literal["cosine", "linear", "constant", "stairs", "poly"]


@dataclass(frozen=True)
class Schedule:
    """The factor on the peak learning rate at an optimiser step: Task's arguments of the same names.

    power: of poly. warmup_ratio: the factor that the warm-up begins with; None begins with a step's share of it.
    Raises UserError for numbers out of range.
    """

    name: ScheduleName
    total_steps: int
    warmup_steps: int = 0
    min_ratio: float = 0.0
    power: float = 1.0
    warmup_ratio: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.power) and self.power > 0):
            raise UserError(f"task.power={self.power} must be above 0; 1 falls along a line")
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio <= 1:
            raise UserError(f"task.warmup_ratio={self.warmup_ratio} is outside 0 to 1; null begins with a step's share")

    def __call__(self, step: int) -> float:
        if self.name == "poly":
            fall = (1 - min(1.0, step / max(1, self.total_steps))) ** self.power
            return self.warmup(step) * (self.min_ratio + (1 - self.min_ratio) * fall)
        if step < self.warmup_steps:
            return self.warmup(step)
        if self.name == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        if self.name == "stairs":
            return self.min_ratio ** (min(2, int(3 * progress)) / 2)
        fall = 0.5 * (1 + math.cos(math.pi * progress)) if self.name == "cosine" else 1 - progress
        return self.min_ratio + (1 - self.min_ratio) * fall

    def warmup(self, step: int) -> float:
        """The factor of the warm-up alone; 1 after it."""
        if step >= self.warmup_steps:
            return 1.0
        if self.warmup_ratio is None:
            return (step + 1) / self.warmup_steps
        return 1 - (1 - step / self.warmup_steps) * (1 - self.warmup_ratio)


@dataclass
class Group:
    """Parameters with one factor on the learning rate; decays: whether the optimiser's weight decay acts on them."""

    decays: bool
    multiplier: float
    parameters: list[nn.Parameter] = field(default_factory=list)

    def settings(self) -> dict:
        """As an optimiser takes a group."""
        return {"params": self.parameters} | ({} if self.decays else {"weight_decay": 0.0})


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], no_decay: list[str] | None, lr_multipliers: dict[str, float] | None
) -> list[Group]:
    """Groups of the trained parameters; none is empty.

    no_decay: fragments of the names of those without weight decay; None: all but matrices. lr_multipliers: a factor on
    the learning rate by fragment of the name, of which the longest counts. Raises UserError for a fragment that is in
    no name, and for a factor below 0.
    """
    named = list(named)
    factors = lr_multipliers or {}
    for key, fragments in (("no_decay", no_decay or []), ("lr_multipliers", factors)):
        check_fragments(f"task.{key}", fragments, [name for name, _ in named])
    for fragment, factor in factors.items():
        if not (math.isfinite(factor) and factor >= 0):
            raise UserError(f"task.lr_multipliers.{fragment}={factor} must be a finite number, and at least 0")
    groups: dict[tuple[float, bool], Group] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2 if no_decay is None else not any(part in name for part in no_decay)
        longest = max((fragment for fragment in sorted(factors) if fragment in name), key=len, default=None)
        factor = 1.0 if longest is None else float(factors[longest])
        groups.setdefault((factor, not decays), Group(decays, factor)).parameters.append(parameter)
    return [groups[key] for key in sorted(groups)]


def check_fragments(key: str, fragments: Iterable[str], names: list[str]) -> None:
    """Raises UserError for one that no name contains, with the nearest parts of names."""
    parts = list(dict.fromkeys(part for name in names for part in name.split(".")))
    for fragment in fragments:
        if fragment and any(fragment in name for name in names):
            continue
        near = difflib.get_close_matches(fragment, parts, n=5, cutoff=0.5)
        known = f"near names are {listing(near)}" if near else f"names are {listing(names, 5)}"
        raise UserError(f"{key} names '{fragment}', which is in the name of no parameter of the model; {known}")
