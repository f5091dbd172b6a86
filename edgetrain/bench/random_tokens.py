"""Windows of random tokens: training data of any vocabulary, for benches of models that come without data."""

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from edgetrain.data.order import ResumableLoader

WINDOWS = 2**16  # in an epoch


class RandomTokens(LightningDataModule):
    """Uniform draws. batch: int64 [batch_size, context + 1]; window i is a function of (seed, i)."""

    def __init__(self, context: int, batch_size: int, vocab_size: int, seed: int = 0, workers: int = 0) -> None:
        super().__init__()
        self.windows = Draws(context, vocab_size, seed)
        self.batch_size, self.seed, self.workers = batch_size, seed, workers

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(self.windows, self.seed, self.batch_size, self.workers)


class Draws(Dataset):
    def __init__(self, context: int, vocab_size: int, seed: int) -> None:
        self.context, self.vocab_size, self.seed = context, vocab_size, seed

    def __len__(self) -> int:
        return WINDOWS

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * WINDOWS + index)
        return torch.randint(self.vocab_size, (self.context + 1,), generator=generator)
