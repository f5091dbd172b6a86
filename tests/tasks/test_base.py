"""The learning rate over the steps, that of a run's own batch, groups of parameters, synchronised batch norms."""

from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from edgetrain.errors import UserError
from edgetrain.tasks.base import Task


def task_with(lr: float, lr_samples: int | None, batch: int, processes: int, accumulated: int) -> Task:
    def optimizer(groups: list) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=lr)

    task = Task(nn.Linear(2, 2), [], optimizer, total_steps=480_000, warmup_steps=1000, lr_samples=lr_samples)
    task._trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=batch), world_size=processes, accumulate_grad_batches=accumulated
    )
    return task


@pytest.mark.parametrize(
    ("lr_samples", "batch", "processes", "accumulated", "peak"),
    [
        (1024, 32, 32, 1, 2e-3),  # MobileLLM's paper: 32 GPUs of 32 sequences
        (1024, 32, 8, 1, 5e-4),  # its repository's script: 8 of them
        (1024, 32, 8, 4, 2e-3),
        (1024, 8, 1, 1, 1.5625e-5),
        (256, 32, 8, 1, 2e-3),
        (None, 32, 8, 1, 2e-3),
    ],
)
def test_mobilellms_learning_rate_scales_with_the_samples_of_a_step(
    lr_samples: int | None, batch: int, processes: int, accumulated: int, peak: float
) -> None:
    """And the schedule with it: a thousandth of the peak at first, the peak at 999, a tenth at the end."""
    configured = task_with(2e-3, lr_samples, batch, processes, accumulated).configure_optimizers()
    scheduler = configured["lr_scheduler"]["scheduler"]
    for group, function in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        assert group["initial_lr"] * function(999) == pytest.approx(peak)
        assert group["initial_lr"] * function(480_000) == pytest.approx(0.1 * peak)
        assert group["lr"] == pytest.approx(peak / 1000)


def test_without_a_trainer_the_rate_stands() -> None:
    task = task_with(2e-3, 1024, 32, 8, 1)
    task._trainer = None
    assert task.configure_optimizers()["optimizer"].param_groups[0]["initial_lr"] == 2e-3


def test_no_samples_a_step_are_refused() -> None:
    with pytest.raises(UserError, match="task.lr_samples=0 must be at least 1, or null"):
        task_with(2e-3, 0, 32, 8, 1)


def test_no_gradient_is_held_through_a_forward_pass_unless_they_accumulate() -> None:
    """Two batches a step: the first begins without gradients, the second with those of the first."""
    held = []

    class Squares(Task):
        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            held.append(self.model.weight.grad is not None)
            return self.model(batch).square().mean()

    task = Squares(nn.Linear(2, 2), [], lambda groups: torch.optim.SGD(groups, lr=0.1), total_steps=3)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=3, accumulate_grad_batches=2, enable_model_summary=False, **quiet)
    trainer.fit(task, torch.utils.data.DataLoader(torch.ones(12, 2), batch_size=2))
    assert held == [False, True] * 3


# The schedule of mmseg


def poly_as_mmcv(step: int, total: int, warmup: int, ratio: float, power: float) -> float:
    """The factor on the base rate that PolyLrUpdaterHook(by_epoch=False, min_lr=0, warmup="linear") sets.

    get_lr first, then get_warmup_lr on what it gave, in the hook's own steps.
    """
    regular = (1 - step / total) ** power
    if step >= warmup:
        return regular
    k = (1 - step / warmup) * (1 - ratio)
    return regular * (1 - k)


@pytest.mark.parametrize(("total", "warmup", "ratio", "power"), [(160_000, 1500, 1e-6, 1.0), (300, 40, 1e-3, 0.9)])
def test_poly_is_mmsegs_at_every_step(total: int, warmup: int, ratio: float, power: float) -> None:
    settings = {"schedule": "poly", "min_lr_ratio": 0.0, "power": power, "warmup_ratio": ratio}
    task = Task(nn.Linear(2, 2), [], None, total_steps=total, warmup_steps=warmup, **settings)
    for step in {*range(0, total, max(1, total // 500)), *range(warmup - 3, warmup + 3), total - 1, total}:
        assert task.learning_rate_scale(step) == pytest.approx(
            poly_as_mmcv(step, total, warmup, ratio, power), rel=1e-12, abs=1e-18
        )
    assert task.learning_rate_scale(0) == pytest.approx(ratio, rel=1e-9)
    assert task.learning_rate_scale(total + 5) == 0


def test_poly_by_hand() -> None:
    """Half way through 100 steps at power 2 a quarter is left; at step 5 of a warm-up of 10, half of 0.95 squared."""
    task = Task(nn.Linear(2, 2), [], None, 100, 10, min_lr_ratio=0.0, schedule="poly", power=2.0, warmup_ratio=0.0)
    assert task.learning_rate_scale(50) == pytest.approx(0.25)
    assert task.learning_rate_scale(5) == pytest.approx(0.5 * 0.95**2)
    floor = Task(nn.Linear(2, 2), [], None, 100, min_lr_ratio=0.2, schedule="poly")
    assert floor.learning_rate_scale(75) == pytest.approx(0.2 + 0.8 * 0.25)


def test_another_schedule_warms_up_from_the_ratio_too() -> None:
    """timm's warm-up of 20 epochs from 1e-6 to 1e-3, which HRViT was trained with."""
    task = Task(nn.Linear(2, 2), [], None, total_steps=300, warmup_steps=20, warmup_ratio=1e-3)
    rates = [1e-3 * task.learning_rate_scale(step) for step in range(20)]
    assert rates == pytest.approx([1e-6 + step * (1e-3 - 1e-6) / 20 for step in range(20)])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"power": 0.0}, "task.power=0.0 must be above 0"),
        ({"power": float("nan")}, "task.power=nan must be above 0"),
        ({"warmup_ratio": 1.5}, "task.warmup_ratio=1.5 is outside 0 to 1"),
    ],
)
def test_schedules_out_of_range_are_a_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Task(nn.Linear(2, 2), [], None, total_steps=10, **settings)


