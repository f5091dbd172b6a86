"""Every shipped recipe: its header, its smoke run, and the arithmetic of those that no test can run."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from sets import sets

from edgetrain.build import build, build_methods
from edgetrain.cli import main
from edgetrain.compose import compose
from edgetrain.config import Config
from edgetrain.folder import RunFolder
from edgetrain.recipes import header

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
OPTIONS = sorted((ROOT / "conf").rglob("*.yaml"))
# The same recipe in another size, or a study of one: what they have of their own is composed by other tests.
LIKE_ANOTHER = {f"hrvit_b{size}_{data}" for size in (2, 3) for data in ("ade20k", "cityscapes")} | {"hrvit_ablation"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_header_tells_a_reader_everything(path: Path) -> None:
    head = header(path)
    assert head.sentence.endswith(".")
    assert all((head.paper, head.claim, head.needs))
    assert head.run.startswith(f"python -m edgetrain recipe={path.stem}")
    assert "Smoke:" in head.needs
    assert yaml.safe_load(path.read_text())["smoke"]


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_key_of_an_option_is_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    keys = [line for line in lines if line[:1].isalpha()]
    assert [line for line in keys if "#" not in line and line.split(":")[0] not in ("defaults", "_target_")] == []


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in LIKE_ANOTHER), id=path.stem) for path in RECIPES],
)
def test_smoke_runs_in_seconds_and_leaves_a_report(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGETRAIN_DATA", str(sets(tmp_path)))
    assert main(["run", f"recipe={path.stem}", "--smoke", "out=run"]) == 0
    folder = RunFolder.open(tmp_path / "run")
    assert (folder.path / "report.html").stat().st_size > 10_000
    assert folder.read_json("environment.json")["finished"]
    assert len(folder.read_json("claims.json")) == len(compose([f"recipe={path.stem}"]).claims)


# The paper's eight settings: language.md 1.4, from the paper's section 5 and Tables 8 to 10

PAPER = {  # variant: (tokens in billions, p_max, e_scale, curriculum, R, S(t), steps)
    "llama2_7b": (52, 0.1, 0.2, "rotational", 8, "constant", 50_000),
    "llama2_13b": (52, 0.1, 0.1, "rotational", 39, "constant", 50_000),
    "llama3_8b": (419, 0.1, 0.1, "rotational", 8, "constant", None),
    "llama3_2_1b": (839, 0.1, 0.1, "rotational", 8, "constant", None),
    "llama_1_5b_scratch": (26, 0.1, 0.2, "rotational", 23, "exponential", 50_000),
    "llama2_7b_scratch": (26, 0.2, 0.2, "rotational", 31, "exponential", 50_000),
    "llama1_7b_code": (5.2, 0.1, 1.0, "rotational", 16, "constant", 10_000),
    "llama_1_5b_topv2": (None, 0.2, 1.0, "gradual", None, "constant", 5_800),
}


def paper(variant: str) -> Config:
    return compose(["recipe=layerskip_paper", f"variant={variant}"])


def test_the_recipe_has_the_papers_eight_settings() -> None:
    assert set(compose(["recipe=layerskip_paper"]).variants) == set(PAPER)


@pytest.mark.parametrize("variant", PAPER)
def test_a_variant_has_the_papers_settings_and_tokens(variant: str) -> None:
    tokens, p_max, e_scale, curriculum, rotation, schedule, steps = PAPER[variant]
    config = paper(variant)
    method, trainer, data = config.method["layerskip"], config.trainer, config.data
    assert (method["p_max"], method["e_scale"], method["curriculum"]) == (p_max, e_scale, curriculum)
    assert method["dropout_schedule"] == schedule
    assert method["total_steps"] == trainer["max_steps"]
    if steps:
        assert trainer["max_steps"] == steps
    if rotation:
        assert method["rotation"] == rotation
    if tokens:
        gpus = trainer["devices"] * trainer["num_nodes"]
        total = trainer["max_steps"] * data["batch_size"] * gpus * data["context"]
        assert total / 1e9 == pytest.approx(tokens, rel=0.01)


@pytest.mark.parametrize("variant", PAPER)
def test_a_variant_builds_with_the_parameters_of_transformers_llama(variant: str) -> None:
    """On the meta device: nothing is allocated. The count is that of LlamaForCausalLM with the same config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = paper(variant)
    with torch.device("meta"):
        model = build(config.model)
        settings = LlamaConfig(
            vocab_size=config.model["vocab_size"],
            hidden_size=config.model["dim"],
            num_hidden_layers=config.model["layers"],
            num_attention_heads=config.model["heads"],
            num_key_value_heads=config.model["kv_heads"],
            intermediate_size=config.model["hidden_dim"],
            tie_word_embeddings=config.model["tied"],
        )
        reference = LlamaForCausalLM(settings)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters())
    (method,) = build_methods(config).values()
    method.apply(model, method.plan(model, None))
    last = model.model.layers[-1].drop_probabilities[-1]
    assert last == (config.method["layerskip"]["p_max"] if method.dropout_schedule == "constant" else 0)
