"""Memory of activations: published peaks, liveness by brute force, plans without overlap, scratch of CMSIS-NN."""

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_workloads import chain, cifar10, layer, tensor

from edgetrain.errors import UserError
from edgetrain.hardware.activation_memory import lifetimes, plan
from edgetrain.hardware.cmsis_nn import dsp_scratch, helium_scratch
from edgetrain.hardware.formats import FP32
from edgetrain.hardware.workload import Activation, Layer, Loops, Workload


@st.composite
def graphs(draw) -> Workload:
    """Layers that read any tensors before them; some tensors are state, some leave."""
    kinds = st.sampled_from(["conv", "elementwise", "pool", "norm", "linear"])
    sizes = st.integers(1, 6)
    known = [tensor(f"x{number}", draw(sizes), state=draw(st.integers(0, 5)) == 0) for number in range(2)]
    inputs, layers = tuple(one.name for one in known), []
    for number in range(draw(st.integers(1, 8))):
        read = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique_by=lambda one: one.name))
        written = tensor(f"y{number}", draw(sizes), state=draw(st.integers(0, 9)) == 0)
        stride = draw(st.integers(1, 2))
        loops = Loops(out_height=2, kernel_height=draw(st.integers(1, 3)), stride_height=stride)
        layers.append(Layer(f"l{number}", draw(kinds), loops, tuple(read), (written,)))
        known.append(written)
    outputs = draw(st.lists(st.sampled_from([one.name for one in known[2:]]), unique=True))
    return Workload("random", tuple(layers), inputs, tuple(outputs))


def needed(workload: Workload, name: str, after: int) -> bool:
    """Whether a layer after this one, or the caller, reads the tensor."""
    later = any(one.name == name for layer in workload.layers[after + 1 :] for one in layer.inputs)
    return later or name in workload.outputs


def run(workload: Workload, in_place: bool) -> list[int]:
    """Bytes held at each layer when layers run one after another and a buffer is let go as soon as nobody needs it."""
    sizes = {name: one.bytes for name, one in workload.activations.items() if not one.state}
    held = {name for name in workload.inputs if name in sizes}
    live = []
    for index, one in enumerate(workload):
        (output,) = one.outputs
        reusable = [
            sizes[read.name]
            for read in one.inputs
            if read.name in sizes and not needed(workload, read.name, index) and sizes[read.name] >= output.bytes
        ]
        pool_ok = one.kind == "pool" and one.loops.stride_height - 1 >= one.loops.kernel_height // 2
        overwrites = in_place and reusable and (pool_ok or one.kind in ("elementwise", "norm")) and not output.state
        new = 0 if output.state or overwrites else output.bytes
        live.append(sum(sizes[name] for name in held) + new)
        held |= {output.name} & sizes.keys()
        held = {name for name in held if needed(workload, name, index)}
    return live


@given(graphs(), st.booleans())
def test_live_bytes_are_those_of_a_run_that_frees_at_once(workload, in_place):
    read = {one.name for layer in workload for one in layer.inputs}  # an input that no layer reads is not planned for
    inputs = tuple(name for name in workload.inputs if name in read)
    memory = plan(workload, in_place)
    assert list(memory.live) == run(replace(workload, inputs=inputs), in_place)


@given(graphs(), st.booleans(), st.sampled_from([1, 16, 64]))
def test_no_two_live_tensors_overlap_and_no_plan_beats_the_bound(workload, in_place, alignment):
    memory = plan(workload, in_place, lambda one: 7 * len(one.inputs), alignment)
    for a, b in combinations(memory.placements, 2):
        together = a.tensor.first <= b.tensor.last and b.tensor.first <= a.tensor.last
        handed_over = a.tensor.name == b.tensor.over or b.tensor.name == a.tensor.over
        if together and not handed_over:
            assert a.end <= b.offset or b.end <= a.offset
        if handed_over:
            assert a.offset == b.offset
    assert all(placement.offset % alignment == 0 for placement in memory.placements)
    assert memory.arena_bytes >= memory.peak


