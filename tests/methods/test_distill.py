"""Distillation against its formula with whole logits, and what its teacher may not do."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL

from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.methods.distill import Distill
from edgetrain.methods.layerskip import LayerSkip
from edgetrain.methods.lora import LoRA
from edgetrain.models.huggingface import save_llama
from edgetrain.models.llama import Llama
from edgetrain.ops.targets import IGNORED
from edgetrain.tasks.language import Language

VOCAB = 50


def llama(seed: int, dim: int = 16, vocab: int = VOCAB, context: int = 16) -> Llama:
    torch.manual_seed(seed)
    return Llama(vocab, dim=dim, layers=3, heads=2, kv_heads=1, hidden_dim=32, context=context)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A wider model than the student, as a Hugging Face folder."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    save_llama(llama(1, dim=24), folder)
    return folder


def text() -> torch.Tensor:
    return torch.randint(VOCAB, (4, 11), generator=torch.Generator().manual_seed(0))


def pairs() -> torch.Tensor:
    inputs, targets = text()[:, :-1], text()[:, 1:].clone()
    targets[:, :3] = IGNORED
    targets[2, 5:] = IGNORED
    return torch.stack([inputs, targets], dim=1)


def planned(folder: Path, student: Llama, **settings: float) -> Distill:
    method = Distill(str(folder), **settings)
    method.apply(student, method.plan(student, None))
    return method


def whole_logits(student: Llama, batch: torch.Tensor, weight: float, temperature: float) -> torch.Tensor:
    """The module's formula, written out."""
    inputs, targets = batch.unbind(1) if batch.ndim == 3 else (batch[:, :-1], batch[:, 1:])
    kept = targets.flatten() != IGNORED
    ours = student(inputs).flatten(0, 1)[kept]
    with torch.no_grad():
        p = (llama(1, dim=24)(inputs).flatten(0, 1)[kept] / temperature).softmax(-1)
    soft = -(p * (ours / temperature).log_softmax(-1)).sum() / kept.sum()
    return (1 - weight) * F.cross_entropy(ours, targets.flatten()[kept]) + weight * temperature**2 * soft


@pytest.mark.parametrize("batch", [text(), pairs()], ids=["text", "pairs"])
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 1.0), (0.7, 2.0)])
def test_loss_and_gradients_are_the_formulas(
    teacher: Path, batch: torch.Tensor, weight: float, temperature: float
) -> None:
    student, reference = llama(0), llama(0)
    method = planned(teacher, student, weight=weight, temperature=temperature)
    loss = Language(student, [method], None, total_steps=1).training_step(batch, 0)
    expected = whole_logits(reference, batch, weight, temperature)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    save_llama(llama(0), tmp_path)
    student = llama(0)
    method = planned(tmp_path, student, weight=1.0)
    Language(student, [method], None, total_steps=1).training_step(text(), 0).backward()
    assert max(parameter.grad.abs().max() for parameter in student.parameters()) < 1e-6


def test_the_teacher_is_frozen_and_in_no_checkpoint(teacher: Path) -> None:
    student = llama(0)
    method = planned(teacher, student)
    task = Language(student.train(), [method], None, total_steps=1)
    task.train()
    assert not method.teacher.training
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())
    assert set(task.state_dict()) == {f"model.{key}" for key in llama(0).state_dict()}
    theirs = {id(parameter) for parameter in method.teacher.parameters()}
    assert not theirs & {id(parameter) for parameter in task.parameters()}


