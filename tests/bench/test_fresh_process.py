"""A function alone in its process: what comes back, what a failure says, and that memory is that process's own."""

import os
import sys

import pytest
import torch

from edgetrain import environment
from edgetrain.bench import fresh_process
from edgetrain.bench.fresh_process import in_fresh_process
from edgetrain.environment import resident
from edgetrain.errors import UserError

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_arguments_and_results_are_json() -> None:
    assert in_fresh_process("json.dumps", obj=[1, {"a": None}]) == '[1, {"a": null}]'
    assert in_fresh_process("os.getpid") != os.getpid()


def test_a_failure_is_one_sentence_with_the_last_line_of_its_traceback() -> None:
    with pytest.raises(UserError, match=r"^json.loads failed in its own process: .*Expecting value") as caught:
        in_fresh_process("json.loads", s="")
    assert "\n" not in str(caught.value)


@linux
def test_the_largest_memory_is_not_that_of_the_process_that_started_it() -> None:
    """The trap of getrusage: a child's ru_maxrss begins with its parent's."""
    big = torch.ones(2**28, dtype=torch.uint8)
    assert resident() > big.nbytes
    assert in_fresh_process("edgetrain.environment.resident", which="VmHWM") < 100 * 2**20
    del big
    assert resident("VmHWM") >= resident()


@linux
def test_a_process_gets_no_more_than_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    limits = []
    (tmp_path / "meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable:    3145728 kB\n")
    (tmp_path / "status").write_text("VmData:\t  1048576 kB\nVmRSS:\t 5 kB\n")
    monkeypatch.setattr(environment, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(environment, "STATUS", tmp_path / "status")
    monkeypatch.setattr(fresh_process.resource, "setrlimit", lambda which, limit: limits.append(limit[0]))
    fresh_process._limit_memory()
    assert limits == [(1 + 3 - 1) * 2**30]  # what it has, and all that is free but the spare GiB
    monkeypatch.setattr(environment, "STATUS", tmp_path / "none")
    assert resident() is None
    fresh_process._limit_memory()
    assert len(limits) == 1
