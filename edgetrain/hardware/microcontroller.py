"""A microcontroller: time and energy of every layer from a table by type of operation, and what fits its memory.

Operations of different types differ several times in throughput and in energy, so that their number alone predicts
neither (Lai, Suda and Chandra 2018, "Not all ops are created equal!", arXiv 1801.04326). Time of a layer = operations x
cycles an operation of its type / clock; energy = power of its type x time. The table is measured on a board by
whoever has one, and stands in the device's YAML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf

from edgetrain.errors import UserError, listing, nearest
from edgetrain.hardware.activation_memory import plan
from edgetrain.hardware.cmsis_nn import SCRATCH
from edgetrain.hardware.cost import Cost, LayerCost, Limit, check_sizes, check_sources, ignored_facts
from edgetrain.hardware.formats import parse_format
from edgetrain.hardware.workload import KINDS, MAC_KINDS, Layer, Workload

FEW_CHANNELS = 3  # input channels up to which a convolution has a kernel of its own (CMSIS-NN's "RGB")
SHAPE_CLASSES = ("conv_1x1", "conv_few_channels", "elementwise_two_inputs")
OPERATION_TYPES = (*KINDS, *SHAPE_CLASSES)
AMOUNTS = ("clock_hz", "bits")
CAPACITIES = ("flash_bytes", "ram_bytes", "bias_bytes", "runtime_flash_bytes", "runtime_ram_bytes")


class Microcontroller:
    """cycles: by type of operation, for one operation; watts: while computing, by type, `default` for all others, null
    where the power is not known.

    An operation is half a MAC, one input of a pool's window, and elsewhere one element that is written. Types are the
    kinds of layers; `conv_1x1`, `conv_few_channels` and `elementwise_two_inputs` go before `conv` and `elementwise`
    where the table has them. Operands of up to `bits` bits run at these rates. kernels: whose scratch memory is planned
    (`cmsis_nn.SCRATCH`), null for none. Raises UserError for a table that cannot be used.
    """

    def __init__(
        self,
        *,
        clock_hz: float,
        cycles: Mapping[str, float],
        watts: Mapping[str, float] | None,
        bits: int,
        flash_bytes: int,
        ram_bytes: int,
        bias_bytes: int,
        runtime_flash_bytes: int,
        runtime_ram_bytes: int,
        sources: Mapping[str, str],
        unverified: Sequence[str] = (),
        kernels: str | None = "dsp",
        in_place: bool = True,
        assume: str | None = "int8",
        name: str = "microcontroller",
    ) -> None:
        if not cycles:
            raise UserError(
                f"hardware {name}: cycles is empty; give the clock cycles of at least one type of operation"
            )
        self.name, self.clock_hz, self.bits = name, clock_hz, bits
        self.cycles, self.watts = dict(cycles), dict(watts or {})
        self.flash_bytes, self.ram_bytes, self.bias_bytes = flash_bytes, ram_bytes, bias_bytes
        self.runtime_flash_bytes, self.runtime_ram_bytes = runtime_flash_bytes, runtime_ram_bytes
        self._check_table()
        if kernels is not None and kernels not in SCRATCH:
            raise UserError(
                f"hardware {name}: kernels={kernels}; kernels whose scratch is known: {listing(SCRATCH)}, null"
            )
        self.scratch = None if kernels is None else SCRATCH[kernels]
        self.in_place, self.assume = in_place, None if assume is None else parse_format(assume)
        self.sources, self.unverified = dict(sources), tuple(unverified)
        constants = (*AMOUNTS, *CAPACITIES, "watts", *self.cycles)
        check_sources(name, dict.fromkeys(constants), self.sources, list(unverified))

    def _check_table(self) -> None:
        for kind in (*self.cycles, *(self.watts.keys() - {"default"})):
            if kind not in OPERATION_TYPES:
                raise UserError(
                    f"hardware {self.name}: '{kind}' is no type of operation{nearest(kind, OPERATION_TYPES)}; "
                    f"types are {listing(OPERATION_TYPES)}"
                )
        numbers = {key: getattr(self, key) for key in AMOUNTS}
        numbers |= {f"cycles.{key}": value for key, value in self.cycles.items()}
        numbers |= {f"watts.{key}": value for key, value in self.watts.items()}
        for key, value in numbers.items():
            if not isinstance(value, int | float) or not 0 < value < inf:
                raise UserError(f"hardware {self.name}: {key}={value} must be a number above zero")
        for key in CAPACITIES:
            if getattr(self, key) < 0:
                raise UserError(f"hardware {self.name}: {key}={getattr(self, key)} must not be below zero")

    def cost(self, workload: Workload) -> Cost:
        """Raises UserError for a layer without size or with operands that the table's kernels do not take."""
        check_sizes(self.name, workload)
        notes = []
        if self.assume is not None:
            assumed = workload.assuming(self.assume)
            if assumed != workload:
                workload = assumed
                notes.append(f"floating-point layers are costed as {self.assume}")
        for layer in workload:
            self._check_formats(layer)
        memory = plan(workload, self.in_place, self.scratch)
        weight_bytes = sum(layer.weight_bytes + layer.biases * self.bias_bytes for layer in workload.weight_owners)
        if memory.live:
            notes.append(f"most activation memory lives at {workload.layers[memory.peak_layer].name}")
        notes += ignored_facts(workload)
        planned = all(layer.outputs for layer in workload)
        if not planned:
            notes.append("the table of layers has no tensors, so that activation memory is not planned")
        if any(layer.weights and layer.weight_format.bits < self.bits for layer in workload):
            notes.append(f"weights of fewer than {self.bits} bits take as long as those of {self.bits}")
        flash = Limit("flash", weight_bytes + self.runtime_flash_bytes, self.flash_bytes)
        ram = memory.arena_bytes + memory.state_bytes + self.runtime_ram_bytes
        mac_cycles = [rate for kind, rate in self.cycles.items() if kind in MAC_KINDS or kind.startswith("conv_")]
        return Cost(
            self.name,
            workload.name,
            tuple(map(self._layer, workload)),
            weight_bytes,
            activation_bytes=memory.peak + memory.state_bytes if planned else None,
            macs_per_second=self.clock_hz / min(mac_cycles) / 2 if mac_cycles else None,
            limits=(flash, Limit("RAM", ram, self.ram_bytes)) if planned else (flash,),
            sources=self.sources,
            unverified=self.unverified,
            notes=tuple(notes),
        )

    def _check_formats(self, layer: Layer) -> None:
        if layer.kind not in MAC_KINDS:
            return
        for format in layer.factor_formats:
            if format.is_float or format.bits > self.bits:
                raise UserError(
                    f"hardware {self.name}: layer '{layer.name}' has {format} operands and the table is for integers "
                    f"of at most {self.bits} bits; quantise it, or set hardware.{self.name}.assume=int{self.bits}"
                )

    def _layer(self, layer: Layer) -> LayerCost:
        row = LayerCost(layer.name, layer.kind, layer.macs, component=layer.component)
        kind = next((kind for kind in operation_types(layer) if kind in self.cycles), None)
        count = operations(layer)
        if layer.degenerate:
            return replace(row, uncovered="its kernel is larger than its input")
        if kind is None:
            return replace(row, uncovered=f"the table has no rate for {layer.kind}")
        if not count:
            return replace(row, uncovered="the table of layers has no outputs to count its operations by")
        seconds = count * self.cycles[kind] / self.clock_hz
        watts = self.watts.get(kind, self.watts.get("default"))
        read = layer.weight_bytes if layer.kind != "embedding" else -(-count * layer.weight_format.bits // 8)
        moved = {
            "flash": read + layer.biases * self.bias_bytes,
            "RAM": sum(tensor.bytes for tensor in (*layer.inputs, *layer.outputs)),
        }
        row = replace(row, seconds=seconds, moved=moved)
        return row if watts is None else replace(row, joules=watts * seconds, energy={"core": watts * seconds})


def operation_types(layer: Layer) -> tuple[str, ...]:
    """What a table may call the layer's operations, the most special name first."""
    loops = layer.loops
    if layer.kind == "conv" and loops.kernel_height == loops.kernel_width == 1:
        return "conv_1x1", "conv"
    if layer.kind == "conv" and loops.in_channels <= FEW_CHANNELS:
        return "conv_few_channels", "conv"
    if layer.kind == "elementwise" and len(layer.inputs) + bool(layer.weights) > 1:
        return "elementwise_two_inputs", "elementwise"
    return (layer.kind,)


def operations(layer: Layer) -> int:
    """Two for a MAC, without biases, as CMSIS-NN's figures count; inputs of a pool's windows; else elements written."""
    if layer.kind in MAC_KINDS:
        return 2 * layer.macs
    if layer.kind == "pool":
        return layer.loops.macs
    written = sum(tensor.elements for tensor in layer.outputs)
    if layer.kind == "elementwise":  # a sum or a maximum reads more than it writes
        return max([written, *(tensor.elements for tensor in layer.inputs)]) if written else 0
    return written
