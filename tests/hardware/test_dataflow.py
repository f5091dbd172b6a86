"""Directives: what can be written, what they mean for a layer, clear refusals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetrain.errors import UserError
from edgetrain.hardware.dataflow import Directive, Map, Shape, bind, parse_dataflow, shape_of
from edgetrain.hardware.workload import Loops

K, C, R, S, Y, X = range(6)


def test_directives_are_read_with_kernel_sizes_and_clusters():
    found = parse_dataflow(
        ("SpatialMap(1, 1) K", "TemporalMap (Sz(R),1) Y'", "Cluster(Sz(R), P)", "SpatialMap(2,1) C"), ""
    )
    assert found.levels == (
        (Directive(True, 1, 1, "K"), Directive(False, "R", 1, "Y'")),
        (Directive(True, 2, 1, "C"),),
    )
    assert found.clusters == ("R",)


@pytest.mark.parametrize(
    ("stride", "rows", "offset"),
    [(1, 4 + 3 - 1, 2), (2, 3 * 2 + 3, 4), (4, 3 * 4 + 3, 8)],
)
def test_a_map_of_outputs_holds_the_input_that_they_read(stride: int, rows: int, offset: int):
    """Four outputs of a kernel of 3 rows, two further at a time."""
    layer = Shape((1, 1, 3, 3, 40, 40), stride, 1)
    for text in ("SpatialMap(4,2) Y'", "SpatialMap(6,2) Y"):
        assert bind(parse_dataflow((text,), ""), layer).levels == ((Map(Y, True, rows, offset),),)


def test_a_map_of_rows_below_the_kernel_s_is_taken_as_written():
    """Rows that move together with the kernel's: a stride does not part them."""
    layer = Shape((1, 1, 3, 3, 41, 41), 2, 2)
    flow = parse_dataflow(("SpatialMap(1,1) Y", "SpatialMap(1,1) R"), "")
    assert bind(flow, layer).levels == ((Map(Y, True, 1, 1), Map(R, True, 1, 1)),)


def test_clusters_divide_the_units():
    flow = parse_dataflow(
        ("SpatialMap(1,1) K", "Cluster(4)", "SpatialMap(1,1) C", "Cluster(Sz(S))", "SpatialMap(1,1) S"), ""
    )
    bound = bind(flow, Shape((1, 1, 3, 5, 9, 9)))
    assert bound.units(130) == (6, 4, 5)
    assert bound.units(19) == (0, 4, 5)


def test_a_shape_is_one_group_of_a_layer_with_the_input_that_it_reads():
    loops = Loops(2, 4, 32, 16, 10, 12, 3, 5, 2, 1)
    assert shape_of(loops) == Shape((8, 4, 3, 5, 21, 16), 2, 1)
    assert shape_of(loops).macs * loops.groups * loops.batch == loops.macs
    depthwise = Loops(1, 16, 16, 16, 10, 10, 3, 3)
    assert shape_of(depthwise, depthwise=True) == Shape((1, 16, 3, 3, 12, 12), depthwise=True)
    assert shape_of(depthwise, depthwise=True).macs == depthwise.macs


@pytest.mark.parametrize(
    ("directives", "says"),
    [
        (("SpatialMap(1,1) Q",), r"hardware x: 'SpatialMap\(1,1\) Q' is no directive; write TemporalMap"),
        (("SpatialMap(1,1)",), "is no directive"),
        (("SpatialMap(-1,1) K",), "is no directive"),
        (("SpatialMap(Sz(K),1) K",), "is no directive"),
        (("",), "'' is no directive"),
        (("SpatialMap(1,0) K",), r"'SpatialMap\(1,0\) K' has a size or offset of 0; write one of at least 1"),
        (("SpatialMap(1,1) K", "Cluster(0)", "SpatialMap(1,1) C"), r"'Cluster\(0\)' has a size or offset of 0"),
        (("SpatialMap(1,1) Y", "TemporalMap(1,1) Y'"), "level 0 of the dataflow maps Y twice; leave one"),
        (("TemporalMap(1,1) K",), "level 0 of the dataflow has no SpatialMap; say what its units divide"),
        (("SpatialMap(1,1) K", "Cluster(8)"), "level 1 of the dataflow has no SpatialMap"),
        ((), "level 0 of the dataflow has no SpatialMap"),
    ],
)
def test_what_is_no_dataflow_is_refused_in_one_sentence(directives: tuple[str, ...], says: str):
    with pytest.raises(UserError, match=says) as error:
        parse_dataflow(directives, "hardware x")
    assert str(error.value).startswith("hardware x: ") and "\n" not in str(error.value)


PIECES = st.sampled_from([*"KCRSYX'(),0129 ", "Sz(R)", "Sz(S)", "Sz", "SpatialMap", "TemporalMap", "Cluster", "-", "P"])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.text(), st.lists(PIECES).map("".join)), max_size=4))
def test_any_text_is_a_dataflow_or_a_refusal(lines: list[str]):
    try:
        found = parse_dataflow(tuple(lines), "hardware x")
    except UserError:
        return
    assert len(found.levels) == len(found.clusters) + 1