@given(st.lists(st.integers(1, 50).map(lambda size: 16 * size), min_size=2, max_size=12))
def test_a_chain_needs_input_and_output_of_its_widest_layer_and_the_plan_meets_it(sizes):
    memory = plan(chain(sizes), in_place=False)
    assert memory.peak == memory.arena_bytes == max(a + b for a, b in pairwise(sizes))


def test_cmsis_nns_network_needs_40960_bytes_and_35840_with_pools_in_place():
    sizes = [one.bytes for one in lifetimes(cifar10())]
    assert sizes == [3072, 32768, 8192, 8192, 2048, 4096, 1024, 10]
    two_buffers, one_buffer = plan(cifar10(), in_place=False), plan(cifar10())
    assert (two_buffers.peak, two_buffers.peak_layer) == (40_960, 1)
    assert (one_buffer.peak, one_buffer.peak_layer) == (35_840, 0)
    assert (two_buffers.arena_bytes, one_buffer.arena_bytes) == (40_960, 35_840)
    assert plan(cifar10(relu=True)).peak == 35_840


def test_scratch_counts_at_its_layer_alone():
    memory = plan(cifar10(), True, dsp_scratch)
    assert memory.live[0] == 35_840 + 304
    assert memory.live[2] == 8192 + 8192 + 3200
    assert memory.live[6] == 1024 + 10
    assert memory.arena_bytes == 35_840 + 304


def test_a_residual_connection_is_kept_alive_to_its_sum():
    x, a, b, y = (tensor(name, 100) for name in "xaby")
    layers = (
        Layer("first", "conv", Loops(), (x,), (a,)),
        Layer("second", "conv", Loops(), (a,), (b,)),
        Layer("sum", "elementwise", Loops(), (x, b), (y,)),
    )
    block = Workload("block", layers, ("x",), ("y",))
    assert plan(block, in_place=False).live == (200, 300, 300)
    assert plan(block).live == (200, 300, 200)
    last_read = {one.name: (one.first, one.last) for one in lifetimes(block)}
    assert last_read == {"x": (0, 2), "a": (0, 1), "b": (1, 2), "y": (2, 2)}


def test_an_output_lives_to_the_end_and_what_nobody_reads_while_it_is_written():
    x, a, b, y = (tensor(name, 10) for name in "xaby")
    layers = (
        Layer("early", "conv", Loops(), (x,), (a,)),
        Layer("idle", "conv", Loops(), (x,), (b,)),
        Layer("late", "conv", Loops(), (x,), (y,)),
    )
    ends = {one.name: (one.first, one.last) for one in lifetimes(Workload("w", layers, ("x",), ("a", "y")))}
    assert ends == {"x": (0, 2), "a": (0, 2), "b": (1, 1), "y": (2, 2)}


def test_what_comes_from_outside_is_there_from_the_start_listed_or_not():
    x, late, a, y = (tensor(name, 10) for name in ("x", "late", "a", "y"))
    layers = (Layer("one", "conv", Loops(), (x,), (a,)), Layer("two", "conv", Loops(), (a, late), (y,)))
    assert plan(Workload("w", layers, ("x", "late"), ("y",))).live == (30, 30)
    assert plan(Workload("w", layers)).live == (30, 30)


def test_an_output_is_not_written_over_by_the_last_layer_that_reads_it():
    x, a, y = (tensor(name, 10) for name in "xay")
    layers = (Layer("one", "conv", Loops(), (x,), (a,)), Layer("two", "elementwise", Loops(), (a,), (y,)))
    assert plan(Workload("w", layers, ("x",), ("y",))).live == (20, 10)
    assert plan(Workload("w", layers, ("x",), ("a", "y"))).live == (20, 20)


