"""A plain systolic array: operands enter at its edges and move one unit a cycle; convolutions run as matrix products.

Cycles of an M x K by K x N product on R rows and C columns, folds one after another (SCALE-Sim, arXiv 1811.02883; its
goldens are one less, see `scalesim_compat`):

  output stationary   ceil(M/R) ceil(N/C) (R + C + K - 2)
  weight stationary   ceil(K/R) ceil(N/C) (2R + C + M - 2)
  input stationary    ceil(K/R) ceil(M/C) (2R + C + N - 2)

Memory always keeps up; there is no model of energy or area.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from edgetrain.errors import UserError
from edgetrain.hardware.cost import Cost, LayerCost, check_sizes, ignored_facts
from edgetrain.hardware.formats import parse_format
from edgetrain.hardware.workload import MAC_KINDS, Layer, Workload

Stationary = Literal["output", "weight", "input"]


class Product(NamedTuple):
    """An M x K by K x N product, and how many such follow each other."""

    m: int
    n: int
    k: int
    runs: int = 1


class Pass(NamedTuple):
    """One product on the array: cycles, and elements that cross its edges."""

    cycles: int
    inputs: int
    weights: int
    outputs: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Systolic:
    """A systolic array; conf/hardware/systolic.yaml explains the fields.

    Groups, heads and the steps of a recurrent layer run one after another, images of a batch together. Raises UserError
    for a size below one or an unknown dataflow.
    """

    name: str = "systolic"
    stationary: Stationary = "weight"
    assume: str | None = "int8"
    rows: int
    columns: int
    clock_hz: float
    scalesim_compat: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "clock_hz"):
            if not getattr(self, name) > 0:
                raise UserError(f"hardware {self.name}: {name}={getattr(self, name)} has to be above zero")
        if self.stationary not in get_args(Stationary):
            raise UserError(f"hardware {self.name}: stationary={self.stationary} is none of output, weight, input")
        if self.assume is not None:
            parse_format(self.assume)

    def cost(self, workload: Workload) -> Cost:
        """Raises UserError for a layer without size."""
        check_sizes(self.name, workload)
        assumed = workload if self.assume is None else workload.assuming(parse_format(self.assume))
        notes = ["cycles of the array alone: memory always keeps up"]
        if self.scalesim_compat:
            notes.append("a cycle less for every layer, as SCALE-Sim counts")
        if assumed != workload:
            notes.append(f"floating-point layers are costed as {self.assume}")
        return Cost(
            self.name,
            workload.name,
            tuple(map(self._row, assumed)),
            weight_bytes=sum(
                -(-(layer.weights + layer.biases) * layer.weight_format.bits // 8) for layer in assumed.weight_owners
            ),
            macs_per_second=self.rows * self.columns * self.clock_hz,
            notes=(*notes, *ignored_facts(workload)),
        )

    def _row(self, layer: Layer) -> LayerCost:
        why = uncovered(layer)
        if why:
            return LayerCost(layer.name, layer.kind, layer.macs, component=layer.component, uncovered=why)
        product = product_of(layer)
        one = run(product, self.rows, self.columns, self.stationary)
        second = layer.inputs[1].format if layer.kind == "matmul" and len(layer.inputs) > 1 else layer.weight_format
        bits = one.inputs * layer.input_format.bits + one.weights * second.bits + one.outputs * layer.output_format.bits
        cycles = product.runs * one.cycles - self.scalesim_compat
        return LayerCost(
            layer.name,
            layer.kind,
            layer.macs,
            seconds=cycles / self.clock_hz,
            moved={"SRAM": product.runs * bits / 8},
            component=layer.component,
        )


def uncovered(layer: Layer) -> str:
    """Why the array has no figure for a layer; empty where it has one."""
    if layer.degenerate:
        return "its kernel is larger than its input, so that there is nothing to compute"
    return "" if layer.kind in MAC_KINDS else "a systolic array computes products only"


def product_of(layer: Layer) -> Product:
    """A layer as matrix products: output pixels x (channels and kernel of a group) x output channels of a group."""
    loops = layer.loops
    m, runs = loops.batch * loops.out_height * loops.out_width, loops.groups
    if layer.kind == "recurrent":  # a step waits for the one before
        m, runs = loops.batch, loops.groups * loops.out_height
    elif layer.kind == "matmul":  # no two images share the second factor
        m, runs = m // loops.batch, runs * loops.batch
    k = loops.in_channels // loops.groups * loops.kernel_height * loops.kernel_width
    return Product(m, loops.out_channels // loops.groups, k, runs)


@lru_cache(maxsize=1 << 16)
def run(product: Product, rows: int, columns: int, stationary: Stationary) -> Pass:
    """One of the products. Outputs that a fold leaves incomplete go out and come in again."""
    m, n, k, _ = product
    if stationary == "output":
        down, across, stream = -(-m // rows), -(-n // columns), rows + columns + k - 2
        return Pass(down * across * stream, m * k * across, k * n * down, m * n)
    folds = -(-k // rows)
    if stationary == "weight":
        across, stream = -(-n // columns), 2 * rows + columns + m - 2
        return Pass(folds * across * stream, m * k * across, k * n, m * n * (2 * folds - 1))
    across, stream = -(-m // columns), 2 * rows + columns + n - 2
    return Pass(folds * across * stream, m * k, k * n * across, m * n * (2 * folds - 1))
