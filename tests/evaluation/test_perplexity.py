"""Perplexity against Hugging Face's own loss, window by window, and against counts worked by hand."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from edgetrain.errors import UserError
from edgetrain.evaluation.perplexity import Perplexity, perplexity_rows, window_losses
from edgetrain.folder import RunFolder
from edgetrain.models.llama import Llama


def reference(model: nn.Module, stream: torch.Tensor, context: int) -> tuple[float, int]:
    """MobileLLM's convention: transformers' loss of each whole window, averaged; and the number of tokens predicted."""
    losses = []
    with torch.no_grad():
        for start in range(0, len(stream) - context + 1, context):
            window = stream[None, start : start + context]
            losses.append(model(input_ids=window, labels=window).loss.item())
    return sum(losses) / len(losses), len(losses) * (context - 1)


@pytest.mark.parametrize("context", [2, 7, 32])
def test_it_is_transformers_loss_over_windows_that_do_not_overlap(
    loaded: Any, finished_run: RunFolder, tmp_path: Path, context: int
) -> None:
    peer = AutoModelForCausalLM.from_pretrained(finished_run.path / "export" / "huggingface").eval()
    stream = torch.from_numpy(loaded.data.streams["test"][:].astype("int64"))
    loss, tokens = reference(peer, stream, context)
    metrics = Perplexity(context=context).measure(loaded, RunFolder(tmp_path))
    assert metrics["perplexity/loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["perplexity/token"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert (metrics["perplexity/tokens"], metrics["perplexity/context"]) == (tokens, context)


def test_exits_are_those_of_the_model_cut_after_each(loaded: Any, tmp_path: Path) -> None:
    metrics = Perplexity(context=16, exit_layers="all").measure(loaded, RunFolder(tmp_path))
    stream = torch.from_numpy(loaded.data.streams["test"][:].astype("int64"))
    windows = stream[: len(stream) // 16 * 16].view(-1, 16)
    model = loaded.model
    for layer in range(1, model.layers):
        with torch.no_grad():
            logits = model.head(model.run_layers(model.embed(windows[:, :-1]), 0, layer))
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
        assert metrics[f"perplexity/exit_{layer}"] == pytest.approx(math.exp(loss), rel=1e-4)
    rows = RunFolder(tmp_path).read_table("perplexity")
    assert [row["layer"] for row in rows] == ["1", "2", "3", "4"]
    assert (tmp_path / "figures" / "perplexity.png").is_file()


def test_chosen_exits_only_and_no_figure_without(loaded: Any, tmp_path: Path) -> None:
    every = Perplexity(exit_layers="all").measure(loaded, RunFolder(tmp_path / "every"))
    one = Perplexity(exit_layers=(3,)).measure(loaded, RunFolder(tmp_path / "one"))
    assert one["perplexity/exit_3"] == pytest.approx(every["perplexity/exit_3"])
    assert "perplexity/exit_2" not in one and one["perplexity/context"] == loaded.model.context
    Perplexity().measure(loaded, RunFolder(tmp_path / "none"))
    assert not (tmp_path / "none" / "figures").exists()


def test_bits_per_byte_by_hand() -> None:
    """2 ln 2 nats a token, 4 bytes a token: 2 bits over 4 bytes."""
    (row,) = perplexity_rows({6: 2 * math.log(2)}, bytes_per_token=4.0)
    assert row == {
        "layer": 6,
        "loss": pytest.approx(1.3863, abs=1e-4),
        "perplexity": pytest.approx(4),
        "bits_per_byte": 0.5,
    }


def test_a_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    model = Llama(vocab_size=48, dim=8, layers=2, heads=1, kv_heads=1, hidden_dim=8, context=16)
    nn.init.zeros_(model.lm_head.weight)
    losses = window_losses(model.eval(), torch.arange(32).view(2, 16), [1, 2])
    assert losses == {1: pytest.approx(math.log(48)), 2: pytest.approx(math.log(48))}


def test_a_model_without_exits_is_read_whole(loaded: Any) -> None:
    model = nn.Sequential(nn.Embedding(48, 8), nn.Linear(8, 48))
    windows = torch.arange(32).view(2, 16)
    loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    assert window_losses(model, windows, [0]) == {0: pytest.approx(loss.item(), rel=1e-5)}
    with pytest.raises(UserError, match="no layers that can be left early"):
        Perplexity(context=16, exit_layers=(1,)).check(model)
    with pytest.raises(UserError, match="names no context of its own"):
        Perplexity().check(model)


def test_another_text_set_is_read_with_the_runs_tokenizer(loaded: Any, tmp_path: Path) -> None:
    """As WikiText-2 is: the split's lines joined, from a folder that has a test file alone."""
    texts = tmp_path / "set"
    texts.mkdir()
    lines = [f"def function_{index}(value):" for index in range(60)]
    (texts / "test.jsonl").write_text("".join(f'{{"line": "{line}"}}\n' for line in lines))
    asked = Perplexity(context=8, path=str(texts), column="line", join="\n\n")
    stream, size, _ = asked.text(loaded.data)
    assert loaded.data.tokenizer.decode(stream) == "\n\n".join(lines)
    assert size == len("\n\n".join(lines))
    metrics = asked.measure(loaded, RunFolder(tmp_path / "run"))
    windows = stream[: len(stream) // 8 * 8].view(-1, 8)
    assert metrics["perplexity/loss"] == pytest.approx(window_losses(loaded.model, windows, [4])[4])
    assert metrics["perplexity/bits_per_byte"] == pytest.approx(
        metrics["perplexity/loss"] / math.log(2) * len(stream) / size
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"context": 33}, "measure.perplexity.context=33 is longer than the model's context of 32"),
        ({"exit_layers": (5,)}, r"measure.perplexity.exit_layers=5: the model has layers 1 to 4"),
        ({"path": "nowhere/at/all"}, "measure.perplexity.path=nowhere/at/all does not exist"),
    ],
)
def test_what_does_not_fit_is_a_sentence(loaded: Any, tmp_path: Path, settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Perplexity(**settings).measure(loaded, RunFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_bad_values_and_data_without_text_are_sentences(loaded: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="context=1 must be at least 2"):
        Perplexity(context=1)
    other = SimpleNamespace(model=loaded.model, data=object())
    with pytest.raises(UserError, match="reads running text, and object has none"):
        Perplexity().measure(other, RunFolder(tmp_path))
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"split=test is not in .*, whose splits are train"):
        Perplexity(path=str(tmp_path)).measure(loaded, RunFolder(tmp_path))
    with pytest.raises(UserError, match=r"has \d+ tokens, fewer than one window of context=32"):
        Perplexity(path=str(tmp_path), split="train").measure(loaded, RunFolder(tmp_path))
