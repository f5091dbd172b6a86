"""An accelerator of processing elements under a dataflow: NVDLA, ShiDianNao, row stationary, or one of a user's own.

The dataflow is data (`dataflow`); `maestro` says what a layer costs under it in cycles and accesses. PEs with a buffer
of their own (L1) hang on a network to a shared buffer (L2); DRAM is not modelled. Products of all kinds are covered: a
matrix product is a 1x1 convolution, its rows the height of the image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from typing import Literal, NamedTuple

from edgetrain.errors import UserError
from edgetrain.hardware import maestro, maestro_xrbench
from edgetrain.hardware.cost import Cost, LayerCost, Limit, check_sizes, check_sources, ignored_facts
from edgetrain.hardware.dataflow import Dataflow, Shape, bind, parse_dataflow, shape_of
from edgetrain.hardware.formats import Format, parse_format
from edgetrain.hardware.maestro import Counts
from edgetrain.hardware.workload import MAC_KINDS, Layer, Loops, Workload

CONSTANTS = (
    "mac_pj",
    "local_access",
    "shared_access",
    "mac_um2",
    "sram_um2",
    "bus_um2",
    "bus_scaling",
    "arbiter_um2",
    "arbiter_scaling",
)
SIZES = ("pes", "vector_width", "noc_bandwidth", "clock_hz", "shared_bytes", "local_bytes", "max_bits")
SCALINGS = {"bus_scaling": 2, "arbiter_scaling": 3}  # polynomials of the number of PEs, highest power first
ANALYSES = {"maestro": maestro.analyse, "xrbench": maestro_xrbench.analyse}


class Mapped(NamedTuple):
    """A layer on the array: counts of one run, and how many runs follow each other; uncovered: why there is none."""

    counts: Counts | None
    runs: int = 0
    uncovered: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asic:
    """Latency, energy, traffic and area under a dataflow; conf/hardware/nvdla.yaml explains the fields.

    analysis: `maestro` counts every edge as it is; `xrbench` is the older analysis behind XRBench's figures, to the
    last unit. depthwise_dataflow: for depthwise layers, None for the same. Images of a batch, groups, heads and the
    steps of a recurrent layer run one after another; linear layers take all rows of a batch together. Raises UserError
    for a constant without a source, a number out of range, or a directive that cannot be read.

    A design of a search is `dataclasses.replace(asic, pes=512)`; layers are analysed once per shape and design.
    """

    name: str = "asic"
    analysis: Literal["maestro", "xrbench"] = "maestro"
    assume: str | None = "int8"
    dataflow: list[str]
    depthwise_dataflow: list[str] | None = None
    pes: int
    vector_width: int = 1
    noc_bandwidth: int
    clock_hz: float
    shared_bytes: int
    local_bytes: int
    max_bits: int
    mac_pj: float
    local_access: float
    shared_access: float
    mac_um2: float
    sram_um2: float
    bus_um2: float
    bus_scaling: list[float]
    arbiter_um2: float
    arbiter_scaling: list[float]
    sources: Mapping[str, str]
    unverified: list[str] = field(default_factory=list)
    known: dict[tuple[str, Loops], Mapped] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        where = f"hardware {self.name}"
        check_sources(self.name, {name: getattr(self, name) for name in CONSTANTS}, self.sources, self.unverified)
        for name in (*SIZES, *CONSTANTS):
            value = getattr(self, name)
            if name not in SCALINGS and not value > 0:
                raise UserError(f"{where}: {name}={value} has to be above zero")
        for name, terms in SCALINGS.items():
            if len(getattr(self, name)) != terms:
                raise UserError(
                    f"{where}: {name} has {len(getattr(self, name))} numbers, and the formula takes {terms}"
                )
        if self.analysis not in ANALYSES:
            raise UserError(f"{where}: analysis={self.analysis} is neither maestro nor xrbench")
        if self.assume is not None and parse_format(self.assume).is_float:
            raise UserError(f"{where}: assume={self.assume} is no integer format; write int8, or null")
        _ = self.dataflows

    @cached_property
    def dataflows(self) -> tuple[Dataflow, Dataflow]:
        """The one for all layers, and the one for depthwise ones."""
        where = f"hardware {self.name}"
        everywhere = parse_dataflow(tuple(map(str, self.dataflow)), where)
        return everywhere, parse_dataflow(tuple(map(str, self.depthwise_dataflow or self.dataflow)), where)

    @property
    def areas_mm2(self) -> dict[str, float]:
        """Area by part; the bus and its arbiter serve all PEs, as MAESTRO sizes them."""
        slope, offset = self.bus_scaling
        square, linear, constant = self.arbiter_scaling
        arbiter = square * self.pes**2 + linear * self.pes + constant
        um2 = {
            "MAC": self.pes * self.vector_width * self.mac_um2,
            "L1": self.pes * self.local_bytes * self.sram_um2,
            "L2": self.shared_bytes * self.sram_um2,
            "NoC": self.bus_um2 * (slope * self.pes + offset) * self.noc_bandwidth
            + self.arbiter_um2 * max(arbiter, 1.0),
        }
        return {part: area * 1e-6 for part, area in um2.items()}

    def cost(self, workload: Workload) -> Cost:
        """Raises UserError for a layer without size or in a format that the PEs do not multiply."""
        if any(min(layer.loops) < 1 for layer in workload):
            check_sizes(self.name, workload)
        assumed = None if self.assume is None else parse_format(self.assume)
        rows, needs, narrowest, floats = [], [(0, 0)], [self.max_bits], False
        for layer in workload:
            counts, runs, uncovered = self.map(layer)
            if counts is None:
                rows.append(
                    LayerCost(layer.name, layer.kind, layer.macs, component=layer.component, uncovered=uncovered)
                )
                continue
            formats = (*layer.factor_formats, layer.output_format)
            if any(one.is_float for one in formats):
                floats = True
                formats = tuple(assumed if one.is_float and assumed else one for one in formats)
            self._check(layer, formats)
            bits = tuple(one.bits for one in formats)
            rows.append(self._row(layer, counts, runs, bits))
            needs.append((_bytes(counts.shared_needed, bits), _bytes(counts.local_needed, bits)))
            narrowest.append(min(bits[:2]))
        shared, local = (max(side) for side in zip(*needs, strict=True))
        owners = [(layer, assumed if layer.weight_format.is_float else None) for layer in workload.weight_owners]
        return Cost(
            self.name,
            workload.name,
            tuple(rows),
            weight_bytes=sum(
                -(-(layer.weights + layer.biases) * (format or layer.weight_format).bits // 8)
                for layer, format in owners
            ),
            area_mm2=sum(self.areas_mm2.values()),
            macs_per_second=self.pes * self.vector_width * self.clock_hz,
            bytes_per_second=2 * self.noc_bandwidth * self.clock_hz * min(narrowest) / 8,  # in and out
            memory_level="L2",
            limits=(
                Limit("shared buffer", shared, self.shared_bytes),
                Limit("buffer of a PE", local, self.local_bytes),
            ),
            sources=self.sources,
            unverified=tuple(self.unverified),
            notes=(*self._notes(floats), *ignored_facts(workload)),
        )

    def totals(self, workload: Workload) -> tuple[float, float]:
        """Seconds and joules of what `cost` covers, without its rows: for searches over thousands of designs."""
        cycles, energy = 0, 0.0
        for layer in workload:
            counts, runs, _ = self.map(layer)
            if counts is not None:
                cycles += runs * counts.cycles
                local, shared = self.local_access * sum(counts.local), self.shared_access * sum(counts.shared)
                energy += runs * (counts.macs + local + shared)
        return cycles / self.clock_hz, energy * self.mac_pj * 1e-12

    def map(self, layer: Layer) -> Mapped:
        """What the array does for a layer, whatever the width of its numbers."""
        if layer.degenerate:
            return Mapped(None, uncovered="its kernel is larger than its input, so that there is nothing to compute")
        if layer.kind not in MAC_KINDS:
            return Mapped(None, uncovered="dataflows map products only; everything else is left to the host")
        key = (layer.kind, layer.loops)
        if key not in self.known:
            loops, runs = _runs(layer)
            depthwise = layer.kind == "depthwise"
            design = (self.analysis, self.dataflows[depthwise], self.pes, self.noc_bandwidth, self.vector_width)
            counts, uncovered = _mapped(shape_of(loops, depthwise), *design)
            self.known[key] = Mapped(counts, runs, uncovered)
        return self.known[key]

    def _check(self, layer: Layer, formats: tuple[Format, ...]) -> None:
        for what, format in zip(("inputs", "weights"), formats[:2], strict=True):
            if format.is_float:
                raise UserError(
                    f"hardware {self.name}: the {what} of layer '{layer.name}' are {format}, and the PEs multiply "
                    f"integers; quantise them, or set hardware.{self.name}.assume=int8"
                )
            if format.bits > self.max_bits:
                raise UserError(
                    f"hardware {self.name}: the {what} of layer '{layer.name}' have {format.bits} bits, and the PEs "
                    f"multiply at most {self.max_bits}"
                )

    def _row(self, layer: Layer, counts: Counts, runs: int, bits: tuple[int, ...]) -> LayerCost:
        unit = runs * self.mac_pj * 1e-12
        energy = {
            "MAC": unit * counts.macs,
            "L1": unit * self.local_access * sum(counts.local),
            "L2": unit * self.shared_access * sum(counts.shared),
        }
        return LayerCost(
            layer.name,
            layer.kind,
            layer.macs,
            seconds=runs * counts.cycles / self.clock_hz,
            joules=sum(energy.values()),
            moved={"L1": runs * _volume(counts.local, bits), "L2": runs * _volume(counts.shared, bits)},
            energy=energy,
            component=layer.component,
        )

    def _notes(self, floats: bool) -> tuple[str, ...]:
        notes = ["energy and cycles count numbers whatever their width, bytes follow it; DRAM is not modelled"]
        if self.analysis == "xrbench":
            notes.append("analysis xrbench: as XRBench's own MAESTRO counts")
        noc = self.areas_mm2["NoC"] / sum(self.areas_mm2.values())
        notes.append(f"{noc:.0%} of the area is the network's, by MAESTRO's constants, whose unit is taken for um2")
        if floats:
            notes.append(f"floating-point layers are costed as {self.assume}")
        return tuple(notes)


@lru_cache(maxsize=1 << 16)
def _mapped(
    shape: Shape, analysis: str, dataflow: Dataflow, pes: int, noc_bandwidth: int, vector_width: int
) -> tuple[Counts | None, str]:
    cluster = prod(bind(dataflow, shape).clusters)
    if cluster > pes:
        return None, f"a cluster of the dataflow takes {cluster} PEs, and there are {pes}"
    counts = ANALYSES[analysis](dataflow, shape, pes, noc_bandwidth, vector_width)
    if counts.macs < shape.macs and analysis == "maestro":
        return None, f"the dataflow computes {counts.macs} of its {shape.macs} MACs"
    return counts, ""


def _runs(layer: Layer) -> tuple[Loops, int]:
    """The loops of one run of a layer, and how many runs follow each other."""
    loops = layer.loops
    if layer.kind == "linear":  # rows of all images share the weights
        return loops._replace(batch=1, out_height=loops.batch * loops.out_height), loops.groups
    if layer.kind == "recurrent":  # a step waits for the one before
        return loops._replace(batch=1, out_height=loops.batch), loops.out_height * loops.groups
    return loops, loops.batch * (1 if layer.kind == "depthwise" else loops.groups)


def _volume(elements: tuple[int, int, int], bits: tuple[int, ...]) -> float:
    """Bytes of inputs, weights and outputs, each at its own width."""
    inputs, weights, outputs = elements
    return (inputs * bits[0] + weights * bits[1] + outputs * bits[2]) / 8


def _bytes(elements: tuple[int, int, int], bits: tuple[int, ...]) -> int:
    return int(-(-_volume(elements, bits) // 1))
