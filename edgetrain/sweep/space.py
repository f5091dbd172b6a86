"""What a sweep may choose from, read from Hydra's own sweep grammar.

    optimizer.lr=tag(log,interval(1e-4,1e-2))   a real number, both ends included, evenly over its logarithm
    model.layers=int(interval(2,8))             a whole number, both ends included
    model.dim=range(64,257,64)                  64, 128, 192, 256: as in Python, without the end
    model=choice(llama,mobilellm_tiny)          one of these; model=llama,mobilellm_tiny is the same

Imports nothing heavy, and Optuna only to propose.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
)
from hydra.errors import HydraException

from edgetrain.errors import UserError, nearest

if TYPE_CHECKING:
    import optuna

Value = str | int | float

# KEY in a message is the key that it is about.
FORMS = "write KEY=choice(a,b), KEY=range(1,8), KEY=interval(0,1) or KEY=tag(log,interval(1e-4,1e-2))"


@dataclass(frozen=True)
class Axis:
    """One swept key. typed: the key as on the command line, perhaps with a +.

    Either `choices`, texts as one types them, or numbers from low to high, both included: every `step`, or any.
    """

    typed: str
    choices: tuple[str, ...] = ()
    low: int | float = 0
    high: int | float = 0
    step: int | float | None = None
    log: bool = False

    @property
    def key(self) -> str:
        return self.typed.lstrip("+")

    @property
    def count(self) -> float:
        """How many values there are; infinite for an interval of real numbers."""
        if self.choices:
            return len(self.choices)
        return math.inf if self.step is None else round((self.high - self.low) / self.step) + 1

    @property
    def values(self) -> list[Value]:
        """All of them, in order. Not for an interval of real numbers."""
        return list(self.choices) or [self.low + i * self.step for i in range(self.count)]

    @property
    def probes(self) -> list[Value]:
        """What to check before anything starts: every choice, or both ends."""
        return list(self.choices) or [self.low, self.high]

    def at(self, share: float) -> Value:
        """The value at a share of the way from low to high, 0 <= share < 1, by the axis's own scale."""
        if self.choices:
            return self.choices[int(share * self.count)]
        if self.log:
            whole = isinstance(self.low, int)
            value = self.low * ((self.high + whole) / self.low) ** share
            return min(int(value), self.high) if whole else value
        if self.step is not None:
            return self.low + int(share * self.count) * self.step
        return self.low + share * (self.high - self.low)

    def override(self, value: Value) -> str:
        return f"{self.typed}={value}"

    def suggest(self, trial: "optuna.Trial") -> Value:
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if isinstance(self.low, int):
            return trial.suggest_int(self.key, self.low, self.high, step=self.step, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def spec(self) -> dict[str, Any]:
        """In plain containers, to compare with what a storage holds."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def size(axes: Sequence[Axis]) -> float:
    """How many points the space has."""
    return math.prod(axis.count for axis in axes)


def point(axes: Sequence[Axis], number: int) -> dict[str, Value]:
    """One point of a finite space, counted from 0; the last key changes fastest."""
    chosen = {}
    for axis in reversed(axes):
        number, place = divmod(number, axis.count)
        chosen[axis.key] = axis.values[place]
    return chosen


def spread_out(axes: Sequence[Axis], number: int, seed: int) -> dict[str, Value]:
    """A point of Roberts' R sequence (2018), counted from 0: however few are taken, they lie evenly in the space.

    Coordinate i of point n is (start + n / g**i) modulo 1; g is the root above 1 of g**(d + 1) = g + 1 for d keys.
    """
    g = 2.0
    for _ in range(50):
        g = (1 + g) ** (1 / (len(axes) + 1))
    start = random.Random(seed)
    return {axis.key: axis.at((start.random() + number / g**i) % 1) for i, axis in enumerate(axes, start=1)}


def read_space(overrides: list[str]) -> tuple[list[Axis], list[int] | None, list[str]]:
    """The swept keys, the seeds of a trial or None where none are given, and all other overrides as they are.

    Raises UserError that lists every key whose values are none, one, or not understood.
    """
    axes: list[Axis] = []
    seeds: list[int] | None = None
    fixed: list[str] = []
    problems: list[str] = []
    for text in overrides:
        try:
            override = parsed(text)
            if override is None or (override.key_or_group != "seed" and not override.is_sweep_override()):
                fixed.append(text)
            elif override.key_or_group == "seed":
                seeds = seeds_of(override)
            else:
                axes.append(axis_of(override))
        except ValueError as error:
            problems.append(f"{text}: {error}".replace("KEY", text.partition("=")[0]))
    keys = [axis.key for axis in axes]
    problems += [
        f"{key}: swept twice; give it one list of values" for key in dict.fromkeys(keys) if keys.count(key) > 1
    ]
    if problems:
        raise UserError("\n".join(problems))
    return axes, seeds, fixed


def parsed(text: str) -> Override | None:
    """None for what is not in Hydra's grammar and does not look like a sweep: compose says what is wrong with it.

    Raises ValueError for a sweep that cannot be read.
    """
    key, _, value = text.partition("=")
    if key in ("recipe", "out"):  # paths, of which Hydra's grammar does not take every one
        return None
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError) as error:
        if not re.match(r"\w+\(", value):
            return None
        reason = re.sub(r"^\w+ while evaluating '.*?\)': ", "", str(error).splitlines()[0])
        reason = re.sub(
            r"mismatch type argument .*: str is incompatible.*", "a word stands where a number should", reason
        )
        raise ValueError(f"{reason}; {FORMS}") from error


def seeds_of(override: Override) -> list[int]:
    """Raises ValueError unless they are different whole numbers."""
    swept = override.is_sweep_override()
    if swept and not override.is_discrete_sweep():
        raise ValueError("seeds are whole numbers; write seed=0,1,2 or seed=range(3)")
    seeds = list(override.sweep_iterator()) if swept else [override.value()]
    if not seeds:
        raise ValueError("holds no seed")
    if any(isinstance(seed, bool) or not isinstance(seed, int) for seed in seeds):
        raise ValueError("seeds are whole numbers; write seed=0,1,2 or seed=range(3)")
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed stands in it twice")
    return seeds


def axis_of(override: Override) -> Axis:
    """Raises ValueError for values that are none, one, twice there, or without a meaning."""
    sweep, typed = override.value(), override.input_line.partition("=")[0]
    if not isinstance(sweep, ChoiceSweep | RangeSweep | IntervalSweep) or getattr(sweep, "shuffle", False):
        raise ValueError(f"shuffle and glob are not for a sweep, whose order is Optuna's; {FORMS}")
    unknown = sorted(tag for tag in sweep.tags if tag != "log")
    if unknown:
        raise ValueError(f"there is no tag '{unknown[0]}'{nearest(unknown[0], ['log'])}; the one tag is log")
    log = "log" in sweep.tags
    if isinstance(sweep, IntervalSweep):
        return interval_axis(typed, sweep, log)
    if isinstance(sweep, RangeSweep):
        return range_axis(typed, sweep, log)
    if log:
        raise ValueError("a choice has no logarithm; tag(log, ...) is for interval and range")
    words = {True: "true", False: "false", None: "null"}
    choices = [
        words[value] if value is None or isinstance(value, bool) else Transformer.str(value) for value in sweep.list
    ]
    require_several(choices)
    if len(set(choices)) < len(choices):
        raise ValueError("a value stands in it twice")
    return Axis(typed, tuple(choices))


def interval_axis(typed: str, sweep: IntervalSweep, log: bool) -> Axis:
    low, high = sweep.start, sweep.end
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the ends of an interval are finite numbers")
    if low > high:
        raise ValueError(f"it is empty, as it starts above its end; write interval({high:g},{low:g})")
    require_several([low] if low == high else [low, high])
    require_positive(low, log)
    return Axis(typed, low=low, high=high, step=1 if isinstance(low, int) else None, log=log)


def range_axis(typed: str, sweep: RangeSweep, log: bool) -> Axis:
    if sweep.step == 0:
        raise ValueError("a range with a step of 0 has no end")
    values = list(sweep.range())
    require_several(values)
    low, high = min(values), max(values)
    require_positive(low, log)
    if log and not (isinstance(low, int) and abs(sweep.step) == 1):
        raise ValueError("a logarithmic range is one of whole numbers with a step of 1; for others use interval")
    return Axis(typed, low=low, high=high, step=abs(sweep.step), log=log)


def require_several(values: Sequence[Any]) -> None:
    if not values:
        raise ValueError("it holds no value, so there is nothing to sweep")
    if len(values) == 1:
        raise ValueError(f"it holds one value; write KEY={shown(values[0])}, or give it several")


def require_positive(low: float, log: bool) -> None:
    if log and low <= 0:
        raise ValueError(f"a logarithmic scale starts above 0, this one at {low:g}")


def shown(value: Value) -> str:
    """A value without the quotes and backslashes that a command line needs."""
    text = str(value)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return re.sub(r"\\(.)", r"\1", text[1:-1] if quoted else text)
