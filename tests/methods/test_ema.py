"""A moving average of the weights: timm's and torch's formula, what is judged and shipped, resuming to the bit."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from image_sets import write_cifar10
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgetrain.build import Trained, build_methods, load_trained
from edgetrain.checkpoint import read_checkpoint, read_weights
from edgetrain.cli import main
from edgetrain.config import Config
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.jobs.callbacks import JudgedWeights, RunState
from edgetrain.methods.ema import EMA
from edgetrain.tasks.classify import Classify


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))


def trained_steps(model: nn.Module, steps: int) -> Any:
    """Plain training on noise; yields the number of steps done."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, steps + 1):
        images = torch.randn(6, 3, 8, 8, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(6) % 3).backward()
        optimizer.step()
        yield step


@pytest.mark.parametrize(("decay", "warm_up"), [(0.9, True), (0.5, True), (0.9, False)])
def test_the_average_is_timms_at_every_step(decay: float, warm_up: bool) -> None:
    model, ema = network(), EMA(decay, warm_up)
    reference = ModelEmaV3(model, decay=decay, use_warmup=warm_up)
    for step in trained_steps(model, 12):
        ema.after_step(model, step)
        reference.update(model, step=step)
        theirs = reference.module.state_dict()
        assert ema.average.keys() == theirs.keys()
        for name, value in ema.average.items():
            assert torch.allclose(value, theirs[name].to(value.dtype), rtol=1e-5, atol=1e-7), (step, name)
    assert ema.average["1.num_batches_tracked"] == 12  # counted, not averaged
    assert not torch.allclose(ema.average["1.running_mean"], model[1].running_mean)
    ema.finish(model)
    assert torch.equal(model[0].weight, ema.average["0.weight"])
    assert torch.equal(model[1].running_var, ema.average["1.running_var"])


def test_without_a_warm_up_weights_are_those_of_torchs_averaged_model() -> None:
    model, ema = network(), EMA(0.8, warm_up=False)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for step in trained_steps(model, 6):
        ema.after_step(model, step)
        reference.update_parameters(model)
    for name, value in reference.module.named_parameters():
        assert torch.allclose(ema.average[name], value, rtol=1e-5, atol=1e-7)


def test_the_decay_by_hand() -> None:
    """8 steps: 1 - 8^(-2/3) is 3/4; the first step copies."""
    assert [EMA(0.9).decay_at(step) for step in (1, 8, 10**6)] == pytest.approx([0, 0.75, 0.9])
    assert EMA(0.9, warm_up=False).decay_at(1) == 0.9


def test_an_average_from_the_first_weights_by_hand() -> None:
    """Begun at 1, then weights 3 and 5 at decay 1/2: 2, 3.5. Telling a step again changes nothing."""
    model, ema = nn.Linear(1, 1, bias=False), EMA(0.5, warm_up=False)
    for step, weight in ((0, 1.0), (1, 3.0), (1, 100.0), (2, 5.0)):
        nn.init.constant_(model.weight, weight)
        ema.after_step(model, step)
    assert ema.average["weight"].item() == 3.5


def test_weights_of_16_bits_are_averaged_in_32() -> None:
    model, ema = nn.Linear(2, 2).bfloat16(), EMA(0.999, warm_up=False)
    nn.init.constant_(model.weight, 1.0)
    ema.after_step(model, 0)
    nn.init.constant_(model.weight, 2.0)
    ema.after_step(model, 1)
    assert ema.average["weight"][0, 0].item() == pytest.approx(1.001)
    assert ema.finish(model).weight.dtype == torch.bfloat16


def test_frozen_weights_and_ranges_of_quantisation_are_not_averaged() -> None:
    model, ema = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), EMA(0.5, warm_up=False)
    model[0].requires_grad_(False)
    model[1].register_buffer("input_range", torch.tensor([torch.inf, -torch.inf]))
    model[1].register_buffer("scratch", torch.zeros(1), persistent=False)
    ema.after_step(model, 0)
    model[1].input_range.copy_(torch.tensor([-1.0, 2.0]))
    ema.after_step(model, 1)
    assert ema.average.keys() == {"1.weight", "1.bias", "1.input_range"}
    assert ema.average["1.input_range"].tolist() == [-1.0, 2.0]


def test_the_weights_that_train_are_put_back_after_judging() -> None:
    model, ema = network(), EMA(0.9)
    for step in trained_steps(model, 3):
        ema.after_step(model, step)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode(), pytest.raises(KeyboardInterrupt), ema.judged_weights(model):
        assert torch.equal(model[0].weight, ema.average["0.weight"])
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    next(trained_steps(model, 1))  # and training goes on with them
    with EMA().judged_weights(model):  # nothing averaged yet
        pass


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_range_is_a_sentence(decay: float) -> None:
    with pytest.raises(UserError, match=f"method.ema.decay={decay} is outside 0 to 1"):
        EMA(decay)


