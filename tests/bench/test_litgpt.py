"""The contender litgpt: same weights, same losses. $LITGPT names a checkout; without it a small one is written here.

The small one has litgpt's names and layout (queries, keys and values in one matrix, rotary halves) and no code of it.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from edgetrain.bench.litgpt import litgpt_model, load_litgpt
from edgetrain.bench.paused import Paused
from edgetrain.bench.train_language import initial_model, training_config
from edgetrain.bench.trainers import LITGPT, OURS, trainings
from edgetrain.errors import UserError
from edgetrain.models.huggingface import save_llama

STEPS = 4
TINY = [text for text in SMALL if not text.startswith(("trainer.", "task.", "method."))]
MODEL = """
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.groups, self.size = config.n_head, config.n_query_groups, config.n_embd // config.n_head
        self.qkv = nn.Linear(config.n_embd, (self.heads + 2 * self.groups) * self.size, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, angles):
        heads = self.qkv(x).unflatten(-1, (-1, self.size)).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.groups, self.groups], dim=1)
        first, second = (torch.polar(torch.ones_like(angles), angles) * torch.complex(*x.float().chunk(2, -1))
                         for x in (q, k))
        q, k = (torch.cat([x.real, x.imag], -1).to(v.dtype) for x in (first, second))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc_1 = nn.Linear(config.n_embd, config.intermediate_size, bias=config.bias)
        self.fc_2 = nn.Linear(config.n_embd, config.intermediate_size, bias=config.bias)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=config.bias)

    def forward(self, x):
        return self.proj(F.silu(self.fc_1(x)) * self.fc_2(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm_1 = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.attn = Attention(config)
        self.norm_2 = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, angles):
        x = x + self.attn(self.norm_1(x), angles)
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        parts = {"wte": nn.Embedding(config.padded_vocab_size, config.n_embd),
                 "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                 "ln_f": nn.RMSNorm(config.n_embd, config.norm_eps)}
        self.transformer = nn.ModuleDict(parts)

    def forward(self, idx):
        half = self.config.n_embd // self.config.n_head // 2
        angles = torch.arange(idx.shape[1])[:, None] * self.config.rope_base ** (-torch.arange(half) / half)
        x = self.transformer.wte(idx)
        for block in self.transformer.h:
            x = block(x, angles)
        return self.lm_head(self.transformer.ln_f(x))
"""
UTILS = """
import torch


def chunked_cross_entropy(logits, targets):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "litgpt"]:
        monkeypatch.delitem(sys.modules, name)
    if "LITGPT" in os.environ:
        return os.environ["LITGPT"]
    package = tmp_path / "checkout" / "litgpt"
    package.mkdir(parents=True)
    (package / "config.py").write_text("from types import SimpleNamespace as Config\n")
    (package / "model.py").write_text(MODEL)
    (package / "utils.py").write_text(UTILS)
    return str(package.parent)


def start(workplace: Path, *more: str):
    precise = ["trainer.precision=32-true", "optimizer.lr=0.05", "trainer.gradient_clip_val=0.5", "task.warmup_steps=2"]
    config = training_config("layerskip_llama", ["method=[]", *TINY, *precise, *more], STEPS)
    save_llama(initial_model(config), workplace / "weights")
    return replace(config, init_from=str(workplace / "weights"))


def losses_of(config, workplace: Path, checkout: str, name: str) -> torch.Tensor:
    losses: dict[str, list[torch.Tensor]] = {}
    work = trainings(config, workplace / "weights", workplace / "bench", losses, checkout)[name]
    with Paused(work, STEPS, 1) as paused:
        paused()
    return torch.stack(losses[name])


@pytest.mark.parametrize("more", [(), ("job.activation_checkpointing=true", "model.tied=false")])
def test_its_losses_are_ours_step_by_step(workplace: Path, checkout: str, more: tuple[str, ...]) -> None:
    """Weights, rotary positions, head groups, data, learning rates, decay and clipping: all the same."""
    config = start(workplace, *more)
    ours, theirs = (losses_of(config, workplace, checkout, name) for name in (OURS, LITGPT))
    assert ours[0] - ours[-1] > 0.5  # they did learn
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_its_model_has_our_weights_and_ties_as_ours(workplace: Path, checkout: str) -> None:
    config = start(workplace)
    ours, theirs = initial_model(config), litgpt_model(checkout, workplace / "weights")
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(theirs(tokens), ours(tokens))
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert count == sum(parameter.numel() for parameter in ours.parameters())


def test_a_checkout_that_cannot_be_imported_is_one_sentence(checkout: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "litgpt"
    broken.mkdir(parents=True)
    (broken / "model.py").write_text("")
    (broken / "config.py").write_text("import a_package_that_is_not_there")
    with pytest.raises(UserError, match=r"litgpt=.*broken cannot be imported: .*a_package_that_is_not_there"):
        load_litgpt(str(broken.parent))
