"""Builds for emulated cores: what is in them, what does not fit, and what is said when a tool is not there."""

import os
import re

import pytest
from c_folders import by_hand, emulated

from edgetrain.errors import UserError
from edgetrain.export.c.cortex_m import build, checkouts, library_objects, missing_tools, require_tools, sections


@emulated
def test_a_network_larger_than_the_board_says_by_how_much(tmp_path):
    folder = by_hand(tmp_path / "c", size=3 * 2**20)
    build(folder, "cortex_m4", "plain", tmp_path)  # of 4 MiB
    with pytest.raises(UserError, match=r"cortex_m55, plain kernels: the network needs [\d,]+ bytes more RAM than"):
        build(folder, "cortex_m55", "plain", tmp_path)
    with pytest.raises(UserError) as error:
        build(by_hand(tmp_path / "c", size=2**22, flash=2**22 + 2**20), "cortex_m4", "plain", tmp_path)
    ram, flash = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) bytes more", str(error.value)))
    assert sorted(re.findall("bytes more (RAM|flash)", str(error.value))) == ["RAM", "flash"]
    assert min(ram, flash) > 0 and max(ram, flash) > 2**20


@emulated
def test_sections_are_those_of_the_program(tmp_path):
    sizes = [
        sections(build(by_hand(tmp_path / "c", size, flash), "cortex_m4", "plain", tmp_path))
        for size, flash in ((8, 8), (1008, 4008))
    ]
    assert sizes[1]["bss"] - sizes[0]["bss"] == 1000
    assert sizes[1]["text"] - sizes[0]["text"] == 4000


@emulated
def test_what_does_not_compile_is_said_in_a_sentence(tmp_path):
    folder = by_hand(tmp_path / "c")
    (folder / "kernels_plain.c").write_text("int f(void) { return undeclared; }\n")
    with pytest.raises(
        UserError, match=r"does not build cortex_m4, plain kernels: .*kernels_plain.c:1:\d+: error: .undecl"
    ):
        build(folder, "cortex_m4", "plain", tmp_path)


def test_missing_packages_are_named_with_the_line_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    packages = ["gcc-arm-none-eabi", "libnewlib-arm-none-eabi", "qemu-system-arm"]
    assert missing_tools() == packages
    line = f"apt-get install --no-install-recommends {' '.join(packages)}$"
    with pytest.raises(UserError, match=line):
        require_tools()
    with pytest.raises(UserError, match=line):
        build(by_hand(tmp_path / "c"), "cortex_m4", "plain", tmp_path)
    compiler = tmp_path / "arm-none-eabi-gcc"  # one without a C library: it gives names back as they are
    compiler.write_text("#!/bin/sh\necho rdimon.specs\n")
    compiler.chmod(0o755)
    assert missing_tools() == packages[1:]


@emulated
def test_only_what_is_called_of_the_library_is_compiled(tmp_path):
    texts = {
        "A/arm_first.c": "void arm_second(void);\nvoid arm_first(void) { arm_second(); }\n",
        "B/sizes.c": "void arm_third(void);\nint arm_other(void) { return 1; }\n\nvoid\narm_ignored(void) {}\n"
        "void arm_second(void)\n{\n    arm_third();\n}\n",
        "B/arm_third.c": "void arm_third(void) {}\n",
        "C/arm_unused.c": "#error\n",
    }
    for name, text in texts.items():
        (tmp_path / "Source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "Source" / name).write_text(text)
    (tmp_path / "glue.c").write_text("void arm_first(void);\nvoid glue(void) { arm_first(); }\n")
    os.system(f"cd {tmp_path} && arm-none-eabi-gcc -mcpu=cortex-m4 -c glue.c")
    found = library_objects(tmp_path, ["-mcpu=cortex-m4", "-mthumb"], [tmp_path / "glue.o"], tmp_path)
    assert sorted(path.name for path in found) == ["arm_first.o", "arm_third.o", "sizes.o"]


def test_a_path_that_is_no_checkout_is_said_so(tmp_path):
    with pytest.raises(UserError, match=r"cmsis_nn=.* is no checkout of ARM-software/CMSIS-NN"):
        checkouts(tmp_path, tmp_path)
    (tmp_path / "Include").mkdir()
    (tmp_path / "Include" / "arm_nnfunctions.h").touch()
    with pytest.raises(UserError, match=r"cmsis_core=.* is no checkout of ARM-software/CMSIS_6"):
        checkouts(tmp_path, tmp_path)
