"""Both sides of the bench train the same thing; how fast is for the bench to say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from edgetrain.bench.paused import Paused
from edgetrain.bench.train_language import OUR_MODEL, OURS, PEER, initial_model, training_config, trainings
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.models.huggingface import save_llama

Call = Callable[..., tuple[int, str, str]]
STEPS = 4
TINY = [text for text in SMALL if not text.startswith(("trainer.", "task."))]


def test_all_contenders_have_the_same_losses_step_by_step(workplace: Path) -> None:
    """Same weights, windows, order, AdamW, clipping and learning rates; in float32 the losses agree to rounding."""
    precise = ["trainer.precision=32-true", "optimizer.lr=0.05", "trainer.gradient_clip_val=0.5", "task.warmup_steps=2"]
    config = training_config("layerskip_llama", [*TINY, *precise], STEPS)
    save_llama(initial_model(config), workplace / "weights")
    config = replace(config, init_from=str(workplace / "weights"))
    losses: dict[str, list[torch.Tensor]] = {}
    works = trainings(config, workplace / "weights", RunFolder(workplace / "bench"), losses)
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
    names = [row["contender"] for row in folder.read_table("train_language")]
    assert names == [OURS, f"{OURS}, layerskip", PEER, OUR_MODEL]
    metrics = folder.read_json("metrics.json")
    assert all(metrics[f"tokens_per_s/{name}"] > 0 for name in names)
    assert metrics["speedup_over_transformers"].startswith("not quotable")
    assert (workplace / "bench" / "figures" / "train_language.png").is_file()


def test_what_it_cannot_compare_is_one_sentence(workplace: Path) -> None:
    with pytest.raises(UserError, match="needs model=llama"):
        training_config("layerskip_llama", ["model=transformers", "model.name=gpt2"], 1)
    with pytest.raises(UserError, match="knows bf16-mixed and 32-true"):
        training_config("layerskip_llama", ["trainer.precision=bf16-true"], 1)
