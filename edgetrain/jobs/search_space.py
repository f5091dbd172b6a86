"""What an architecture search may choose from: keys of the configuration with their values, as plain YAML.

model:
  channels: {low: 16, high: 276, step: 4}   whole numbers, both ends included
  kernel: [[10, 4], [8, 4], [5, 3]]         one of these
features:                                   a name of its own: several keys that change together
  - {data: {stride_ms: 20, frames: 49}, model: {frames: 49}}
  - {data: {stride_ms: 40, frames: 25}, model: {frames: 25}}
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetrain.config import Config, find_problems, make
from edgetrain.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGE = re.compile(r"\s*range\(\s*(-?\d+)\s*,\s*(-?\d+)\s*(?:,\s*(\d+)\s*)?\)\s*").fullmatch

Point = tuple[int, ...]  # of every axis, the place of its value


@dataclass(frozen=True)
class Axis:
    """One key and its values, in order."""

    path: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def together(self) -> bool:
        """Whether a value is several keys with theirs."""
        return isinstance(self.values[0], Mapping)

    @property
    def distribution(self) -> "BaseDistribution":
        """Of the place of a value; numbers have an order that Optuna may learn from."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        count = len(self.values)
        ordered = all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)
        return IntDistribution(0, count - 1) if ordered else CategoricalDistribution(range(count))

    def put(self, raw: dict[str, Any], place: int) -> None:
        """Write a value into a configuration."""
        *path, last = self.path
        for name in path:
            raw = raw[name]
        value = copy.deepcopy(self.values[place])
        if self.together:
            merge(raw, value)
        else:
            raw[last] = value

    def shown(self, place: int) -> str:
        value = self.values[place]
        if not self.together:
            return str(value)
        return " ".join(dict.fromkeys(f"{path[-1]}={inner}" for path, inner in leaves(value)))


def merge(raw: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Write nested changes into a configuration, in place."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(raw.get(key), dict):
            merge(raw[key], value)
        else:
            raw[key] = value


def leaves(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from leaves(inner, (*path, key))
        else:
            yield (*path, key), inner


def size(axes: Sequence[Axis]) -> int:
    """How many points the space has."""
    return math.prod(len(axis.values) for axis in axes)


def point(axes: Sequence[Axis], number: int) -> Point:
    """One point of the space, counted from 0; the last key changes fastest."""
    places = []
    for axis in reversed(axes):
        number, place = divmod(number, len(axis.values))
        places.append(place)
    return tuple(reversed(places))


def read_space(space: Mapping[str, Any], base: dict[str, Any]) -> list[Axis]:
    """The axes. base: the configuration that the values go into.

    Raises UserError that lists every problem: an empty space, no values, a value twice, a key or a value that the
    configuration does not take.
    """
    axes: list[Axis] = []
    problems: list[str] = []
    for path, given in entries(space, ()):
        try:
            axes.append(Axis(path, values_of(given)))
        except ValueError as error:
            problems.append(f"job.space.{'.'.join(path)}={given}: {error}")
    if not axes and not problems:
        problems = [
            "job.space is empty; give keys with their values, as in job.space.model.channels=[32,64], or in a recipe "
            "job: {space: {model: {channels: [32, 64]}}}"
        ]
    for axis in axes:
        problems += misfits(axis, base)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return axes


def entries(space: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key that has values, with its path."""
    for key, value in space.items():
        if isinstance(value, Mapping):
            yield from entries(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def values_of(given: Any) -> tuple[Any, ...]:
    """Raises ValueError for what is no list of several values and no range."""
    if isinstance(given, str) and (numbers := RANGE(given)):
        low, end, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1)
        given = list(range(low, end, step)) if step else []
    if not isinstance(given, list):
        raise ValueError("give a list of values, or range(START,END,STEP)")
    if not given:
        raise ValueError("holds no value")
    if any(given.count(value) > 1 for value in given):
        raise ValueError("a value stands in it twice")
    if len({isinstance(value, Mapping) for value in given}) > 1:
        raise ValueError("either all of its values are keys with values, or none is")
    return tuple(given)


def misfits(axis: Axis, base: dict[str, Any]) -> list[str]:
    """Why the configuration does not take the axis, or one of its values; the first reason that there is."""
    node: Any = base
    for name in axis.path[:-1]:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return [f"job.space.{axis.key}: there is no {'.'.join(axis.path[:-1])} in the configuration"]
    for place in range(len(axis.values)):
        raw = copy.deepcopy(base)
        axis.put(raw, place)
        if problems := find_problems(raw):
            return [f"job.space: {problems[0]}"]
    return []


def configured(base: dict[str, Any], axes: Sequence[Axis], places: Point) -> Config:
    """The configuration of a point."""
    raw = copy.deepcopy(base)
    for axis, place in zip(axes, places, strict=True):
        axis.put(raw, place)
    return make(raw)
