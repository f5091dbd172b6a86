"""Exported networks on emulated cores: PyTorch's bytes, counts that are right, and what is said when one fails."""

import re

import pytest
import torch
from c_folders import by_hand, emulated, exported, floats
from integer_programs import random_network, random_program

from edgetrain.errors import UserError
from edgetrain.export.c.arena import workload
from edgetrain.export.c.cortex_m import CORES, build
from edgetrain.export.c.emulation import Program, emulations, run
from edgetrain.export.c.source import KINDS
from edgetrain.models.integer import Add


def covering(scheme):
    """Seeds of a few programs that together hold every operation of the scheme."""
    seeds, missing = [], set(KINDS) - ({Add} if scheme == "q7" else set())
    for seed in range(100):
        kinds = {type(operation) for operation in random_program(seed, scheme).operations}
        if len(kinds & missing) >= len(missing) / 2:
            seeds.append(seed)
            missing -= kinds
        if not missing:
            return seeds
    raise AssertionError(f"no program has {missing}")


@emulated
@pytest.mark.parametrize("scheme", ["int8", "q7"])
@pytest.mark.parametrize("core", ["cortex_m4", "cortex_m55"])
def test_every_layer_of_random_programs_is_bit_exact_on_a_core(core, scheme, tmp_path):
    for seed in covering(scheme):
        network = random_network(seed, scheme)
        x = floats(network, 6)
        program = Program(exported(network.program, tmp_path / f"{seed}"), network, core, "portable")
        logits, rows = program(x)  # raises where any byte of any layer differs
        assert torch.equal(logits, network(x))
        table = workload(network.program)
        assert [(row["layer"], row["macs"]) for row in rows] == [(layer.name, layer.macs) for layer in table]
        assert all(row["instructions"] > row["macs"] / 16 for row in rows)  # no core does 16 MACs an instruction
        assert 0 < program.facts["stack_bytes"] < 4096
        assert program.facts["program_text_bytes"] > sum(layer.weights for layer in table)


@emulated
def test_our_kernels_run_all_items_and_plain_ones_the_first(tmp_path):
    network = random_network(1)
    x = floats(network, 5)
    found = emulations(exported(network.program, tmp_path), network, ["cortex_m7"], 5)
    assert [(each.processor, each.kernels, each.items) for each in found] == [
        ("cortex_m7", "portable", 5),
        ("cortex_m7", "plain", 1),
    ]
    for each in found:
        assert torch.equal(each.run(x[: each.items])[0], network(x[: each.items]))
        assert "-mcpu=cortex-m7" in each.facts["flags"] and "-O3" in each.facts["flags"]
        assert "mps2-an500" in each.facts["emulator"] and each.facts["compiler"].startswith("arm-none-eabi-gcc")


@emulated
def test_a_layer_that_computes_something_else_is_named(tmp_path):
    network = random_network(4)
    folder = exported(network.program, tmp_path / "c")
    (operation, *_) = network.program.operations
    text = (folder / "model.c").read_text()
    (folder / "model.c").write_text(
        re.sub(r"(\.low = )(-?\d+)(,\s+\.high = )(-?\d+)", r"\g<1>99\g<3>100", text, count=1)
    )
    assert (folder / "model.c").read_text() != text
    program = Program(folder, network, "cortex_m4", "plain")
    with pytest.raises(UserError, match=rf"gives other bytes than PyTorch .* in layer '{operation.name}' for input 0"):
        program(floats(network, 2))


@emulated
@pytest.mark.parametrize("core", CORES)
def test_instructions_of_a_known_loop_are_exact_and_the_same_at_every_run(core, tmp_path):
    elf = build(by_hand(tmp_path / "c"), core, "plain", tmp_path)
    done = run(elf, core, b"")
    (short, long, _), (longer, longest, _) = ([step.instructions for step in steps[1:]] for steps in done.runs)
    # Two instructions a turn. A count is good to one; the counter's 24 bits run out four times in the longest.
    assert abs(long - short - 2000) <= 1
    assert abs(longer - short - 2000) <= 1
    assert 0 <= longest - short - 40_000_000 <= 60
    assert 200 <= short <= 200 + 40  # the call
    assert run(elf, core, b"").runs == done.runs


@emulated
def test_records_hold_what_was_written_and_who_wrote_it(tmp_path):
    elf = build(by_hand(tmp_path / "c"), "cortex_m4", "plain", tmp_path)
    done = run(elf, "cortex_m4", b"", ["a", "b"])
    assert done.text == "<main><a><b><inputs>"
    assert [[step.output for step in steps] for steps in done.runs] == 2 * [
        [b"\3", b"\3\xff\x80\x7f", b"\xff\x80", b""]
    ]
    assert [(layer.name, layer.kind, layer.macs) for layer in done.layers] == [
        ("first", "spin", 5_000_000_000),
        ("second", "spin", 7),
        ("third", "", 0),
    ]
    assert done.instructions == [step.instructions for step in done.runs[1][1:]]
    (steps, _) = done.runs
    assert 3000 <= steps[3].stack <= 3100
    assert steps[1].stack < 300
    assert done.stack == steps[3].stack


@emulated
@pytest.mark.parametrize("core", ["cortex_m4", "cortex_m55"])
@pytest.mark.parametrize(
    "word, message",
    [
        ("spoil", "stopped under emulation: fault at address 0x[0-9a-f]{8}, status 0x0000[0-9a-f]{4}, in spoil$"),
        ("hang", "did not end within 1 s"),
        ("refuse", "stopped under emulation: cannot do that$"),
    ],
)
def test_a_program_that_fails_says_why(core, word, message, tmp_path):
    elf = build(by_hand(tmp_path / "c"), core, "plain", tmp_path)
    with pytest.raises(UserError, match=message):
        run(elf, core, b"", [word], patience=1 if word == "hang" else 60)
