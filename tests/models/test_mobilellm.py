"""MobileLLM's published shapes, its recipes' arithmetic, and the folders that its configurations describe wrongly."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file, save_file

from edgetrain.build import build
from edgetrain.compose import compose
from edgetrain.models.huggingface import llama_settings, load_llama, save_llama
from edgetrain.models.llama import Llama
from edgetrain.tasks.base import Task

# Table 9 of the paper and the official configurations, instantiated: with shared and with separate embeddings.
PUBLISHED = {
    "125m": (124_635_456, 143_067_456),
    "350m": (345_355_200, 376_075_200),
    "600m": (603_188_352, 640_052_352),
    "1b": (1_005_461_760, 1_046_421_760),
    "1_5b": (1_511_188_800, 1_562_388_800),
}
# Bytes of keys and values a token in float16.
CACHE_BYTES = {"125m": 23_040, "350m": 40_960, "600m": 61_440, "1b": 69_120, "1_5b": 69_120}


def model_of(name: str, *overrides: str, vocab_size: int = 32_000) -> Llama:
    config = compose(["recipe=layerskip_llama", f"model={name}", f"data.vocab_size={vocab_size}", *overrides])
    with torch.device("meta"):
        return build(config.model)


def count(model: Llama) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_published_ones(size: str) -> None:
    tied, untied = PUBLISHED[size]
    assert count(model_of(f"mobilellm_{size}")) == tied
    assert count(model_of(f"mobilellm_{size}", "model.share=immediate")) == tied
    assert count(model_of(f"mobilellm_{size}", "model.tied=false")) == untied


@pytest.mark.parametrize("size", CACHE_BYTES)
def test_the_cache_has_the_published_size_and_twice_that_when_shared(size: str) -> None:
    for share, factor in (("none", 1), ("immediate", 2)):
        cache = model_of(f"mobilellm_{size}", f"model.share={share}").new_cache(length=1)
        assert 2 * (cache.keys.numel() + cache.values.numel()) == factor * CACHE_BYTES[size]


@pytest.mark.parametrize(("name", "size"), [("smollm_135m", 134_515_008), ("smollm_360m", 361_821_120)])
def test_smollm_has_the_parameters_of_its_own_configuration(name: str, size: int) -> None:
    """Oracle: transformers, on the shapes of SmolLM's published config.json."""
    from transformers import LlamaConfig, LlamaForCausalLM

    dim, layers, heads, kv_heads, hidden = (576, 30, 9, 3, 1536) if name == "smollm_135m" else (960, 32, 15, 5, 2560)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=hidden,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config)
    theirs.tie_weights()
    assert count(model_of(name, vocab_size=49_152)) == sum(p.numel() for p in theirs.parameters()) == size


# The trap: configurations that say untied while the embedding is shared


def official_folder(folder: Path, tied: bool, **changes: object) -> Llama:
    """A folder as the official repository has it: tie_word_embeddings is false, whatever the weights are."""
    torch.manual_seed(0)
    model = Llama(61, 24, 2, 4, 2, 40, 32, tied=tied)
    save_llama(model, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False} | changes))
    return model.eval()


def test_a_configuration_that_says_share_embedding_is_tied() -> None:
    config = {
        "vocab_size": 32_000,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "model_type": "mobilellm",
    }
    for more, parameters, layers in (
        ({"share_embedding": True}, PUBLISHED["125m"][0], 30),
        ({"share_embedding": True, "layer_sharing": True}, PUBLISHED["125m"][0], 60),
        ({}, PUBLISHED["125m"][1], 30),
    ):
        with torch.device("meta"):
            model = Llama(**llama_settings(config | more))
        assert (count(model), model.layers) == (parameters, layers)


