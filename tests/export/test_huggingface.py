"""The exported folder is what transformers loads, and it is judged before it appears."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from edgetrain.build import load_trained, read_config
from edgetrain.compose import compose
from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact
from edgetrain.export.huggingface import HuggingFace
from edgetrain.export.shipping import ship
from edgetrain.folder import RunFolder
from edgetrain.models.huggingface import llama_settings, load_llama, save_llama
from edgetrain.models.llama import Llama


def small_llama(tied: bool) -> Llama:
    torch.manual_seed(0)
    return Llama(60, dim=32, layers=3, heads=4, kv_heads=2, hidden_dim=48, context=64, tied=tied, rope_theta=5e5).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_weights_go_to_transformers_and_back(tied: bool, tmp_path: Path) -> None:
    model = small_llama(tied)
    save_llama(model, tmp_path)
    batch = torch.randint(60, (2, 40), generator=torch.Generator().manual_seed(1))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(theirs(batch).logits, model(batch), rtol=0, atol=1e-5)
    back = load_llama(tmp_path).eval()
    assert torch.equal(back(batch), model(batch))
    assert (back.lm_head.weight is back.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_from_transformers(tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    theirs = LlamaForCausalLM(settings).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_llama(tmp_path).eval()
    assert set(ours.state_dict()) == set(theirs.state_dict())
    batch = torch.randint(60, (2, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(batch), theirs(batch).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_scaling"),
        ({"model_type": "qwen2"}, "model_type"),
    ],
)
def test_what_our_llama_does_not_compute_is_refused(change: dict[str, Any], name: str, tmp_path: Path) -> None:
    save_llama(small_llama(True), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    with pytest.raises(UserError, match=name):
        llama_settings(config)


def trained_of(run: RunFolder) -> Any:
    return load_trained(run, compose([], base=read_config(run)))


def test_an_export_is_judged_on_the_artefact(finished_run: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder.create("x", str(tmp_path / "run"))
    ship(trained_of(finished_run), {"huggingface": HuggingFace()}, folder, [])
    metrics = folder.read_json("metrics.json")
    out = folder.path / "export" / "huggingface"
    manifest = json.loads((out / "manifest.json").read_text())
    form = manifest["forms"]["fp32"]
    assert form["metrics"]["loss"] == pytest.approx(metrics["export/float/loss"], abs=1e-4)
    assert form["parity"] <= 1e-4
    written = [path for path in out.iterdir() if path.name not in ("manifest.json", "MODEL_CARD.md")]
    assert form["size_bytes"] == sum(path.stat().st_size for path in written)
    assert metrics["export/huggingface/fp32/size_bytes"] == form["size_bytes"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= manifest["files"].keys()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer.encode("def f(x):")) == "def f(x):"
    model = AutoModelForCausalLM.from_pretrained(out)
    prompt = tokenizer("def f", return_tensors="pt").input_ids
    assert model.generate(prompt, max_new_tokens=4, do_sample=False).shape[1] <= prompt.shape[1] + 4


class Wrong(HuggingFace):
    """An exporter whose artefact does not compute what the model does."""

    def export(self, model: Any, example_inputs: Any, calibration: Any, out: Path) -> list[Artefact]:
        (artefact,) = super().export(model, example_inputs, calibration, out)
        return [replace(artefact, predict=lambda tokens: artefact.predict(tokens) + 1)]


def test_an_artefact_that_differs_fails_and_nothing_is_left(finished_run: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder.create("x", str(tmp_path / "run"))
    with pytest.raises(UserError, match="outputs of fp32 differ from the model's by 1"):
        ship(trained_of(finished_run), {"wrong": Wrong()}, folder, [])
    assert list((folder.path / "export").iterdir()) == []


def test_no_code_in_a_folder_is_ever_run(tmp_path: Path) -> None:
    """Neither a changed file beside the weights nor one that config.json names in a folder below."""
    save_llama(small_llama(True), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"AutoConfig": "sub/evil.Config", "AutoModelForCausalLM": "shared_llama.SharedLlamaForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": names}))
    (tmp_path / "sub").mkdir()
    for path in (tmp_path / "sub" / "evil.py", tmp_path / "evil.py"):
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    batch = torch.randint(60, (2, 20), generator=torch.Generator().manual_seed(1))
    predict = HuggingFace().load(tmp_path, "fp32", ("config.json", "model.safetensors"))
    torch.testing.assert_close(predict(batch), small_llama(True)(batch), rtol=0, atol=1e-5)
    assert not (tmp_path / "ran").exists()
