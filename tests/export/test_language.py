"""Llamas leave as programs that read, remember and generate, judged here against our own model and decoder."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from edgetrain.build import build
from edgetrain.compose import compose
from edgetrain.decoding.autoregressive import generate
from edgetrain.errors import UserError
from edgetrain.export import language_onnx
from edgetrain.export.artefact import Artefact
from edgetrain.export.executorch import ExecuTorch
from edgetrain.export.gguf import GGUF
from edgetrain.export.language import are_language, as_llama, check_llama, is_language
from edgetrain.export.language_stateful import CHUNK, StatefulLlama
from edgetrain.export.onnx import Onnx
from edgetrain.export.pt2 import Pt2
from edgetrain.models.llama import Llama

VOCAB, CONTEXT = 300, 160
MODELS = {
    "grouped": {"layers": 2, "kv_heads": 2},
    "untied": {"layers": 2, "kv_heads": 4, "tied": False},
    "shared": {"layers": 1, "kv_heads": 1, "share": "immediate"},
    "shared_kv": {"layers": 2, "kv_heads": 2, "share": "reverse", "share_kv": True},
}
# Lowering to ExecuTorch takes seconds a layer, translation to ONNX one, so they have those that differ most.
CASES = [("executorch", "shared"), ("onnx", "untied"), ("onnx", "shared"), ("onnx", "shared_kv")]
CASES += [("pt2", name) for name in MODELS]


def small_llama(name: str) -> Llama:
    torch.manual_seed(0)
    model = Llama(VOCAB, dim=64, heads=4, hidden_dim=256, context=CONTEXT, rope_theta=5e4, **MODELS[name])
    with torch.no_grad():
        for parameter in model.parameters():  # logits that differ, norms that are not 1
            parameter.mul_(4 if parameter.ndim == 2 else torch.rand_like(parameter) + 0.5)
    return model.eval()


def tokens_of(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Llama, Artefact, Path, Any]:
    """The model, its artefact, the folder and the module that wrote it."""
    target, name = request.param
    pytest.importorskip({"onnx": "onnxruntime", "pt2": "torch"}.get(target, target))
    out = tmp_path_factory.mktemp(f"{target}_{name}")
    module = importlib.import_module(f"edgetrain.export.language_{target}")
    model = small_llama(name)
    (artefact,) = module.export_llama(model, out)
    return model, artefact, out, module


Exported = tuple[Llama, Artefact, Path, Any]


@pytest.mark.parametrize("length", [1, 2, CHUNK, CONTEXT])
def test_logits_are_the_models_at_every_length(exported: Exported, length: int) -> None:
    model, artefact, _, _ = exported
    tokens = tokens_of(2, length)
    with torch.inference_mode():
        expected = model(tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(artefact.predict(tokens), expected, rtol=0, atol=artefact.tolerance)
    assert artefact.tolerance == 1e-4


@pytest.mark.parametrize(("length", "new_tokens"), [(1, 20), (9, 20), (CHUNK + 2, CONTEXT - CHUNK - 2)])
def test_greedy_text_is_our_own_decoders(exported: Exported, length: int, new_tokens: int) -> None:
    model, artefact, _, _ = exported
    prompt = tokens_of(length)
    text = artefact.generate(prompt, new_tokens)
    assert text.dtype == torch.int64
    assert text.tolist() == [*prompt.tolist(), *generate(model, prompt, new_tokens)]


def test_a_step_gives_the_logits_of_the_whole_text(exported: Exported) -> None:
    model, artefact, out, module = exported
    session = module.load_llama(out, artefact.files)
    tokens = tokens_of(1, 24)
    parts = [session.step(tokens[:, :20], 0), session.step(tokens[:, 20:23], 20), session.step(tokens[:, 23:], 23)]
    with torch.inference_mode():
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=0, atol=1e-4)


def test_a_prompt_sees_nothing_of_the_one_before(exported: Exported) -> None:
    _, artefact, _, _ = exported
    first = artefact.generate(tokens_of(40)[:5], 12)
    artefact.generate(tokens_of(40), 40)
    assert torch.equal(artefact.generate(tokens_of(40)[:5], 12), first)


def test_what_exceeds_the_context_is_refused(exported: Exported) -> None:
    _, artefact, _, _ = exported
    with pytest.raises(UserError, match=f"reads 1 to {CONTEXT}"):
        artefact.predict(tokens_of(1, CONTEXT + 1))
    with pytest.raises(UserError, match=f"context of {CONTEXT}"):
        artefact.generate(tokens_of(CONTEXT - 5), 6)
    with pytest.raises(UserError, match="at least one of each"):
        artefact.generate(tokens_of(1)[:0], 6)


def test_every_weight_is_there_once(exported: Exported) -> None:
    """But for a tied table, of which ExecuTorch's backend takes a copy of its own."""
    model, artefact, out, module = exported
    block = sum(weight.nbytes for weight in model.model.layers[0].parameters())
    weights = sum(weight.nbytes for weight in model.parameters())
    cache = model.new_cache()
    state = cache.keys.nbytes + cache.values.nbytes if "pt2" in module.__name__ else 0
    table = model.lm_head.weight.nbytes if model.tied and "executorch" in module.__name__ else 0
    size = sum((out / file).stat().st_size for file in artefact.files)
    assert weights < size < weights + state + table + block


