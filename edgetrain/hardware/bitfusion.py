"""Bit Fusion: an array of units that fuse 2-bit multipliers into products as wide as a layer needs.

Sharma et al. 2018, arXiv 1712.01507, as its simulator computes it (github.com/hsharma35/bitfusion). A row of the array
takes an input channel, a column makes an output channel, and the narrower the operands, the more input channels a unit
takes at a time. `bitfusion_tiling` finds tiles and loop order of a layer.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from edgetrain.errors import UserError
from edgetrain.hardware.bitfusion_tiling import Array, Energies, Run, Shape, search
from edgetrain.hardware.cost import Cost, LayerCost, check_sizes, check_sources, ignored_facts
from edgetrain.hardware.formats import parse_format
from edgetrain.hardware.workload import MAC_KINDS, Layer, Workload

CONVOLUTIONS = frozenset({"conv", "depthwise", "grouped"})
SETTINGS = ("name", "billing", "assume", "batch", "sources", "unverified")  # all other fields are constants
BILLINGS = {
    "official": "billing official: as the paper's simulator counts, the last tile of a loop as if it were full",
    "exact": "billing exact: the last tile of a loop at its own size, and no sum fetched before there is one",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class BitFusion:
    """Cycles, traffic and energy at any width of the operands; conf/hardware/bitfusion.yaml explains the fields.

    Operands fuse in powers of two: 3 bits are computed as 4, 5 to 7 as 8, 1 as 2. Buffers and DRAM hold them at their
    own width, and outputs as sums. Groups, heads and the steps of a recurrent layer run one after another and share
    nothing. The host lays out the windows of a convolution before which nothing was multiplied (im2col), for nothing.
    The array costs nothing while it waits; leakage is not counted.

    billing: `official` is the simulator's to the cycle and the bit. `exact` bills the last tile of a loop at its own
    size, fetches a sum only once there is one, and takes operands of up to twice `max_bits`, each in two passes (from
    memory, not read in the paper). Raises UserError for a constant without a source or out of range.
    """

    name: str = "bitfusion"
    billing: Literal["official", "exact"] = "official"
    assume: str | None = "int8"
    batch: int = 1
    rows: int
    columns: int
    max_bits: int
    min_bits: int
    sum_bits: int
    frequency_mhz: float
    wbuf_bytes: int
    ibuf_bytes: int
    obuf_bytes: int
    dram_bits_per_cycle: int
    unit_pj: float
    wbuf_read_pj: float
    wbuf_write_pj: float
    ibuf_read_pj: float
    ibuf_write_pj: float
    obuf_read_pj: float
    obuf_write_pj: float
    dram_pj: float
    unit_um2: float
    wbuf_um2: float
    ibuf_um2: float
    obuf_um2: float
    sources: dict[str, str]
    unverified: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        constants = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in SETTINGS}
        check_sources(self.name, constants, self.sources, self.unverified)
        for key, value in {"batch": self.batch, **constants}.items():
            if not value > 0:
                raise UserError(f"hardware {self.name}: {key}={value} has to be above zero")
        if self.min_bits > self.max_bits or {self.min_bits.bit_count(), self.max_bits.bit_count()} != {1}:
            raise UserError(
                f"hardware {self.name}: min_bits={self.min_bits} and max_bits={self.max_bits} must be powers of two, "
                "the first no larger than the second"
            )
        if self.billing not in BILLINGS:
            raise UserError(f"hardware {self.name}: billing={self.billing} is neither official nor exact")
        if self.assume is not None and parse_format(self.assume).is_float:
            raise UserError(f"hardware {self.name}: assume={self.assume} is no integer format; write int8, or null")

    @property
    def widest(self) -> int:
        """Bits of the widest operand that the billing knows."""
        return self.max_bits if self.billing == "official" else 2 * self.max_bits

    @property
    def areas_mm2(self) -> dict[str, float]:
        return {
            "core": self.rows * self.columns * self.unit_um2 * 1e-6,
            "WBUF": self.wbuf_bytes * self.wbuf_um2 * 1e-6,
            "IBUF": self.ibuf_bytes * self.ibuf_um2 * 1e-6,
            "OBUF": self.obuf_bytes * self.obuf_um2 * 1e-6,
        }

    @property
    def energies(self) -> Energies:
        return Energies(
            cycle=self.rows * self.columns * self.unit_pj,
            wbuf_read=self.wbuf_read_pj,
            wbuf_write=self.wbuf_write_pj,
            ibuf_read=self.ibuf_read_pj,
            ibuf_write=self.ibuf_write_pj,
            obuf_read=self.obuf_read_pj,
            obuf_write=self.obuf_write_pj,
            dram=self.dram_pj,
        )

    def cost(self, workload: Workload) -> Cost:
        """Figures of one inference of the workload's own batch, of `batch` that run together.

        Raises UserError as `runs` does.
        """
        runs, integer = self.runs(workload), self.integer(workload)
        owners = integer.weight_owners
        peaks = [self.fused(layer) for layer, run in zip(integer, runs, strict=True) if run]
        units_per_second = self.rows * self.columns * self.frequency_mhz * 1e6
        return Cost(
            self.name,
            workload.name,
            tuple(self._row(layer, run) for layer, run in zip(workload, runs, strict=True)),
            weight_bytes=sum(layer.weight_bytes + layer.biases * self.sum_bits // 8 for layer in owners),
            area_mm2=sum(self.areas_mm2.values()),
            macs_per_second=units_per_second * max((lanes / passes for lanes, passes in peaks), default=1.0),
            bytes_per_second=self.dram_bits_per_cycle / 8 * self.frequency_mhz * 1e6,
            memory_level="DRAM",
            sources=self.sources,
            unverified=tuple(self.unverified),
            notes=(*self._notes(workload, integer), *ignored_facts(workload)),
        )

    def runs(self, workload: Workload) -> tuple[Run | None, ...]:
        """Cycles and bits of each layer, all `batch` inferences together; None for a layer that is not covered.

        Raises UserError for a layer without size, in a format that the array does not multiply, or too large a tile.
        """
        check_sizes(self.name, workload)
        integer = self.integer(workload)
        laid_out = first_convolutions(integer)
        return tuple(
            None if why_not(layer) else self._run(layer, unrolled=number in laid_out)
            for number, layer in enumerate(integer)
        )

    def integer(self, workload: Workload) -> Workload:
        """The workload as it is costed: what is floating point in the format assumed."""
        return workload if self.assume is None else workload.assuming(parse_format(self.assume))

    def fused(self, layer: Layer) -> tuple[int, int]:
        """Products of a unit at a time, and the cycles that they take."""
        lanes, passes = 1, 1
        for bits in (max(format.bits, self.min_bits) for format in layer.factor_formats):
            if self.billing == "exact":
                bits = 1 << (bits - 1).bit_length()  # fused in powers of two
                passes *= max(1, bits // self.max_bits)
            lanes *= max(1, self.max_bits // bits)
        return lanes, passes

    def _run(self, layer: Layer, unrolled: bool) -> Run:
        self._check_formats(layer)
        loops, (inputs, weights) = layer.loops, layer.factor_formats
        lanes, passes = self.fused(layer)
        batch, alike, height = self.batch * loops.batch, loops.groups, loops.out_height
        if layer.kind == "matmul":  # no two inferences share the second factor
            batch, alike = 1, alike * batch
        if layer.kind == "recurrent":  # a step waits for the one before
            alike, height = alike * height, 1
        shape = Shape(
            batch,
            height,
            loops.out_width,
            loops.in_channels // loops.groups,
            loops.out_channels // loops.groups,
            (loops.kernel_height, loops.kernel_width),
            (loops.stride_height, loops.stride_width),
            inputs.bits,
            weights.bits,
            unrolled,
        )
        array = Array(
            self.rows,
            self.columns,
            lanes,
            passes,
            self.wbuf_bytes,
            self.ibuf_bytes,
            self.obuf_bytes,
            self.sum_bits,
            self.dram_bits_per_cycle,
            self.energies,
            ragged=self.billing == "exact",
        )
        run = search(shape, array)
        if run is None:
            raise UserError(
                f"hardware {self.name}: not even the smallest tile of layer '{layer.name}' fits half of each buffer "
                f"({self.wbuf_bytes}, {self.ibuf_bytes} and {self.obuf_bytes} bytes); give it larger buffers"
            )
        return run.times(alike)

    def _check_formats(self, layer: Layer) -> None:
        for what, format in zip(("inputs", "weights"), layer.factor_formats, strict=True):
            if format.is_float:
                raise UserError(
                    f"hardware {self.name}: the {what} of layer '{layer.name}' are {format}, and the array multiplies "
                    f"integers; quantise them, or set hardware.{self.name}.assume=int8"
                )
            if format.bits > self.widest:
                more = f"; billing exact takes up to {2 * self.max_bits}" if self.billing == "official" else ""
                raise UserError(
                    f"hardware {self.name}: the {what} of layer '{layer.name}' have {format.bits} bits, and billing "
                    f"{self.billing} takes at most {self.widest}{more}"
                )

    def _row(self, layer: Layer, run: Run | None) -> LayerCost:
        if run is None:
            return LayerCost(layer.name, layer.kind, layer.macs, component=layer.component, uncovered=why_not(layer))
        joules = {part: value / self.batch for part, value in run.joules(self.energies).items()}
        bits = {
            "DRAM": run.dram_read + run.dram_write,
            "WBUF": run.wbuf_read + run.wbuf_write,
            "IBUF": run.ibuf_read + run.ibuf_write,
            "OBUF": run.obuf_read + run.obuf_write,
        }
        return LayerCost(
            layer.name,
            layer.kind,
            layer.macs,
            seconds=run.cycles / (self.frequency_mhz * 1e6 * self.batch),
            joules=sum(joules.values()),
            moved={level: count / (8 * self.batch) for level, count in bits.items()},
            energy=joules,
            component=layer.component,
        )

    def _notes(self, workload: Workload, integer: Workload) -> tuple[str, ...]:
        notes = [BILLINGS[self.billing]]
        products = [layer for layer in workload if not why_not(layer)]
        if any(format.is_float for layer in products for format in layer.factor_formats):
            notes.append(f"floating-point layers are costed as {self.assume}")
        if any(self.fused(layer)[1] > 1 for layer in integer if not why_not(layer)):
            notes.append(f"operands wider than {self.max_bits} bits take two passes each (from memory, not the paper)")
        if self.batch > 1:
            notes.append(
                f"{self.batch} inferences run together, and all are done after {self.batch} times these figures"
            )
        return tuple(notes)


def why_not(layer: Layer) -> str:
    """Why the device has no figure for a layer; empty where it has one."""
    if layer.degenerate:
        return "its kernel is larger than its input, so that there is nothing to compute"
    return (
        "" if layer.kind in MAC_KINDS else "only products are billed; everything else is free in the paper's simulator"
    )


def first_convolutions(workload: Workload) -> set[int]:
    """Places of the convolutions before which nothing was multiplied; in a table without tensors, at most one."""
    products: set[str] = set()  # tensors that a product went into
    first, any_yet = set(), False
    for number, layer in enumerate(workload):
        after = any(tensor.name in products for tensor in layer.inputs) if layer.inputs else any_yet
        if layer.kind in CONVOLUTIONS and not after:
            first.add(number)
        if layer.kind in MAC_KINDS or after:
            any_yet = True
            products.update(tensor.name for tensor in layer.outputs)
    return first