# Groups of parameters


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "bn": nn.BatchNorm2d(4)})
        self.head = nn.ModuleDict({"conv": nn.Conv2d(4, 2, 1), "slow_conv": nn.Conv2d(2, 2, 1)})


def grouped(**settings: object) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter, by name."""
    model = TwoParts()
    model.backbone["bn"].bias.requires_grad_(False)
    optimizer = Task(
        model, [], lambda groups: torch.optim.AdamW(groups, lr=6e-5, weight_decay=0.01), 10, **settings
    ).configure_optimizers()["optimizer"]
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [
        (names[parameter], (group["initial_lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found)) == sum(parameter.requires_grad for parameter in model.parameters())
    return dict(found)


def test_by_default_matrices_decay_and_all_have_one_rate() -> None:
    found = grouped()
    assert {name for name, (_, decay) in found.items() if decay == 0.01} == {
        f"{name}.weight" for name in ("backbone.conv", "head.conv", "head.slow_conv")
    }
    assert {rate for rate, _ in found.values()} == {6e-5}
    assert {decay for _, decay in found.values()} == {0.01, 0.0}


def test_groups_by_name_are_mmcvs_custom_keys() -> None:
    """paramwise_cfg of HRViT's configurations: norm without decay, head at ten times the rate; biases decay there."""

    def custom_keys(name: str, keys: dict[str, dict[str, float]]) -> tuple[float, float]:
        for key in sorted(sorted(keys), key=len, reverse=True):
            if key in name:
                return 6e-5 * keys[key].get("lr_mult", 1.0), 0.01 * keys[key].get("decay_mult", 1.0)
        return 6e-5, 0.01

    keys = {"norm": {"decay_mult": 0.0}, "head": {"lr_mult": 10.0}, "head.slow": {"lr_mult": 0.5}}
    found = grouped(no_decay=["norm"], lr_multipliers={"head": 10.0, "head.slow": 0.5})
    assert found == {name: pytest.approx(custom_keys(name, keys)) for name in found}
    assert found["backbone.bn.weight"] == (6e-5, 0.01)  # its name does not say norm
    assert found["head.slow_conv.weight"][0] == pytest.approx(3e-5)


def test_a_name_may_have_both_a_rate_and_no_decay() -> None:
    found = grouped(no_decay=["conv"], lr_multipliers={"head": 10})
    assert found["head.conv.bias"] == (pytest.approx(6e-4), 0.0)
    assert found["backbone.norm.weight"] == (6e-5, 0.01)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"no_decay": ["nrom"]},
            "task.no_decay names 'nrom', which is in the name of no parameter.*near names are norm",
        ),
        ({"lr_multipliers": {"haed": 2.0}}, "task.lr_multipliers names 'haed'.*near names are head"),
        ({"lr_multipliers": {"zzzz": 2.0}}, "names are backbone.conv.weight, backbone.conv.bias.* and 5 more"),
        ({"no_decay": [""]}, "task.no_decay names ''"),
        ({"lr_multipliers": {"head": -1.0}}, "task.lr_multipliers.head=-1.0 must be a finite number"),
    ],
)
def test_names_that_no_parameter_has_are_a_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        grouped(**settings)


# Batch norms of several processes


def test_lightning_synchronises_batch_norms_of_the_model_and_puts_them_back() -> None:
    """What trainer.sync_batchnorm=true does under DDP. Torch computes synchronised norms on GPUs only, so the sum over
    processes itself cannot be run here; the conversion can.
    """
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(strategy=DDPStrategy(), sync_batchnorm=True, enable_model_summary=False, **quiet)
    plugin = trainer.strategy._layer_sync
    assert isinstance(plugin, TorchSyncBatchNorm)
    task = Task(TwoParts(), [], None, total_steps=1)
    model, before = task.model, {name: value.clone() for name, value in task.state_dict().items()}
    images = torch.randn(2, 4, 5, 5)
    norm = model.backbone["norm"]
    expected = norm.eval()(images)
    plugin.apply(task)
    assert task.model is model
    assert isinstance(model.backbone["norm"], nn.SyncBatchNorm)
    assert torch.equal(model.backbone["norm"].eval()(images), expected)
    plugin.revert(task)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in task.modules())
    assert task.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
