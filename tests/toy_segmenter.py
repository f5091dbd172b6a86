"""A three-layer network that segments colours, trained in no time, and its data: what tests of exports ship."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgetrain.build import Trained
from edgetrain.config import Config
from edgetrain.models.three_layer_cnn import ThreeLayerCNN
from edgetrain.tasks.segment import Segment

LABELS, IGNORED, SIZE = ["road", "tree", "sky", "car"], 255, (24, 32)


class Pairs(Dataset):
    """Images of blocks of colour with noise, float32 [3, h, w], and labels int64 [2h, 2w]: twice the resolution."""

    def __init__(self, items: int, size: Sequence[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        small = torch.randint(3, (items, size[0] // 8, size[1] // 8), generator=generator)  # nobody has a car
        labels = small.repeat_interleave(16, 1).repeat_interleave(16, 2)
        colours = F.one_hot(labels[:, ::2, ::2], 3).movedim(3, 1).float()
        self.images = colours + 0.7 * torch.randn(colours.shape, generator=generator)
        self.labels = labels.clone()
        self.labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORED

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


class Data:
    """8 images a split."""

    labels, num_classes, ignore_index = LABELS, len(LABELS), IGNORED

    def __init__(self, size: Sequence[int] = SIZE) -> None:
        self.splits = {name: Pairs(8, size, seed) for seed, name in enumerate(("train", "test"))}

    def setup(self, stage: str | None = None) -> None:
        pass

    def prepare_data(self) -> None:
        pass

    def samples(self, split: str) -> Pairs:
        return self.splits[split]

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.splits["test"], batch_size=3)

    def class_pixels(self, split: str) -> Tensor:
        labels = self.splits[split].labels
        return labels[labels != IGNORED].bincount(minlength=len(LABELS))

    def facts(self) -> dict[str, Any]:
        return {}

    def groups(self, split: str) -> dict[str, list[str]]:
        return {"city": ["Bonn", "Ulm"] * 4}

    def preprocessing(self) -> dict[str, Any]:
        return {"channels": "RGB"}


def trained_segmenter(size: Sequence[int] = SIZE, **settings: Any) -> Trained:
    """Of data of this size; the network's own is always SIZE. settings: of the task."""
    torch.manual_seed(0)
    net, data = ThreeLayerCNN(len(LABELS), width=8, input_shape=(3, *SIZE)), Data(size)
    images, labels = data.splits["train"].images, data.splits["train"].labels[:, ::2, ::2]
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels, ignore_index=IGNORED).backward()
        optimizer.step()
    net.eval()
    node = {"_target_": "edgetrain.tasks.segment.Segment", "total_steps": 1, "ignore_index": IGNORED, **settings}
    config = Config(recipe="toy", task=node, data={"_target_": "toy_segmenter.Data", "size": list(size)})
    return Trained(net, Segment(net, [], None, 1, IGNORED, **settings), data, config, {})