def test_it_opens_again_and_names_itself(exported: Exported) -> None:
    _, artefact, out, module = exported
    assert are_language(artefact.files)
    again = module.load_llama(out, artefact.files)
    assert again.context == CONTEXT
    torch.testing.assert_close(again.predict(tokens_of(1, 9)), artefact.predict(tokens_of(1, 9)), rtol=0, atol=0)


def test_nothing_of_this_machine_is_shipped(exported: Exported) -> None:
    _, artefact, out, _ = exported
    assert not any(str(ROOT).encode() in (out / file).read_bytes() for file in artefact.files)


def test_a_damaged_file_is_one_sentence(exported: Exported, tmp_path: Path) -> None:
    _, artefact, out, module = exported
    data = (out / artefact.files[0]).read_bytes()
    (tmp_path / artefact.files[0]).write_bytes(data[: len(data) // 3])
    with pytest.raises(UserError, match="cannot be loaded"):
        module.load_llama(tmp_path, artefact.files)


@pytest.mark.parametrize("exported", [("onnx", "shared_kv")], indirect=True)
def test_onnx_takes_a_batch_and_a_past_under_the_names_that_others_use(exported: Exported) -> None:
    import onnxruntime

    model, artefact, out, _ = exported
    session = onnxruntime.InferenceSession(out / artefact.files[0])
    slots = [f"{slot}.{kind}" for slot in range(2) for kind in ("key", "value")]
    assert [each.name for each in session.get_inputs()] == ["input_ids", *(f"past_key_values.{slot}" for slot in slots)]
    assert [each.name for each in session.get_outputs()] == ["logits", *(f"present.{slot}" for slot in slots)]
    tokens = tokens_of(3, 11)
    past = {f"past_key_values.{slot}": np.zeros((3, 2, 0, 16), np.float32) for slot in slots}
    _, *present = session.run(None, {"input_ids": tokens[:, :8].numpy(), **past})
    logits, *_ = session.run(None, {"input_ids": tokens[:, 8:].numpy(), **dict(zip(past, present, strict=True))})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), model(tokens)[:, 8:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("exported", [("onnx", "shared")], indirect=True)
def test_onnx_holds_a_shared_block_once_though_each_visit_turns_its_weights_around(exported: Exported) -> None:
    onnx = pytest.importorskip("onnx")

    model, artefact, out, _ = exported
    tensors = onnx.load(out / artefact.files[0]).graph.initializer
    matrices = [tensor.raw_data for tensor in tensors if len(tensor.dims) == 2]
    assert len(set(matrices)) == len(matrices)
    held = sum(np.prod(tensor.dims) for tensor in tensors if len(tensor.dims) == 2)
    rotary = model.model.cosines.numel() + model.model.sines.numel()
    assert held == rotary + sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)


@pytest.mark.parametrize("name", MODELS)
def test_the_stateful_form_is_the_model(name: str) -> None:
    model = small_llama(name)
    stateful = StatefulLlama(as_llama(model, "pt2"))
    tokens = tokens_of(1, 30)
    with torch.inference_mode():
        parts = [stateful(tokens[:, a:b], torch.tensor([a])) for a, b in ((0, 17), (17, 18), (18, 30))]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=0, atol=2e-5)


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = small_llama("shared").bfloat16().train()
    module = importlib.import_module("edgetrain.export.language_pt2")
    (artefact,) = module.export_llama(model, tmp_path)
    assert model.training
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert all(weight.requires_grad for weight in model.parameters())
    tokens = tokens_of(1, 9)
    with torch.inference_mode():
        expected = model.float().eval()(tokens)
    torch.testing.assert_close(artefact.predict(tokens), expected, rtol=0, atol=1e-4)


