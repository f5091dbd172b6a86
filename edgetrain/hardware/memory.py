"""Energy of a model by where its weights stand and how often each component runs, for streaming models.

Power of a component = its calls a second x (bytes of weights that a call reads x energy a byte of the memory that holds
them + activations + MACs). Two components of one size differ in power by how often they run and where they stand
("Breaking down power barriers in on-device streaming ASR", arXiv 2402.13076). There is no model of time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from edgetrain.errors import UserError, listing, nearest
from edgetrain.hardware.activation_memory import plan
from edgetrain.hardware.cost import Cost, LayerCost, Limit, check_sizes, check_sources
from edgetrain.hardware.formats import parse_format
from edgetrain.hardware.workload import MAC_KINDS, Layer, Workload

PICO = 1e-12
UNNAMED = "model"  # the component of a workload that has no components


@dataclass(frozen=True)
class Level:
    """A memory. bytes: what it holds, infinite for the last one."""

    name: str
    joules_per_byte: float
    bytes: float


@dataclass(frozen=True)
class ComponentPower:
    """A component that runs `rate` times a second; what it stores stands in `level`.

    stored_bytes: of weights, without those that another component stores; bytes_per_second: of weights read;
    weight_watts: power of these reads; watts: of everything; watts_per_byte: what one byte of weights that every call
    reads adds, the sensitivity dP/dsize.
    """

    component: str
    rate: float
    level: str
    stored_bytes: float
    bytes_per_second: float
    weight_watts: float
    watts: float
    watts_per_byte: float


class MemoryHierarchy:
    """levels: nearest first, each with `picojoules_per_byte` and `bytes` (null: no end); mac_picojoules: by format of
    the wider factor, the next wider one of its family where it is not listed.

    rates: calls a second by component; placement: the level of a component's weights. Components that it leaves out
    stand, whole, in the nearest level that has room, the one first whose bytes are read most often; before them the
    activations. An embedding reads the rows that it looks up, a recurrent layer its weights at every step, every other
    layer its weights once a call; zeros are neither read nor multiplied; of a weight of rank r the two factors are.
    Biases are as wide as weights. Raises UserError for a profile that cannot be used.
    """

    def __init__(
        self,
        *,
        levels: Mapping[str, Mapping[str, Any]],
        mac_picojoules: Mapping[str, float],
        sources: Mapping[str, str],
        unverified: Sequence[str] = (),
        rates: Mapping[str, float] | None = None,
        placement: Mapping[str, str] | None = None,
        assume: str | None = None,
        name: str = "memory",
    ) -> None:
        self.name = name
        if not levels or not mac_picojoules:
            raise UserError(f"hardware {name}: levels and mac_picojoules must each have at least one entry")
        self.levels = tuple(self._level(*item) for item in levels.items())
        self.macs = {
            parse_format(key): PICO * self._number(f"mac_picojoules.{key}", value)
            for key, value in mac_picojoules.items()
        }
        self.rates = {key: self._number(f"rates.{key}", value) for key, value in (rates or {}).items()}
        self.placement = dict(placement or {})
        for component, level in self.placement.items():
            if level not in levels:
                raise UserError(
                    f"hardware {name}: placement.{component}={level} is no level{nearest(level, levels)}; "
                    f"they are {listing(levels)}"
                )
        self.assume = None if assume is None else parse_format(assume)
        self.sources, self.unverified = dict(sources), tuple(unverified)
        check_sources(name, {**levels, **mac_picojoules}, self.sources, list(unverified))

    def _level(self, name: str, facts: Mapping[str, Any]) -> Level:
        if not isinstance(facts, Mapping) or set(facts) != {"picojoules_per_byte", "bytes"}:
            raise UserError(f"hardware {self.name}: levels.{name} must have picojoules_per_byte and bytes")
        energy = PICO * self._number(f"levels.{name}.picojoules_per_byte", facts["picojoules_per_byte"])
        size = inf if facts["bytes"] is None else self._number(f"levels.{name}.bytes", facts["bytes"])
        return Level(name, energy, size)

    def _number(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
            raise UserError(f"hardware {self.name}: {key}={value} must be a number, zero or more")
        return value

    def cost(self, workload: Workload) -> Cost:
        """Joules of one call of every layer, and watts of the components whose rate is known.

        Raises UserError for a layer without size and for rates or placement of a component that is not there.
        """
        given, workload = workload, self._read(workload)
        places = _Places(self, workload)
        rows = tuple(self._layer(layer, places) for layer in workload)
        notes = [
            f"weights of {part} are in {places.weights[part].name}" for part, size in places.stored.items() if size
        ]
        notes += [f"activations are in {places.activations.name}", "arithmetic beside MACs and time are not modelled"]
        if not all(layer.outputs for layer in workload):
            notes.append("layers without tensors in their table: their activations cost nothing here")
        if workload != given:
            notes.append(f"floating-point layers are costed as {self.assume}")
        if any(layer.density < 1 for layer in workload):
            notes.append("zero weights cost nothing, nor do the places of the others")
        watts = {part: rate * sum(row.joules or 0 for row in _of(part, rows)) for part, rate in self.rates.items()}
        notes += [
            f"{part} runs {rate:g} times a second and takes {1e3 * watts[part]:.4g} mW"
            for part, rate in self.rates.items()
        ]
        return Cost(
            self.name,
            workload.name,
            rows,
            round(sum(places.stored.values())),
            activation_bytes=places.activation_bytes,
            limits=tuple(places.limits()),
            sources=self.sources,
            unverified=self.unverified,
            notes=tuple(notes),
            watts=watts,
        )

    def power(self, workload: Workload) -> tuple[ComponentPower, ...]:
        """Where the power goes, of the components whose rate is known, in the order of `rates`."""
        workload = self._read(workload)
        places = _Places(self, workload)
        rows = [self._layer(layer, places) for layer in workload]
        powers = []
        for part, rate in self.rates.items():
            own, level = _of(part, rows), places.weights[part]
            read = sum(read_bytes(layer) for layer in workload if (layer.component or UNNAMED) == part)
            weights = sum(row.energy.get("weights", 0.0) for row in own)
            watts = rate * sum(row.joules or 0.0 for row in own)
            stored, per_byte = places.stored[part], rate * level.joules_per_byte
            powers.append(ComponentPower(part, rate, level.name, stored, rate * read, rate * weights, watts, per_byte))
        return tuple(powers)

    def _read(self, workload: Workload) -> Workload:
        check_sizes(self.name, workload)
        parts = [part or UNNAMED for part in workload.components]
        for option, given in (("rates", self.rates), ("placement", self.placement)):
            for part in given:
                if part not in parts:
                    raise UserError(
                        f"hardware {self.name}: {option}.{part} is for no component of {workload.name}"
                        f"{nearest(part, parts)}; they are {listing(parts)}"
                    )
        return workload if self.assume is None else workload.assuming(self.assume)

    def _layer(self, layer: Layer, places: "_Places") -> LayerCost:
        row = LayerCost(layer.name, layer.kind, layer.macs, component=layer.component)
        mac = self._mac_joules(layer) if layer.kind in MAC_KINDS else 0.0
        if mac is None:
            first, second = layer.factor_formats
            return replace(row, uncovered=f"the profile has no energy of a MAC of {first} and {second}")
        if layer.degenerate:
            return replace(row, uncovered="its kernel is larger than its input")
        holds, near = places.weights[places.keeper(layer)], places.activations
        weights, tensors = read_bytes(layer), sum(one.bytes for one in (*layer.inputs, *layer.outputs))
        moved = {holds.name: weights}
        moved[near.name] = moved.get(near.name, 0.0) + tensors
        energy = {
            "weights": weights * holds.joules_per_byte,
            "activations": tensors * near.joules_per_byte,
            "MACs": computed_macs(layer) * mac,
        }
        return replace(row, joules=sum(energy.values()), moved=moved, energy=energy)

    def _mac_joules(self, layer: Layer) -> float | None:
        """Of the narrowest listed format that holds both factors; a float and an integer multiply as floats."""
        floating = any(one.is_float for one in layer.factor_formats)
        bits = max(one.bits for one in layer.factor_formats if one.is_float == floating)
        known = [one for one in self.macs if one.is_float == floating and one.bits >= bits]
        return self.macs[min(known)] if known else None


class _Places:
    """Which level holds the weights of each component, and which the activations."""

    def __init__(self, device: MemoryHierarchy, workload: Workload) -> None:
        memory = plan(workload)
        self.activation_bytes = memory.peak + memory.state_bytes
        self.levels = device.levels
        room = {level.name: level.bytes for level in device.levels}
        self.activations = self._nearest(self.activation_bytes, room)
        room[self.activations.name] -= self.activation_bytes
        self.owner = {one.weight_name or one.name: one.component or UNNAMED for one in workload.weight_owners}
        self.stored = {part or UNNAMED: 0.0 for part in workload.components}
        for owner in workload.weight_owners:
            self.stored[owner.component or UNNAMED] += stored_bytes(owner)
        self._traffic = dict.fromkeys(self.stored, 0.0)  # of what it stores, by whichever component reads it
        for layer in workload:
            self._traffic[self.keeper(layer)] += device.rates.get(layer.component or UNNAMED, 1.0) * read_bytes(layer)
        named = {level.name: level for level in device.levels}
        self.weights = {part: named[level] for part, level in device.placement.items()}
        for part, level in self.weights.items():
            if not self.stored[part]:
                raise UserError(
                    f"hardware {device.name}: placement.{part}: {part} stores no weights of its own; place the "
                    "component that it shares them with"
                )
            room[level.name] -= self.stored[part]
        for part in sorted(self.stored, key=self._intensity, reverse=True):
            if part not in self.weights:
                self.weights[part] = self._nearest(self.stored[part], room)
                room[self.weights[part].name] -= self.stored[part]

    def _intensity(self, part: str) -> float:
        """How often a byte of its weights is read."""
        return self._traffic[part] / (self.stored[part] or 1.0)

    def _nearest(self, size: float, room: Mapping[str, float]) -> Level:
        """The first level with room; the last one where there is none, which the limits then show."""
        return next((level for level in self.levels if size <= room[level.name]), self.levels[-1])

    def keeper(self, layer: Layer) -> str:
        """The component that stores the layer's weights: of those that share them the first."""
        return self.owner.get(layer.weight_name or layer.name, layer.component or UNNAMED)

    def limits(self) -> Iterable[Limit]:
        for level in self.levels:
            if level.bytes < inf:
                here = sum(self.stored[part] for part, at in self.weights.items() if at == level)
                activations = self.activation_bytes if self.activations == level else 0
                yield Limit(level.name, round(here + activations), round(level.bytes))


