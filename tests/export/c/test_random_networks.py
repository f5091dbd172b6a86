import numpy as np
import pytest
from c_bundle import SANITIZED, Bundle, expected, first_difference, needs_cc
from integer_programs import random_inputs, random_program

from edgetrain.export.c.arena import CMSIS_NN, OWN, arenas

BATCH = 6
KERNELS = ["kernels.c", "kernels_plain.c"]


def check(count, kernels, folder, plan=OWN):
    """Every byte of every layer, of as many networks of each scheme, and every byte of the arena that was used."""
    programs = [random_program(seed, scheme) for scheme in ("int8", "q7") for seed in range(count)]
    inputs = [random_inputs(program, BATCH, seed) for seed, program in enumerate(programs)]
    plans = [arenas(program)[plan] for program in programs]
    wanted = [expected(program, x) for program, x in zip(programs, inputs, strict=True)]
    bundle = Bundle(programs, BATCH, folder, (*SANITIZED, *(["-DEDGETRAIN_CMSIS_NN"] if plan == CMSIS_NN else [])))
    for each in kernels:
        ran = bundle.run(each, inputs, [plan.bytes for plan in plans])
        for number, (program, own, found) in enumerate(zip(programs, wanted, ran, strict=True)):
            difference = first_difference(program, found.trace, own)
            assert not difference, f"{each}: network {number} of {program.scheme}, {difference}"
            assert np.array_equal(found.used, planned_use(program, plans[number])), f"{each}: network {number}"


def planned_use(program, plan):
    """Of each byte of the arena whether the manifest says that something stands there."""
    places = [(offset, program.values[name].bytes) for name, offset in plan.offsets.items()]
    used = np.zeros(plan.bytes, bool)
    for offset, size in (*places, *plan.scratch.values()):
        used[offset : offset + size] = True
    assert used[-1]  # the arena is no larger than what stands in it
    return used


@needs_cc
def test_every_layer_of_random_networks_is_bit_exact_and_the_arena_used_as_planned(tmp_path):
    check(50, KERNELS, tmp_path)


@needs_cc
def test_the_plan_for_cmsis_nn_holds_the_same_networks(tmp_path):
    check(30, ["kernels_plain.c"], tmp_path, CMSIS_NN)


@needs_cc
@pytest.mark.slow
def test_every_layer_of_a_thousand_random_networks_is_bit_exact_under_sanitizers(tmp_path):
    check(500, KERNELS, tmp_path)
