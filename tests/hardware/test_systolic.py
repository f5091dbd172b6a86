"""Systolic arrays: SCALE-Sim's goldens, a walk through the array, what a layer is as a matrix product."""

import pytest
import yaml
from conftest import ROOT
from small_workloads import layer, tensor

from edgetrain.build import build
from edgetrain.errors import UserError
from edgetrain.hardware.systolic import Product, Systolic, product_of, run
from edgetrain.hardware.workload import Kind, Layer, Loops, Workload

# rows = columns, (M, N, K), cycles of SCALE-Sim 3.0.0 without stalls: output, weight, input stationary
GOLDENS = [
    (4, (4, 4, 4), (9, 13, 13)),
    (4, (8, 4, 6), (23, 35, 55)),
    (4, (5, 7, 9), (59, 89, 101)),
    (32, (256, 128, 256), (52447 - 42272, 52447 - 41248, 19984 - 5777)),  # its golden files: total less stalls
]
STATIONARY = ("output", "weight", "input")


def array(**changes) -> Systolic:
    return build(yaml.safe_load((ROOT / "conf" / "hardware" / "systolic.yaml").read_text()) | changes)


def product_layer(m: int, n: int, k: int, kind: Kind = "linear", **facts) -> Layer:
    loops = Loops(out_height=m, out_channels=n, in_channels=k)
    return layer("product", kind, loops, [tensor("x", m, k)], tensor("y", m, n), **facts)


@pytest.mark.parametrize(("side", "sizes", "cycles"), GOLDENS)
@pytest.mark.parametrize("stationary", STATIONARY)
def test_cycles_are_scale_sim_s_and_one_more_without_its_quirk(side, sizes, cycles, stationary):
    workload = Workload("gemm", (product_layer(*sizes),))
    golden = cycles[STATIONARY.index(stationary)]
    for compat, expected in ((True, golden), (False, golden + 1)):
        device = array(rows=side, columns=side, stationary=stationary, clock_hz=1, scalesim_compat=compat)
        assert device.cost(workload).seconds == expected


@pytest.mark.parametrize("sizes", [(5, 4, 7), (9, 3, 10), (1, 1, 1), (4, 8, 3), (6, 6, 6)])
def test_cycles_are_those_of_a_walk_through_the_array(sizes):
    """When the last product leaves, fold after fold, on 3 rows and 2 columns."""
    m, n, k = sizes
    folds = {"output": (m, n, k), "weight": (k, n, m), "input": (k, m, n)}
    for stationary, (down, across, stream) in folds.items():
        cycles = 0
        for _ in range(0, down, 3):
            for _ in range(0, across, 2):
                # operands are held back by a cycle a row and a column; what stays in the units is loaded row by row
                load = 0 if stationary == "output" else 3
                cycles += load + max(
                    t + row + column + 1 for t in range(stream) for row in range(3) for column in range(2)
                )
        assert run(Product(m, n, k), 3, 2, stationary).cycles == cycles


def test_what_crosses_the_edges_is_counted_by_hand():
    """A 5x7 by 7x4 product on 3 rows and 2 columns."""
    product = Product(5, 4, 7)
    assert run(product, 3, 2, "output")[1:] == (5 * 7 * 2, 7 * 4 * 2, 5 * 4)
    assert run(product, 3, 2, "weight")[1:] == (5 * 7 * 2, 7 * 4, 5 * 4 * (3 + 2))
    assert run(product, 3, 2, "input")[1:] == (5 * 7, 7 * 4 * 3, 5 * 4 * (3 + 2))


@pytest.mark.parametrize(
    ("kind", "loops", "product"),
    [
        ("conv", Loops(2, 1, 8, 3, 10, 12, 3, 5, 2, 1), Product(2 * 120, 8, 45)),
        ("depthwise", Loops(1, 16, 16, 16, 6, 6, 3, 3), Product(36, 1, 9, 16)),
        ("grouped", Loops(1, 4, 8, 16, 6, 6, 3, 3), Product(36, 2, 36, 4)),
        ("linear", Loops(3, 1, 10, 20, 7), Product(21, 10, 20)),
        ("matmul", Loops(2, 8, 8 * 20, 8 * 64, 10), Product(10, 20, 64, 16)),
        ("recurrent", Loops(2, 1, 128, 48, 30), Product(2, 128, 48, 30)),
    ],
)
def test_a_layer_as_a_matrix_product_computes_its_macs(kind: Kind, loops: Loops, product: Product):
    found = product_of(Layer("layer", kind, loops))
    assert found == product
    assert found.m * found.n * found.k * found.runs == loops.macs


def test_layers_without_products_are_listed():
    pool = layer("pool", "pool", Loops(1, 4, 4, 4, 2, 2, 2, 2), [tensor("x", 4, 4, 4)], tensor("y", 4, 2, 2))
    degenerate = product_layer(1, 1, 1, degenerate=True)
    cost = array().cost(Workload("rest", (pool, degenerate)))
    assert [bool(row.uncovered) for row in cost.rows] == [True, True]
    assert cost.seconds == 0 and cost.joules is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": 0}, "hardware systolic: rows=0 has to be above zero"),
        ({"stationary": "row"}, "hardware systolic: stationary=row is none of output, weight, input"),
        ({"assume": "eight"}, "'eight' is not a number format"),
    ],
)
def test_an_array_that_cannot_be_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        array(**changes)


def test_a_layer_without_size_is_refused_by_name():
    with pytest.raises(UserError, match="layer 'product' of gemm has no size: out_channels=0"):
        array().cost(Workload("gemm", (Layer("product", "linear", Loops(out_channels=0)),)))