def test_state_stands_apart_and_is_never_written_over():
    x, cache, y = tensor("x", 10), tensor("cache", 1000, state=True), tensor("y", 10)
    step = Workload("step", (Layer("add", "elementwise", Loops(), (cache, x), (y,)),), ("x", "cache"), ("y",))
    memory = plan(step)
    assert (memory.state_bytes, memory.live, memory.arena_bytes) == (1000, (10,), 10)
    assert plan(Workload("other", (Layer("add", "elementwise", Loops(), (cache,), (y,)),), ("cache",))).live == (10,)


@pytest.mark.parametrize(
    ("kernel", "stride", "outputs", "in_place"),
    [(3, 2, 4, True), (2, 2, 4, True), (3, 1, 4, False), (5, 2, 4, False), (5, 1, 1, True)],
)
def test_a_pool_writes_over_its_input_when_no_output_reads_before_its_own_place(kernel, stride, outputs, in_place):
    loops = Loops(out_height=outputs, kernel_height=kernel, stride_height=stride)
    pool = Layer("pool", "pool", loops, (tensor("x", 100),), (tensor("y", 50),))
    assert plan(Workload("w", (pool,), ("x",), ("y",))).live == ((100,) if in_place else (150,))


def test_an_output_that_is_larger_or_floating_point_takes_its_own_place():
    wide = Layer("cast", "elementwise", Loops(), (tensor("x", 10),), (Activation("y", (10,), FP32),))
    assert plan(Workload("w", (wide,), ("x",), ("y",))).live == (50,)


def test_an_alignment_below_a_byte_is_refused():
    with pytest.raises(UserError, match="alignment=0: tensors stand at multiples of at least 1 byte"):
        plan(chain([1, 1]), alignment=0)


SCRATCH = [  # kind, kernel, channels, bytes with DSP instructions, with Helium
    ("conv", 5, 3, 304, 320),
    ("conv", 5, 32, 3200, 3200),
    ("conv", 3, 7, 256, 256),
    ("conv", 3, 10, 368, 384),
    ("conv", 1, 64, 0, 0),
    ("grouped", 3, 32, 1152, 1152),
    ("depthwise", 3, 64, 0, 4464),
    ("depthwise", 5, 7, 350, 12400),
]


def shaped(kind: str, kernel: int, channels: int) -> Layer:
    groups = {"depthwise": channels, "grouped": 4}.get(kind, 1)
    loops = Loops(1, groups, channels, channels, 8, 8, kernel, kernel)
    return layer(kind, kind, loops, [tensor("x", 1, channels, 12, 12)], tensor("y", 1, channels, 8, 8))


@pytest.mark.parametrize(("kind", "kernel", "channels", "dsp", "helium"), SCRATCH)
def test_scratch_is_what_cmsis_nns_getters_return(kind, kernel, channels, dsp, helium):
    one = shaped(kind, kernel, channels)
    assert (dsp_scratch(one), helium_scratch(one)) == (dsp, helium)


def test_classifiers_need_a_sum_a_row_on_helium_alone():
    fc = layer("fc", "linear", Loops(1, 1, 10, 1024), [tensor("x", 1, 1024)], tensor("y", 1, 10))
    assert (dsp_scratch(fc), helium_scratch(fc)) == (0, 40)


def test_scratch_agrees_with_the_compiled_library():
    library = pytest.importorskip("executorch.backends.cortex_m.library._cmsis_nn.cmsis_nn")
    for backend, own in ((library.Backend.DSP, dsp_scratch), (library.Backend.MVE, helium_scratch)):
        for kernel in (1, 2, 3, 5, 7):
            for channels in (4, 7, 16, 33, 64, 130):
                head = (backend, library.DataType.A8W8, [1, 12, 12, channels])
                size = 13 - kernel
                tail = ([1, size, size, channels], [0, 0], [1, 1], [1, 1])
                conv = library.convolve_wrapper_buffer_size(*head, [channels, kernel, kernel, channels], *tail)
                assert own(shaped("conv", kernel, channels)) == conv
                depthwise = library.depthwise_conv_wrapper_buffer_size(*head, [1, kernel, kernel, channels], *tail, 1)
                assert own(shaped("depthwise", kernel, channels)) == depthwise
