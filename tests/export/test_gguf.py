"""GGUF files hold what llama.cpp reads: its layout of rotations, its blocks of weights, its names and its tokenizer."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor

from edgetrain.data.tokenizer import train_tokenizer, wrap_tokenizer
from edgetrain.decoding.autoregressive import generate
from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact
from edgetrain.export.gguf import GGUF, TYPES, half_split, interleaved
from edgetrain.export.gguf_tokenizer import NAMES, pre_tokenizer_name
from edgetrain.models.llama import Llama

gguf = pytest.importorskip("gguf")

VOCAB, CONTEXT = 320, 48
MODELS = {
    "grouped": {"layers": 2, "kv_heads": 2},
    "untied": {"layers": 2, "kv_heads": 4, "tied": False, "norm_eps": 1e-3},
    "shared": {"layers": 2, "kv_heads": 1, "share": "immediate"},
}


def small_llama(name: str, **settings: object) -> Llama:
    torch.manual_seed(0)
    given = {"dim": 64, "heads": 4, "hidden_dim": 96, "context": CONTEXT, "rope_theta": 500.0} | MODELS[name]
    model = Llama(VOCAB, **(given | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else torch.rand_like(parameter) + 0.5)
    return model.eval()


def tokens_of(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokenizer() -> object:
    lines = [f"def function_{index}(value):\n\treturn value + {index}  # it's one of many" for index in range(60)]
    return wrap_tokenizer(train_tokenizer([lines], VOCAB - 10))


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest, tokenizer: object, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Llama, dict[str, Artefact], Path]:
    out = tmp_path_factory.mktemp(request.param)
    model = small_llama(request.param)
    artefacts = GGUF().export(model, (), SimpleNamespace(tokenizer=tokenizer), out)
    return model, {artefact.name: artefact for artefact in artefacts}, out


Exported = tuple[Llama, dict[str, Artefact], Path]


def read(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Metadata and dequantised tensors."""
    reader = gguf.GGUFReader(path)
    tensors = {each.name: gguf.dequantize(each.data, each.tensor_type) for each in reader.tensors}
    return (
        {name: field.contents() for name, field in reader.fields.items()},
        {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()},
    )