def stored_bytes(layer: Layer) -> float:
    """Weights and biases, factored where they have a rank, without zeros."""
    return (_factored(layer, layer.weights, 1) * layer.density + layer.biases) * layer.weight_format.bits / 8


def read_bytes(layer: Layer) -> float:
    """Bytes of weights that one call reads."""
    if layer.kind == "embedding":
        return sum(tensor.elements for tensor in layer.outputs) * layer.weight_format.bits / 8
    steps = layer.loops.out_height if layer.kind == "recurrent" else 1
    return steps * stored_bytes(layer)


def computed_macs(layer: Layer) -> float:
    """MACs with weights that are not zero, through the factors of a weight that has a rank."""
    loops = layer.loops
    return _factored(layer, layer.macs, loops.batch * loops.out_height * loops.out_width) * layer.density


def _factored(layer: Layer, whole: int, times: int) -> int:
    """Numbers of both factors of the weight, `times` over; the whole where that is fewer."""
    if layer.rank is None:
        return whole
    loops = layer.loops
    inner = loops.in_channels * loops.kernel_height * loops.kernel_width
    return min(whole, times * layer.rank * (inner + loops.out_channels))


def _of(part: str, rows: Iterable[LayerCost]) -> list[LayerCost]:
    return [row for row in rows if (row.component or UNNAMED) == part]
