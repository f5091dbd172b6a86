"""scripts/slurm.py: what submitit is asked for, and that it is asked for nothing when something is wrong."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from conftest import ROOT, SMALL

from edgetrain.errors import UserError

RUN = ["recipe=layerskip_llama", *SMALL, "measure=[]", "export=[]"]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slurm_script", ROOT / "scripts" / "slurm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What a stand-in for submitit was told."""
    said = {}

    class AutoExecutor:
        def __init__(self, folder: Path, cluster: str) -> None:
            said["folder"] = folder

        def update_parameters(self, **parameters: object) -> None:
            said["parameters"] = parameters

        def submit(self, job: object) -> SimpleNamespace:
            said["job"] = job
            return SimpleNamespace(job_id="17")

    helpers = SimpleNamespace(DelayedSubmission=lambda job: job)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=AutoExecutor, helpers=helpers))
    monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)
    return said


def test_nodes_and_tasks_are_the_trainers(script: ModuleType, asked: dict, workplace: Path) -> None:
    more = ["trainer.num_nodes=4", "trainer.devices=8", "slurm.partition=gpu", "slurm.time=60"]
    assert script.submit([*RUN, *more, "out=run"]) == "17"
    assert asked["parameters"] == {
        "name": "layerskip_llama",
        "nodes": 4,
        "tasks_per_node": 8,
        "gpus_per_node": 8,
        "slurm_partition": "gpu",
        "slurm_time": "60",
    }
    assert asked["job"].arguments == ["run", *RUN, "trainer.num_nodes=4", "trainer.devices=8", "out=run"]
    assert asked["folder"] == Path("run.slurm")


def test_the_job_runs_and_is_queued_again_to_resume(script: ModuleType, asked: dict, workplace: Path) -> None:
    script.submit([*RUN, "trainer.accelerator=cpu", "trainer.max_steps=2", "out=run"])
    assert "gpus_per_node" not in asked["parameters"]
    job = asked["job"]
    assert job.checkpoint() is job  # nothing to resume yet
    job()
    again = job.checkpoint()
    assert again.arguments == ["resume=run"]
    again()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "out=DIR"),
        (["out=run", "trainer.max_step=3"], "did you mean 'max_steps'"),
        (["out=run", "trainer.devices=auto"], "say how many GPUs"),
        (["out=run", "seeds=[0,1]"], "a study starts its own processes"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_queued(
    script: ModuleType, asked: dict, workplace: Path, arguments: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        script.submit([*RUN, *arguments])
    assert not asked
    assert not (workplace / "run").exists()


def test_without_submitit_it_says_how_to_install_it(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r'pip install -e ".\[slurm\]"'):
        script.submit([*RUN, "out=run"])
