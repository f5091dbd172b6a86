from dataclasses import replace

import pytest
import torch
from integer_programs import random_program

from edgetrain.errors import UserError
from edgetrain.export.c.arena import ALIGNMENT, CMSIS_NN, OWN, arenas, cmsis_nn_scratch, layer_of, workload
from edgetrain.models.integer import (
    Add,
    AveragePool,
    Clip,
    Convolution,
    Depthwise,
    FullyConnected,
    IntegerProgram,
    MaxPool,
    Multipliers,
    RightShift,
    Value,
)

PROGRAMS = [random_program(seed, scheme) for scheme in ("int8", "q7") for seed in range(150)]


def program_of(values, operations):
    values = {name: Value(name, shape, 0.5, 0) for name, shape in values.items()}
    return IntegerProgram("q7", values, tuple(operations), next(iter(values)), list(values)[-1], (1, 2, 0))


def convolution(source, output, kernel, channels, outputs, **window):
    weight = torch.zeros(outputs, kernel, kernel, channels, dtype=torch.int8)
    layer = {"weight": weight, "bias": torch.zeros(outputs, dtype=torch.int32), "rescale": RightShift(7)}
    window = {"kernel": (kernel, kernel), "stride": (1, 1), "padding": (kernel // 2,) * 2} | window
    return Convolution(name=output, inputs=(source,), output=output, **layer, **window)


def cifar10():
    """The smaller example network of the first CMSIS-NN: 32, 16 and 32 channels, pools of 2 by 2."""
    values = {"x": (32, 32, 3)}
    operations, size, channels, source = [], 32, 3, "x"
    for number, outputs in enumerate((32, 16, 32)):
        values[f"conv{number}"], values[f"pool{number}"] = (size, size, outputs), (size // 2, size // 2, outputs)
        operations.append(convolution(source, f"conv{number}", 5, channels, outputs))
        source, size, channels = f"pool{number}", size // 2, outputs
        operations.append(MaxPool(name=source, inputs=(f"conv{number}",), output=source, kernel=(2, 2), stride=(2, 2)))
    values["y"] = (1, 1, 10)
    weight = {"weight": torch.zeros(10, 512, dtype=torch.int8), "bias": torch.zeros(10, dtype=torch.int32)}
    operations.append(FullyConnected(name="y", inputs=(source,), output="y", **weight, rescale=RightShift(7)))
    return program_of(values, operations)


def lives(program, name, at):
    """Whether a value holds something while operation number `at` runs."""
    written = [index for index, each in enumerate(program.operations) if each.output == name]
    read = [index for index, each in enumerate(program.operations) if name in each.inputs]
    first = 0 if name == program.input else written[0]
    last = len(program.operations) - 1 if name == program.output else max(read, default=first)
    return first <= at <= last


@pytest.mark.parametrize("plan", [OWN, CMSIS_NN])
def test_what_lives_at_once_does_not_overlap_but_where_an_operation_writes_over_its_last_input(plan):
    in_place = 0
    for program in PROGRAMS:
        arena = arenas(program)[plan]
        for at, operation in enumerate(program.operations):
            spans = {
                name: (arena.offsets[name], arena.offsets[name] + value.bytes)
                for name, value in program.values.items()
                if lives(program, name, at)
            }
            if operation.name in arena.scratch:
                offset, size = arena.scratch[operation.name]
                spans["its scratch"] = (offset, offset + size)
            for first, (low, high) in spans.items():
                for second, (other_low, other_high) in spans.items():
                    if first >= second or high <= other_low or other_high <= low:
                        continue
                    assert plan == OWN and isinstance(operation, MaxPool | AveragePool | Add | Clip)
                    assert operation.output in (first, second)
                    given = second if operation.output == first else first
                    assert given in operation.inputs and not lives(program, given, at + 1)
                    assert low == other_low
                    in_place += 1
    assert in_place > 30 if plan == OWN else in_place == 0


def test_a_pool_in_place_never_reads_what_it_overwrote():
    """Walks the outputs in memory's order, with a window's inputs read before its outputs are written."""
    found = 0
    for program in PROGRAMS:
        arena = arenas(program)[OWN]
        for operation in program.operations:
            (source, *_), output = operation.inputs, operation.output
            if not isinstance(operation, MaxPool | AveragePool) or arena.offsets[source] != arena.offsets[output]:
                continue
            if arena.scratch.get(operation.name):
                continue
            (height, width, channels), made = program.values[source].shape, program.values[output].shape
            found += 1
            written = 0
            for row in range(made[0]):
                for column in range(made[1]):
                    top = max(0, row * operation.stride[0] - operation.padding[0])
                    left = max(0, column * operation.stride[1] - operation.padding[1])
                    assert top < height and left < width
                    assert (top * width + left) * channels >= written
                    written = (row * made[1] + column + 1) * channels
    assert found > 20


def test_every_place_is_aligned_and_within_the_arena():
    for program in PROGRAMS:
        for arena in arenas(program).values():
            ends = [arena.offsets[name] + value.bytes for name, value in program.values.items()]
            ends += [offset + size for offset, size in arena.scratch.values()]
            assert max(ends) == arena.bytes >= arena.lower_bound
            starts = [*arena.offsets.values(), *(offset for offset, _ in arena.scratch.values())]
            assert not any(start % ALIGNMENT for start in starts)


def test_the_arena_of_a_chain_is_the_most_that_lives_at_once():
    """Sizes are multiples of the alignment; 40,960 bytes is what TensorFlow Lite Micro's planner takes for it."""
    program = cifar10()
    plans = arenas(program)
    tables = {layer.name: sum(each.bytes for each in (*layer.inputs, *layer.outputs)) for layer in workload(program)}
    assert max(tables.values()) == tables["pool0"] == 40960 == plans[CMSIS_NN].bytes == plans[CMSIS_NN].lower_bound
    # a pool in place leaves the first convolution: its input, its output and 4 columns of 5 * 5 * 3, rounded up to 80
    assert plans[OWN].bytes == plans[OWN].lower_bound == 32 * 32 * 3 + 32 * 32 * 32 + 4 * 80
    assert (plans[OWN].peak_layer, plans[CMSIS_NN].peak_layer) == ("conv0", "pool0")


def test_random_chains_need_no_more_than_the_bound_and_the_alignment():
    for program in PROGRAMS:
        if any(isinstance(each, Add) for each in program.operations):
            continue
        for arena in arenas(program).values():
            most = max(len(each.inputs) + 1 + (each.name in arena.scratch) for each in program.operations)
            assert arena.bytes < arena.lower_bound + most * ALIGNMENT


def test_a_value_added_to_itself_is_written_over_where_nothing_else_reads_it():
    numbers = {"first": (2**30, 0), "second": (2**30, 0), "result": (2**30, -18)}
    program = program_of({"x": (4, 4, 3), "y": (4, 4, 3)}, [Add(name="y", inputs=("x", "x"), output="y", **numbers)])
    arena = arenas(program)[OWN]
    assert arena.bytes == 48 and arena.offsets == {"x": 0, "y": 0}
    twice = Add(name="z", inputs=("x", "y"), output="z", **numbers)
    values = {"x": (4, 4, 3), "y": (4, 4, 3), "z": (4, 4, 3)}
    longer = arenas(program_of(values, [*program.operations, twice]))[OWN]
    assert longer.offsets["x"] != longer.offsets["y"]


def test_a_residual_keeps_its_input_until_it_is_added():
    operations = [convolution("x", "a", 3, 16, 16), convolution("a", "b", 3, 16, 16)]
    numbers = {"first": (2**30, 0), "second": (2**30, 0), "result": (2**30, -18)}
    operations.append(Add(name="y", inputs=("x", "b"), output="y", **numbers))
    program = program_of({name: (8, 8, 16) for name in "xaby"}, operations)
    arena = arenas(program)[OWN]
    assert arena.lower_bound == 3 * 1024 + 4 * 144  # x, a, b and the scratch of a convolution; y is written over one
    assert arena.bytes == arena.lower_bound


def test_the_table_of_layers_counts_macs_weights_and_shapes():
    program = cifar10()
    table = workload(program)
    assert [layer.kind for layer in table] == ["conv", "pool"] * 3 + ["linear"]
    # 32 * 32 * 32 * 75 + 16 * 16 * 16 * 800 + 8 * 8 * 32 * 400 + 5120
    assert table.macs == 2457600 + 3276800 + 819200 + 5120
    assert table.weights == 32 * 75 + 16 * 800 + 32 * 400 + 5120 + 32 + 16 + 32 + 10


def test_scratch_of_cmsis_nn_covers_what_its_fast_kernels_do_not_take():
    def needed(operation, shape, output):
        values = {"x": Value("x", shape, 1.0, 0), "y": Value("y", output, 1.0, 0)}
        return cmsis_nn_scratch(operation, layer_of(operation, values))

    wide = {"weight": torch.zeros(3, 3, 300, dtype=torch.int8), "bias": torch.zeros(300, dtype=torch.int32)}
    window = {"kernel": (3, 3), "stride": (1, 1), "padding": (2, 2)}
    depthwise = Depthwise(name="y", inputs=("x",), output="y", **wide, rescale=RightShift(7), **window)
    assert needed(depthwise, (8, 8, 300), (10, 10, 300)) == 2 * 9 * 300  # arm_depthwise_conv_s8_opt with DSP
    window = {"kernel": (2, 2), "stride": (2, 2)}
    average = AveragePool(name="y", inputs=("x",), output="y", **window)
    assert needed(average, (8, 8, 20), (4, 4, 20)) == 4 * 20
    assert needed(MaxPool(name="y", inputs=("x",), output="y", **window), (8, 8, 20), (4, 4, 20)) == 0
    q7 = convolution("x", "y", 1, 20, 4)
    assert needed(q7, (8, 8, 20), (8, 8, 4)) == 4 * 32  # by our own kernel
    pointwise = replace(q7, rescale=Multipliers(torch.zeros(4), torch.zeros(4)))
    assert needed(pointwise, (8, 8, 20), (8, 8, 4)) == 0
    assert needed(replace(pointwise, padding=(1, 1)), (8, 8, 20), (10, 10, 4)) == 4 * 32
    assert needed(convolution("x", "y", 5, 3, 4), (8, 8, 3), (8, 8, 4)) == 320


def test_an_arena_beyond_32_bit_offsets_is_refused_with_the_layer():
    program = program_of(
        {"x": (50000, 50000, 1), "y": (50000, 50000, 1)}, [Clip(name="big", inputs=("x",), output="y")]
    )
    with pytest.raises(UserError, match=r"arena of 2,500,000,000 bytes, most at 'big', more than the 2 GiB"):
        arenas(program)


def test_facts_hold_plain_values_of_every_layer():
    program = cifar10()
    facts = arenas(program)[OWN].facts()
    assert list(facts["live_bytes"]) == [each.name for each in program.operations]
    assert max(facts["live_bytes"].values()) == facts["lower_bound_bytes"] == facts["live_bytes"][facts["peak_layer"]]
    assert set(facts["offsets"]) == set(program.values)
    assert facts["scratch"]["conv1"]["bytes"] == 4 * 800