def of_llama_cpp(path: Path, tokens: Tensor) -> Tensor:
    """Logits [n, vocab] of tokens [n] from a file's metadata and tensors alone, slowly, as llama.cpp's `llama` does:

    each pair (2i, 2i + 1) of a head is a point that is turned by position * base^(-2i / d), one position at a time.
    """
    about, tensors = read(path)
    heads, kv_heads = about["llama.attention.head_count"], about["llama.attention.head_count_kv"]
    turned, base = about["llama.rope.dimension_count"], about["llama.rope.freq_base"]
    eps = about["llama.attention.layer_norm_rms_epsilon"]

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * tensors[name]

    def rotate(x: Tensor) -> Tensor:
        out = x.clone()
        for position in range(len(x)):
            for pair in range(turned // 2):
                angle = torch.tensor(position * base ** (-2 * pair / turned))
                a, b = x[position, :, 2 * pair], x[position, :, 2 * pair + 1]
                out[position, :, 2 * pair] = a * angle.cos() - b * angle.sin()
                out[position, :, 2 * pair + 1] = a * angle.sin() + b * angle.cos()
        return out

    x = tensors["token_embd.weight"][tokens]
    n = len(tokens)
    for layer in range(about["llama.block_count"]):
        own = {name: tensors[f"blk.{layer}.{name}.weight"] for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        y = norm(x, f"blk.{layer}.attn_norm.weight")
        q, k = rotate((y @ own["attn_q"].T).view(n, heads, -1)), rotate((y @ own["attn_k"].T).view(n, kv_heads, -1))
        v = (y @ own["attn_v"].T).view(n, kv_heads, -1)
        outs = []
        for head in range(heads):
            of = head // (heads // kv_heads)
            scores = (q[:, head] @ k[:, of].T / turned**0.5).masked_fill(torch.ones(n, n).triu(1) > 0, -torch.inf)
            outs.append(scores.softmax(-1) @ v[:, of])
        x = x + torch.cat(outs, dim=-1) @ own["attn_output"].T
        y = norm(x, f"blk.{layer}.ffn_norm.weight")
        gate, up = (y @ tensors[f"blk.{layer}.ffn_{name}.weight"].T for name in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ tensors[f"blk.{layer}.ffn_down.weight"].T
    return norm(x, "output_norm.weight") @ tensors.get("output.weight", tensors["token_embd.weight"]).T


def test_the_file_computes_our_model_with_the_rotation_of_llama_cpp(exported: Exported) -> None:
    model, _, out = exported
    tokens = tokens_of(9)
    rounded = copy.deepcopy(model).requires_grad_(False)
    for weight in rounded.parameters():
        if weight.ndim == 2:
            weight.copy_(weight.half().float())
    with torch.inference_mode():
        expected = rounded(tokens[None])[0]
    torch.testing.assert_close(of_llama_cpp(out / "llama_F16.gguf", tokens), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_the_artefact_is_what_the_file_computes(exported: Exported, kind: str) -> None:
    _, artefacts, out = exported
    artefact, tokens = artefacts[kind], tokens_of(2, 12)
    found = artefact.predict(tokens)
    for row, logits in zip(tokens, found, strict=True):
        torch.testing.assert_close(of_llama_cpp(out / artefact.files[0], row), logits, rtol=0, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(found, artefact.reference(tokens), rtol=0, atol=artefact.tolerance)
    text = artefact.generate(tokens[0], 20)
    assert text.tolist() == [*tokens[0].tolist(), *generate(artefact.reference, tokens[0], 20)]


def test_rows_change_places_as_the_pairs_of_a_rotation_do() -> None:
    """Two heads of width 6: row i of the first half goes to 2i, row i of the second to 2i + 1."""
    weight = np.arange(12, dtype=np.float32)[:, None]
    assert interleaved(weight, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert np.array_equal(half_split(interleaved(weight, 2), 2), weight)


def test_f16_is_the_nearest_number_and_blocks_are_within_their_step(exported: Exported) -> None:
    """Q8_0: a block of 32 has a step of max|w| / 127. The error is half of it, and 127 times the step's own error of

    2^-11 in float16: 0.57 steps. Q4_0: the step is max|w| / 8 with levels -8 to 7, so the side that has no level 8 may
    be off by a whole step.
    """
    model, _, out = exported
    weight = model.model.layers[0].mlp.down_proj.weight.detach()
    largest = weight.reshape(len(weight), -1, 32).abs().amax(-1, keepdim=True)
    errors = {}
    for kind in TYPES:
        stored = read(out / f"llama_{kind}.gguf")[1]["blk.0.ffn_down.weight"]
        errors[kind] = (stored - weight).reshape(len(weight), -1, 32).abs()
    assert torch.equal(read(out / "llama_F16.gguf")[1]["blk.0.ffn_down.weight"], weight.half().float())
    assert (errors["Q8_0"] <= 0.57 * largest / 127).all()
    assert (errors["Q4_0"] <= 1.01 * largest / 8).all()
    assert errors["Q4_0"].mean() > 5 * errors["Q8_0"].mean() > 0


def test_a_shared_block_is_written_for_every_visit(exported: Exported) -> None:
    model, artefacts, out = exported
    about, tensors = read(out / "llama_F16.gguf")
    order = [visit.block for visit in model.model.visits]
    assert about["llama.block_count"] == len(order) == artefacts["F16"].facts["layers"]
    assert sum(name.endswith("ffn_up.weight") for name in tensors) == len(order)
    for layer, block in enumerate(order):
        expected = model.model.layers[block].mlp.up_proj.weight.detach().half().float()
        assert torch.equal(tensors[f"blk.{layer}.ffn_up.weight"], expected)
    assert ("output.weight" in tensors) == (not model.tied)


def test_types_are_as_stated(exported: Exported) -> None:
    _, _, out = exported
    types = {each.name: each.tensor_type.name for each in gguf.GGUFReader(out / "llama_Q4_0.gguf").tensors}
    assert types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert {kind for name, kind in types.items() if name.startswith("blk.") and "norm" not in name} == {"Q4_0"}
    sizes = [(out / f"llama_{kind}.gguf").stat().st_size for kind in TYPES]
    assert sizes == sorted(sizes, reverse=True)


def test_settings_are_those_that_llama_cpp_asks(exported: Exported) -> None:
    model, _, out = exported
    about, _ = read(out / "llama_Q8_0.gguf")
    expected = {
        "general.architecture": "llama",
        "general.file_type": 7,  # MOSTLY_Q8_0 of llama.h
        "general.quantization_version": 2,
        "llama.vocab_size": VOCAB,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": model.model.layers[0].self_attn.kv_heads,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 500.0,
    }
    assert {key: about[key] for key in expected} == expected
    assert about["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(model.norm_eps)


def test_the_tokenizer_is_the_runs(exported: Exported, tokenizer: object) -> None:
    about, _ = read(exported[2] / "llama_F16.gguf")
    own = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    assert (about["tokenizer.ggml.model"], about["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    tokens, kinds = about["tokenizer.ggml.tokens"], about["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == VOCAB
    assert {token: tokens.index(token) for token in own["vocab"]} == own["vocab"]
    assert [merge.split(" ") for merge in about["tokenizer.ggml.merges"]] == [list(pair) for pair in own["merges"]]
    assert tokens[0] == "<|endoftext|>"
    assert about["tokenizer.ggml.eos_token_id"] == about["tokenizer.ggml.bos_token_id"] == 0
    assert about["tokenizer.ggml.add_bos_token"] is False
    used = len(own["vocab"])
    assert kinds == [3] + [1] * (used - 1) + [5] * (VOCAB - used)  # control, normal, unused
    assert tokens[used:] == [f"[PAD{index}]" for index in range(used, VOCAB)]


def spec_of(pre_tokenizer: object, **model: object) -> dict[str, object]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    spec = json.loads(tokenizer.to_str())
    spec["model"] |= model
    return spec


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
UNCUT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def test_how_text_is_cut_is_named_as_llama_cpp_names_it() -> None:
    assert pre_tokenizer_name(spec_of(BYTES)) == "gpt-2"
    digits = pre_tokenizers.Digits(individual_digits=True)
    assert pre_tokenizer_name(spec_of(pre_tokenizers.Sequence([digits, BYTES]))) == "smollm"
    for pattern, name in NAMES.items():
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        assert pre_tokenizer_name(spec_of(pre_tokenizers.Sequence([split, UNCUT]))) == name


@pytest.mark.parametrize(
    "spec",
    [
        spec_of(pre_tokenizers.Whitespace()),
        spec_of(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        spec_of(UNCUT),
        spec_of(pre_tokenizers.Sequence([pre_tokenizers.Digits(), BYTES])),
        spec_of(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("a"), "isolated"), UNCUT])),
        spec_of(BYTES, type="Unigram"),
    ],
)
def test_another_cut_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(UserError, match="byte-level BPE"):
        pre_tokenizer_name(spec)


def test_without_a_tokenizer_the_file_says_that_there_is_none(tmp_path: Path) -> None:
    GGUF(["F16"]).export(small_llama("grouped"), (), None, tmp_path)
    about, _ = read(tmp_path / "llama_F16.gguf")
    assert about["tokenizer.ggml.model"] == "none"
    assert "tokenizer.ggml.tokens" not in about


def test_rows_that_fill_no_block_stay_in_16_bits(tmp_path: Path) -> None:
    (artefact,) = GGUF(["Q4_0"]).export(small_llama("grouped", hidden_dim=100), (), None, tmp_path)
    types = {each.name: each.tensor_type.name for each in gguf.GGUFReader(tmp_path / artefact.files[0]).tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"  # rows of 100
    assert types["blk.0.ffn_up.weight"] == "Q4_0"  # rows of 64


def test_shared_keys_and_values_are_refused_before_training() -> None:
    with pytest.raises(UserError, match="share_kv=false"):
        GGUF().check(small_llama("shared", share_kv=True), ())


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UserError, match=r"export.gguf.formats=\['Q4_K'\]"):
        GGUF(["Q4_K"])


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (artefact,) = GGUF(["F16"]).export(small_llama("grouped"), (), None, tmp_path)
    path = tmp_path / artefact.files[0]
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UserError, match="cannot be loaded"):
        GGUF().load(tmp_path, "F16", artefact.files)
