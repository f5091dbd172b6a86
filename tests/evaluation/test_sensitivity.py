"""A layer rounded alone, against the same network with that layer's numbers rounded by hand."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from quantize_networks import Samples, inputs, mlp, separable
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.evaluation.sensitivity import Sensitivity
from edgetrain.folder import RunFolder
from edgetrain.ops.fake_quantization import fake_quantize_activation, fake_quantize_weight
from edgetrain.tasks.classify import Classify


class Data(Samples):
    def setup(self, stage: str) -> None:
        pass

    def test_dataloader(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.inputs, self.labels)]


def measured(network: nn.Module, data: Data, path: Path, **settings: object) -> tuple[dict[str, float], list[dict]]:
    folder = RunFolder(path)
    task = Classify(network, [], None, total_steps=1)
    metrics = Sensitivity(**settings).measure(SimpleNamespace(model=network, task=task, data=data), folder)
    return metrics, folder.read_table("sensitivity")


@torch.no_grad()
def test_a_row_is_that_layer_alone(tmp_path: Path) -> None:
    network, x = mlp(6, 12, 8, 3), inputs(200, (6,))
    data = Data(x, network(x).argmax(-1))
    _, rows = measured(network, data, tmp_path, bits=[3])
    hidden = network[:2](x)
    reads = {"0": x, "2": hidden, "4": network[:4](x)}
    loss = F.cross_entropy(network(x), data.labels).item()
    for row in rows[:3]:
        name, by_hand = row["layer"], copy.deepcopy(network)
        by_hand[int(name)].weight.copy_(fake_quantize_weight(network[int(name)].weight, 3))
        read = fake_quantize_activation(reads[name], reads[name].min(), reads[name].max())
        logits = by_hand[int(name) :](read)
        assert float(row["loss_change"]) == pytest.approx(F.cross_entropy(logits, data.labels).item() - loss, abs=1e-5)
        assert float(row["change"]) == pytest.approx((logits.argmax(-1) == data.labels).float().mean().item() - 1)
    assert [row["layer"] for row in rows] == ["0", "2", "4", "all layers"]


@torch.no_grad()
def test_the_layer_that_cannot_be_rounded_is_the_worst_one(tmp_path: Path) -> None:
    """Weights of 7 and 1 in one channel lose the 1s in three bits; whole numbers up to 3 lose nothing."""
    network = mlp(8, 8, 4)
    for index, widths in ((0, (8, 8)), (2, (4, 8))):
        network[index].bias.zero_()
        network[index].weight.copy_(torch.randint(-3, 4, widths, generator=torch.Generator().manual_seed(index)))
        network[index].weight[:, 0] = 3
    network[2].weight[:, 0] = 30
    x = torch.randint(0, 256, (200, 8), generator=torch.Generator().manual_seed(1)).float()
    x[0] = 255
    x[1] = 0
    data = Data(x, (network(x)).argmax(-1))
    _, rows = measured(network, data, tmp_path, bits=[3])
    changes = {row["layer"]: abs(float(row["loss_change"])) for row in rows}
    assert changes["0"] == 0
    assert changes["2"] > 1e-3


@torch.no_grad()
def test_the_network_is_as_before_and_fewer_bits_change_more(tmp_path: Path) -> None:
    network, x = separable(), inputs(128)
    before, output = copy.deepcopy(network.state_dict()), network(x)
    metrics, rows = measured(network, Data(x, output.argmax(-1)), tmp_path, bits=[8, 2])
    assert torch.equal(network(x), output)
    assert list(network.state_dict()) == list(before)
    assert abs(metrics["sensitivity/all_8"]) < 0.05 * abs(metrics["sensitivity/all_2"])
    assert metrics["sensitivity/worst_2"] == max(
        float(row["loss_change"]) for row in rows if row["bits"] == "2" and row["layer"] != "all layers"
    )
    assert [row["layer"] for row in rows[:6]] == ["0", "3", "6", "11", "14", "all layers"]


@pytest.mark.parametrize(("size", "counts"), [(3, [3, 2]), (8, [5]), (1, [1] * 5)])
def test_ranges_are_read_from_as_many_samples_as_asked(size: int, counts: list[int]) -> None:
    """Whatever the batch size of a loader of data without `samples`."""
    loaded = SimpleNamespace(train_dataloader=lambda: [(torch.zeros(size, 2), torch.zeros(size))] * 9)
    task = SimpleNamespace(inputs=lambda batch: batch[:1])
    assert [len(batch) for batch in Sensitivity(samples=5).inputs(task, loaded)] == counts


def test_settings_and_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="numbers from 2 to 8"):
        Sensitivity(bits=[8, 1])
    with pytest.raises(UserError, match="batches=0 must be at least 1"):
        Sensitivity(batches=0)
    with pytest.raises(UserError, match="no convolution and no linear layer"):
        Sensitivity().check(nn.Embedding(3, 3))
    Sensitivity().check(mlp(2, 2))
