"""A tiny byte-level Llama, trained with LayerSkip for seconds; its early exits are neither useless nor perfect."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from edgetrain.methods.layerskip import LayerSkip
from edgetrain.models.llama import Llama
from edgetrain.tasks.language import Language

STEPS, BATCH, WINDOW, CONTEXT = 160, 16, 64, 256
ROOT = Path(__file__).resolve().parents[2]


def read_text() -> bytes:
    """Shakespeare where it is, else a text with some structure and some chance in it."""
    for folder in (os.environ.get("EDGETRAIN_DATA"), ROOT.parent / "shared" / "data"):
        path = Path(folder or ".") / "tinyshakespeare" / "train.txt"
        if path.is_file():
            return path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    words = re.findall(r"\w+", "the of a king speaks to his love and night falls on every house; we meet again my lord")
    picks = torch.randint(len(words), (40_000,), generator=generator).tolist()
    return " ".join(words[pick] + (",\n" if pick == 3 else "") for pick in picks).encode()


@contextmanager
def one_thread() -> Iterator[None]:
    """For matrices this small, a second thread costs more than it brings, and far more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def every_test_on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")


class Text:
    """The part of a data module that measures read, over a stream of bytes."""

    tokenizer = Bytes()
    eos_id = 10

    def __init__(self, stream: Tensor) -> None:
        self.stream = stream

    def test_dataloader(self) -> list[Tensor]:
        windows = self.stream[: 6 * 4 * (WINDOW + 1)].view(6, 4, WINDOW + 1)
        return list(windows)

    def prompts(self, count: int, length: int, continuation: int = 128) -> tuple[Tensor, Tensor]:
        size = length + continuation
        starts = [index * (len(self.stream) - size) // count for index in range(count)]
        windows = torch.stack([self.stream[start : start + size] for start in starts])
        return windows[:, :length], windows[:, length:]


def train(stream: Tensor) -> Llama:
    """A few seconds of the method, in a plain loop."""
    torch.manual_seed(0)
    model = Llama(vocab_size=256, dim=64, layers=4, heads=4, kv_heads=2, hidden_dim=128, context=CONTEXT)
    method = LayerSkip(p_max=0.1, e_scale=0.5, total_steps=STEPS, rotation=2)
    method.apply(model, method.plan(model, None))
    task = Language(model, [method], None, total_steps=STEPS)
    optimizer = torch.optim.AdamW(model.parameters(), 6e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        starts = torch.randint(len(stream) - WINDOW - 1, (BATCH,), generator=generator).tolist()
        batch = torch.stack([stream[start : start + WINDOW + 1] for start in starts])
        loss = task.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step + 1)
    return model.eval()


@pytest.fixture(scope="session")
def trained() -> SimpleNamespace:
    """What measures are given: model, task and data. Nobody changes its weights."""
    stream = torch.frombuffer(bytearray(read_text()), dtype=torch.uint8).long()
    cut = len(stream) * 9 // 10
    with one_thread():
        model = train(stream[:cut])
    return SimpleNamespace(
        model=model, task=Language(model, [], None, total_steps=STEPS), data=Text(stream[cut:]), config=None
    )


@pytest.fixture(scope="session")
def model(trained: SimpleNamespace) -> Llama:
    return trained.model


@pytest.fixture(scope="session")
def held_out(trained: SimpleNamespace) -> Tensor:
    """Held-out bytes as int64 [n]."""
    return trained.data.stream