def test_it_stands_before_methods_that_change_the_model() -> None:
    nodes = {
        "lora": {"_target_": "edgetrain.methods.lora.LoRA", "rank": 2, "alpha": 4, "targets": ["q_proj"]},
        "ema": {"_target_": "edgetrain.methods.ema.EMA"},
    }
    with pytest.raises(UserError, match=r"method.ema keeps weights by their names, so it stands first: method=\[ema,"):
        build_methods(Config(recipe="x", method=nodes))
    assert list(build_methods(Config(recipe="x", method=dict(reversed(nodes.items()))))) == ["ema", "lora"]


def test_validation_sees_the_average_and_checkpoints_the_weights_that_train(tmp_path: Path) -> None:
    """Also between two validation batches, where an interrupted run is saved."""
    seen, saved = [], []

    class Watching(Classify):
        def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
            seen.append(self.model[0].weight.clone())

    class Saving(lightning.Callback):
        def on_validation_batch_end(self, trainer: lightning.Trainer, task: Any, *_: Any) -> None:
            saved.append(task.state_dict()["model.0.weight"].clone())

    model, ema = network(), EMA(0.9, warm_up=False)
    task = Watching(model, [ema], lambda groups: torch.optim.SGD(groups, lr=0.1), total_steps=4)
    state = RunState(Trained(model, task, None, Config(recipe="x", method={"ema": {}}), {}))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(
        max_steps=4, val_check_interval=4, num_sanity_val_steps=0, enable_model_summary=False,
        callbacks=[JudgedWeights(), state, Saving()], **quiet,
    )  # fmt: skip
    images = torch.utils.data.TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3)
    loader = torch.utils.data.DataLoader(images, batch_size=2)
    trainer.fit(task, loader, loader)
    assert len(seen) == len(saved) == 4
    assert all(torch.equal(weight, ema.average["0.weight"]) for weight in seen)
    assert all(torch.equal(weight, model[0].weight) for weight in saved)
    assert not torch.equal(seen[0], saved[0])
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    kept = read_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(kept["state_dict"]["model.0.weight"], model[0].weight)
    weights = read_weights(str(tmp_path / "x.ckpt"))  # what init_from takes
    assert torch.equal(weights["0.weight"], ema.average["0.weight"])
    assert weights["1.num_batches_tracked"].dtype == torch.int64


def test_a_resumed_run_ships_the_same_average_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGETRAIN_DATA", str(tmp_path))
    write_cifar10(tmp_path / "cifar10")
    small = [
        "recipe=cmsis_cifar10", "method=[ema]", "method.ema.decay=0.8", "measure=[]", "hardware=[]", "export=[]",
        "logger=[]", "data.limit=60", "data.batch_size=10", "trainer.val_check_interval=4", "task.mixup=0.8",
        "task.cutmix=1.0", "task.label_smoothing=0.1", "trainer.precision=32-true", "job.checkpoint_steps=3",
    ]  # fmt: skip
    assert main(["run", *small, "trainer.max_steps=9", "task.total_steps=9", "out=whole"]) == 0
    assert main(["run", *small, "trainer.max_steps=5", "task.total_steps=9", "out=parts"]) == 0
    assert main(["run", "resume=parts", "trainer.max_steps=9"]) == 0
    whole, parts = (RunFolder.open(tmp_path / name) for name in ("whole", "parts"))
    kept = [read_checkpoint(folder.checkpoints / "last.ckpt")["edgetrain"] for folder in (whole, parts)]
    states = [each["methods"]["ema"] for each in kept]
    assert states[0]["step"] == states[1]["step"] == 9
    assert all(torch.equal(value, states[1]["averaged"][name]) for name, value in states[0]["averaged"].items())
    metrics = [folder.read_json("metrics.json") for folder in (whole, parts)]
    assert metrics[0]["test/loss"] == metrics[1]["test/loss"]
    config = Config(**yaml.safe_load((whole.path / "config.yaml").read_text()))
    loaded = load_trained(whole, config)
    assert torch.equal(loaded.model.classifier.weight, states[0]["averaged"]["classifier.weight"])
    found = loaded.task.evaluate(loaded.model, loaded.data.test_dataloader())
    assert found["loss"] == pytest.approx(metrics[0]["test/loss"], rel=1e-6)
