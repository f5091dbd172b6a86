"""Which process is the first under every launcher."""

import pytest

from edgetrain import processes
from edgetrain.processes import alone, has_to_speak, is_first, under_torchrun


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "8"}, True),  # torchrun
        ({"RANK": "8", "LOCAL_RANK": "0", "WORLD_SIZE": "16"}, False),  # the first of torchrun's second machine
        ({"RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun under srun: RANK decides
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),  # Lightning's launcher
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"NODE_RANK": "1"}, False),  # started by hand on a second machine
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # Lightning's launcher in a batch script
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, False),  # srun
    ],
)
def test_the_first_process_of_a_run(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first() is first
    assert under_torchrun() is ("RANK" in environment and "WORLD_SIZE" in environment)


def test_a_process_that_starts_another_run_is_first_there(monkeypatch: pytest.MonkeyPatch) -> None:
    inherited = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "SLURM_PROCID": "3", "SLURM_JOB_ID": "7"}
    assert alone(inherited) == {"SLURM_JOB_ID": "7"}


def test_another_process_speaks_when_nobody_ended_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = []
    monkeypatch.setattr(processes.time, "sleep", slept.append)
    monkeypatch.setattr(processes.time, "monotonic", iter(range(100)).__next__)
    assert has_to_speak()
    assert not slept
    monkeypatch.setenv("RANK", "1")
    assert has_to_speak(patience=3)
    assert slept
    parents = iter([10, 10, 1])
    monkeypatch.setattr(processes.os, "getppid", parents.__next__)
    assert not has_to_speak(patience=50)  # what started it has ended, and spoken