def test_a_llama_of_transformers_becomes_ours() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=60, num_key_value_heads=2, max_position_embeddings=64, **shape)
    ).eval()
    assert is_language(theirs)
    tokens = tokens_of(2, 20) % 60
    with torch.inference_mode():
        torch.testing.assert_close(as_llama(theirs, "onnx")(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


def test_another_language_model_is_refused_by_name() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = AutoModelForCausalLM.from_config(Qwen2Config(vocab_size=60, num_key_value_heads=2, **shape))
    with pytest.raises(UserError, match="export.onnx writes language models that are Llamas, and qwen2 is not one"):
        check_llama(theirs, "onnx")


SMALL = {"vocab_size": 60, "context": 32, "dim": 48, "layers": 1, "hidden_dim": 64}  # for 2, 3 and 4 heads


def recipe_models() -> dict[str, dict[str, Any]]:
    """The models of all recipes that train a Llama, made small; recipes that then have the same one stand together."""
    recipes: dict[str, list[str]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        model = compose([f"recipe={path.stem}"], smoke=True).model or {}
        if str(model.get("_target_")).endswith(".Llama"):
            model |= SMALL
            recipes.setdefault(str(model), []).append(path.stem)
            settings[str(model)] = model
    return {" ".join(names): settings[key] for key, names in recipes.items()}


def test_the_model_of_every_recipe_can_leave(tmp_path: Path) -> None:
    """All targets would take it; those that take a second write it."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("executorch")
    found = recipe_models()
    assert {"layerskip_llama", "layerskip_top", "mobilellm_tiny", "mobilellm_ls_125m"} <= set(" ".join(found).split())
    prompt = tokens_of(6) % 60
    for number, settings in enumerate(found.values()):
        model = build(settings).eval()
        for exporter in (ExecuTorch(), Onnx(), Pt2(), GGUF(["F16"])):
            exporter.check(model, (prompt[None],))
        for exporter in (Pt2(), GGUF(["F16"])):
            out = tmp_path / f"{number}_{type(exporter).__name__}"
            out.mkdir()
            (artefact,) = exporter.export(model, (prompt[None],), None, out)
            assert artefact.generate(prompt, 8).tolist()[6:] == list(generate(artefact.reference, prompt, 8))


@pytest.mark.parametrize("context", [6, 7])
def test_a_context_that_is_too_short_to_trace_is_a_sentence(context: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    llama = Llama(20, dim=8, layers=1, heads=2, kv_heads=1, hidden_dim=16, context=context).eval()
    if context == 6:
        with pytest.raises(UserError, match="a context of 6 tokens is below 7"):
            language_onnx.export_llama(llama, tmp_path)
    else:
        (artefact,) = language_onnx.export_llama(llama, tmp_path)
        tokens = torch.arange(7)[None]
        torch.testing.assert_close(artefact.predict(tokens), llama(tokens), rtol=0, atol=1e-5)
