"""Both sides of the bench train the same thing; how fast is for the bench to say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from edgetrain.bench.paused import Paused
from edgetrain.bench.train_language import initial_model, training_config
from edgetrain.bench.trainers import OUR_MODEL, OURS, PEER, trainings
from edgetrain.bench.training_memory import ABOVE, batch_of
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.models.huggingface import save_llama

Call = Callable[..., tuple[int, str, str]]
STEPS = 4
# 300 tokens of width 32; four layers of attention (32 x 32, 16 x 32 twice, 32 x 32), SwiGLU of 64, and norms.
PARAMETERS = 300 * 32 + 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
TINY = [text for text in SMALL if not text.startswith(("trainer.", "task."))]


def test_all_contenders_have_the_same_losses_step_by_step(workplace: Path) -> None:
    """Same weights, windows, order, AdamW, clipping and learning rates; in float32 the losses agree to rounding."""
    precise = ["trainer.precision=32-true", "optimizer.lr=0.05", "trainer.gradient_clip_val=0.5", "task.warmup_steps=2"]
    config = training_config("layerskip_llama", [*TINY, *precise], STEPS)
    save_llama(initial_model(config), workplace / "weights")
    config = replace(config, init_from=str(workplace / "weights"))
    losses: dict[str, list[torch.Tensor]] = {}
    works = trainings(config, workplace / "weights", workplace / "bench", losses)
    for work in works.values():
        with Paused(work, STEPS, 1) as paused:
            paused()
    found = {name: torch.stack(list(each)) for name, each in losses.items()}
    assert found[PEER].shape == (STEPS,)
    ours = found[OURS]
    assert ours[0] - ours[-1] > 0.5  # they did learn, so that equal losses mean equal optimisers
    torch.testing.assert_close(found[OUR_MODEL], ours, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[PEER], ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[f"{OURS}, layerskip"], ours, rtol=1e-3)


def test_the_verb_prints_and_keeps_every_contender(edgetrain: Call, workplace: Path) -> None:
    code, out, err = edgetrain("bench", "train_language", "steps=1", "repeats=1", *TINY, "out=bench")
    assert code == 0, err
    assert "not quotable: 1 repeats are fewer than 5" in out
    folder = RunFolder.open(workplace / "bench")
    names = [row["contender"] for row in folder.read_table("train_language") if row["contender"] != "litgpt"]
    assert names == [OURS, f"{OURS}, layerskip", PEER, OUR_MODEL]
    memory = {row["contender"]: row for row in folder.read_table("training_memory")}
    assert set(memory) == {OURS, f"{OURS}, layerskip", PEER, OUR_MODEL, "litgpt"}
    assert memory["litgpt"][ABOVE] == "not run"
    for name in (OURS, PEER):
        row = memory[name]
        above = float(row["peak, MiB"]) - float(row["idle, MiB"]) - float(row["held, MiB"])
        assert float(row[ABOVE]) == pytest.approx(above)
        assert float(row["held, MiB"]) == pytest.approx(16 * PARAMETERS / 2**20)
    metrics = folder.read_json("metrics.json")
    assert all(metrics[f"tokens_per_s/{name}"] > 0 for name in names)
    assert metrics["speedup_over_transformers"].startswith("not quotable")
    assert (workplace / "bench" / "figures" / "train_language.png").is_file()


def test_what_it_cannot_compare_is_one_sentence(workplace: Path) -> None:
    with pytest.raises(UserError, match="needs model=llama"):
        training_config("layerskip_llama", ["model=transformers", "model.name=gpt2"], 1)
    with pytest.raises(UserError, match="knows bf16-mixed and 32-true"):
        training_config("layerskip_llama", ["trainer.precision=bf16-true"], 1)


def test_a_bare_model_trains_on_random_tokens() -> None:
    config = training_config("layerskip_llama", ["model=mobilellm_tiny", "data.context=64"], 1)
    assert config.data["_target_"].endswith("RandomTokens")
    assert (config.data["vocab_size"], config.data["context"], config.method) == (32_000, 64, {})


def test_the_batch_of_the_memory() -> None:
    config = training_config("layerskip_llama", ["model=mobilellm_tiny"], 1)
    assert batch_of("8x2048", config) == (8, 2048)
    assert batch_of(None, config) == (1, 2048)
    for wrong in ("8*2048", "0x2048", "8x", "2048", "8x2048x2"):
        with pytest.raises(UserError, match="sequences and the tokens of each"):
            batch_of(wrong, config)


def test_a_folder_without_litgpt_is_one_sentence(edgetrain: Call, workplace: Path) -> None:
    code, _, err = edgetrain("bench", "train_language", *TINY, "litgpt=texts", "out=bench")
    assert code == 2
    assert "there is no litgpt/model.py in it" in err
