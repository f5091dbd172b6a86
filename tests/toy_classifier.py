"""A classifier of six numbers that is trained in no time, its data, and a run folder: what exports are tested with."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from edgetrain.build import Trained
from edgetrain.config import Config
from edgetrain.folder import RunFolder
from edgetrain.tasks.classify import Classify

LABELS = ["low", "middle", "high"]


class Net(nn.Module):
    input_shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Data:
    """60 items a split; the label is which third the mean of the input falls into. Two speakers in turn."""

    labels, num_classes = LABELS, 3
    test_items = 60

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.splits = {}
        for name in ("train", "test"):
            x = torch.randn(60, 6, generator=generator)
            self.splits[name] = TensorDataset(x, torch.bucketize(x.mean(1), torch.tensor([-0.2, 0.1])))

    def setup(self, stage: str | None = None) -> None:
        pass

    def prepare_data(self) -> None:
        pass

    def samples(self, split: str) -> TensorDataset:
        return self.splits[split]

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.splits["test"], batch_size=25)

    def facts(self) -> dict[str, Any]:
        return {"chance": 1 / 3, "majority": 0.4}

    def groups(self, split: str) -> dict[str, list[str]]:
        return {"speaker": ["ann", "bob"] * 30}

    def preprocessing(self) -> dict[str, Any]:
        return {"sample_rate": 16000}


def trained_net() -> Trained:
    torch.manual_seed(0)
    net, data = Net(), Data()
    x, y = data.splits["train"].tensors
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()
    node = {"_target_": "edgetrain.tasks.classify.Classify", "total_steps": 1}
    config = Config(recipe="toy", task=node, data={"_target_": "toy_classifier.Data"})
    return Trained(net, Classify(net, [], None, total_steps=1), data, config, {})


def run_folder(path: Path) -> RunFolder:
    return RunFolder.create("toy", str(path / "run"))