@pytest.mark.parametrize("copies", [False, True], ids=["one tensor in the file", "the same tensor twice"])
@torch.no_grad()
def test_weights_decide_that_the_embedding_is_shared(copies: bool, tmp_path: Path) -> None:
    model = official_folder(tmp_path, tied=True)
    if copies:
        weights = load_file(tmp_path / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_llama(tmp_path).eval()
    tokens = torch.arange(20)[None]
    assert loaded.tied
    assert count(loaded) == count(model)
    assert torch.equal(loaded(tokens), model(tokens))


@torch.no_grad()
def test_separate_embeddings_stay_separate_whatever_the_configuration_says(tmp_path: Path) -> None:
    model = official_folder(tmp_path, tied=False, share_embedding=True)
    loaded = load_llama(tmp_path).eval()
    tokens = torch.arange(20)[None]
    assert not loaded.tied
    assert torch.equal(loaded(tokens), model(tokens))


def test_two_tensors_do_not_load_into_one(edgetrain: Callable[..., tuple[int, str, str]], workplace: Path) -> None:
    shape = ["model.dim=32", "model.layers=4", "model.heads=2", "model.kv_heads=1", "model.hidden_dim=64"]
    folder = workplace / "untied"
    folder.mkdir()
    torch.manual_seed(0)
    save_llama(Llama(300, 32, 4, 2, 1, 64, 32, tied=False), folder)
    run = ["recipe=layerskip_llama", *SMALL, *shape, "measure=[]", "export=[]", "init_from=untied", "out=run"]
    code, _, err = edgetrain(*run)
    assert code == 2
    assert "lm_head.weight and model.embed_tokens.weight differ" in err
    assert "model.tied=false" in err
    code, _, err = edgetrain(*run[:-1], "out=other", "model.tied=false")
    assert code == 0, err


def test_a_folder_of_another_architecture_is_named(
    edgetrain: Callable[..., tuple[int, str, str]], workplace: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=32)).save_pretrained("gpt2")
    code, _, err = edgetrain("recipe=layerskip_llama", *SMALL, "init_from=gpt2", "out=run")
    assert code == 2
    assert "its config.json says gpt2" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("override", "words"),
    [("model.kv_heads=3", "kv_heads=3"), ("model.heads=5", "heads=5"), ("model.share=immediat", "immediate")],
)
def test_a_shape_that_does_not_divide_is_one_sentence(
    override: str, words: str, edgetrain: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = edgetrain("recipe=layerskip_llama", *SMALL, override, "out=run")
    assert code == 2
    assert words in err
    assert "Traceback" not in err


# The recipes' arithmetic (language.md, 2.3)


def recipe(name: str, *overrides: str):
    return compose([f"recipe={name}", *overrides])


def samples_a_step(config) -> int:
    trainer = config.trainer
    processes = trainer["devices"] * trainer["num_nodes"]
    return config.data["batch_size"] * processes * trainer.get("accumulate_grad_batches", 1)


@pytest.mark.parametrize("name", ["mobilellm_125m", "mobilellm_350m", "mobilellm_ls_125m", "mobilellm_ls_350m"])
def test_the_recipes_train_the_papers_tokens(name: str) -> None:
    final, exploration = recipe(name), recipe(name, "variant=exploration")
    assert samples_a_step(final) == 1024
    assert final.data["context"] == 2048
    assert final.trainer["max_steps"] * 1024 * 2048 == 1_006_632_960_000
    assert exploration.trainer["max_steps"] * 1024 * 2048 == 251_658_240_000
    assert final.model["share"] == ("immediate" if "_ls_" in name else "none")
    assert count(model_of(name.replace("_ls", ""))) == PUBLISHED[name.split("_")[-1]][0]


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_tenth() -> None:
    config = recipe("mobilellm_125m")
    task = build(config.task, model=torch.nn.Linear(1, 1), methods=[], optimizer=None)
    assert isinstance(task, Task)
    assert task.learning_rate_scale(999) == 1.0
    assert task.learning_rate_scale(499) == 0.5
    assert task.learning_rate_scale(480_000) == pytest.approx(0.1)
    assert task.learning_rate_scale(600_000) == pytest.approx(0.1)
    middle = task.learning_rate_scale(1000 + (480_000 - 1000) // 2)
    assert middle == pytest.approx(0.1 + 0.9 / 2, abs=1e-5)
    assert (config.optimizer["lr"], config.task["lr_samples"]) == (2e-3, 1024)