def test_a_teacher_that_is_loaded_late_gives_the_same_loss_and_moves_no_random_number(teacher: Path) -> None:
    student = llama(0)
    fresh = planned(teacher, student)
    resumed = Distill("recipe:some_other_by_now")
    resumed.apply(student, {"teacher": str(teacher)})
    assert resumed.teacher is None
    torch.manual_seed(3)
    before = torch.get_rng_state()
    late = Language(student, [resumed], None, total_steps=1).training_step(text(), 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(late, Language(student, [fresh], None, total_steps=1).training_step(text(), 0))


@pytest.mark.parametrize("first", [True, False])
def test_it_composes_with_layerskip_in_the_order_of_the_list(teacher: Path, first: bool) -> None:
    student, skip = llama(0), LayerSkip(p_max=0.0, e_scale=1.0, total_steps=10, curriculum="none")
    skip.apply(student, skip.plan(student, None))
    distill = planned(teacher, student, weight=0.4)

    def loss(*methods: object) -> torch.Tensor:
        return Language(student, list(methods), None, total_steps=10).training_step(text(), 0)

    label, soft, all_exits = loss(), whole_logits(student, text(), 1.0, 1.0), loss(skip)
    share = skip.weights(0, 3)[-1]
    if first:
        torch.testing.assert_close(loss(distill, skip), all_exits + share * 0.4 * (soft - label))
    else:
        torch.testing.assert_close(loss(skip, distill), 0.6 * all_exits + 0.4 * soft)


def test_it_composes_with_lora(teacher: Path) -> None:
    student, lora = llama(0), LoRA(2, 4, ["q_proj"])
    lora.apply(student, {})
    method = planned(teacher, student)
    Language(student, [lora, method], None, total_steps=1).training_step(text(), 0).backward()
    trained = [name for name, parameter in student.named_parameters() if parameter.grad is not None]
    assert len(trained) == 3 * 2  # A and B of each layer
    assert all("lora_" in name for name in trained)


def test_a_run_teaches_another(edgetrain: Callable, workplace: Path) -> None:
    run = [*SMALL, "data.limit=8", "measure=[]", "export=[]", "logger=[]"]
    assert edgetrain("run", "recipe=layerskip_llama", *run, "out=teacher")[0] == 0
    method = ["method=[layerskip,distill]", "method.layerskip.rotation=3", "method.distill.teacher=teacher"]
    code, _, err = edgetrain("run", "recipe=layerskip_llama", *run, *method, "model.dim=16", "out=student")
    assert code == 0, err
    plans = json.loads((workplace / "student" / "plans.json").read_text())
    assert plans["distill"] == {"teacher": str(workplace / "teacher")}
    keys = torch.load(workplace / "student/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert keys["model.model.embed_tokens.weight"].shape[1] == 16
    assert not any("teacher" in key for key in keys)
    (workplace / "teacher").rename(workplace / "gone")
    assert edgetrain("eval", "run=student")[0] == 0  # only training needs the teacher
    code, _, err = edgetrain("run", "recipe=layerskip_llama", *run, *method, "out=again")
    assert code != 0
    assert "method.distill.teacher" in err
    assert "Traceback" not in err


def refused(folder: Path | str, student: Llama, data: object = None) -> str:
    with pytest.raises(UserError) as raised:
        Distill(str(folder)).plan(student, data)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_other_tokens_are_refused(teacher: Path) -> None:
    assert "has 50 tokens and the student 60" in refused(teacher, llama(0, vocab=60))
    (teacher / "tokenizer.json").write_text(
        '{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}'
    )
    other = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: {"a": 1, "b": 0}))
    assert "other ones; train the student with the teacher's" in refused(teacher, llama(0), other)
    same = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1}))
    Distill(str(teacher)).plan(llama(0), same)


def test_a_shorter_context_another_arrangement_and_no_folder_are_refused(teacher: Path) -> None:
    assert "reads at most 16 tokens and the student 32; set data.context=16" in refused(teacher, llama(0, context=32))
    assert "is a Linear, which is not arranged like Llama" in refused(teacher, torch.nn.Linear(2, 2))
    assert "not a Hugging Face model folder" in refused("nowhere", llama(0))
    assert "no finished run of that recipe" in refused("recipe:nothing", llama(0))


def test_a_teacher_that_names_foreign_code_is_refused(tmp_path: Path, finished_run: RunFolder) -> None:
    config = (finished_run.path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("edgetrain.models.llama.Llama", "os.remove"))
    assert "os.remove is not on the list of known targets" in refused(tmp_path, llama(0))


@pytest.mark.parametrize(("key", "value"), [("weight", 1.5), ("weight", -0.1), ("temperature", 0.0)])
def test_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"method\.distill\.{key}={value}"):
        Distill("teacher", **{key: value})
