"""Our Llama is transformers' Llama, cached or not, cut after any layer."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from allocations import kept
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from edgetrain.errors import UserError
from edgetrain.models.llama import Llama, SwiGLU

SHAPES = {
    "tied": {"heads": 4, "kv_heads": 4, "tied": True},
    "untied": {"heads": 4, "kv_heads": 4, "tied": False},
    "grouped": {"heads": 4, "kv_heads": 2, "tied": True},
    "one key-value head": {"heads": 4, "kv_heads": 1, "tied": False},
}
LAYERS, TOKENS = 4, 21


def llama(heads: int = 4, kv_heads: int = 2, tied: bool = True) -> Llama:
    torch.manual_seed(0)
    model = Llama(97, 32, LAYERS, heads, kv_heads, hidden_dim=48, context=40, tied=tied, rope_theta=5000.0)
    for parameter in model.parameters():  # large enough for every part to show in the logits
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim == 2 else 0.1)
        if parameter.ndim == 1:
            parameter.data.add_(1.0)
    return model.eval()


def twin(model: Llama, layers: int = LAYERS) -> LlamaForCausalLM:
    """transformers' model with the same weights, or with those of the first `layers` layers."""
    attention = model.model.layers[0].self_attn
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.kv_heads,
        max_position_embeddings=model.context,
        rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tied,
    )
    peer = LlamaForCausalLM(config).eval()
    kept = {key: value for key, value in model.state_dict().items() if key in peer.state_dict()}
    peer.load_state_dict(kept)
    return peer


def tokens(batch: int = 2) -> Tensor:
    return torch.randint(97, (batch, TOKENS), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_state_dict_keys_are_those_of_transformers(shape: dict[str, int]) -> None:
    model = llama(**shape)
    assert set(model.state_dict()) == set(twin(model).state_dict())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_logits_equal_those_of_transformers(shape: dict[str, int]) -> None:
    model = llama(**shape)
    torch.testing.assert_close(model(tokens()), twin(model)(tokens()).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weights_of_transformers_load_too() -> None:
    source = twin(llama())
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = llama()
    model.load_state_dict(source.state_dict())
    torch.testing.assert_close(model(tokens()), source(tokens()).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("exit_layer", range(1, LAYERS + 1))
@torch.no_grad()
def test_an_early_exit_is_the_model_with_fewer_layers(exit_layer: int) -> None:
    model = llama()
    early = model.head(model.run_layers(model.embed(tokens()), 0, exit_layer))
    torch.testing.assert_close(early, twin(model, exit_layer)(tokens()).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_layers_run_in_two_parts_as_in_one() -> None:
    model = llama()
    x = model.embed(tokens())
    for middle in range(LAYERS + 1):
        x_middle = model.run_layers(x, 0, middle)
        assert torch.equal(model.head(model.run_layers(x_middle, middle, LAYERS)), model(tokens()))


@pytest.mark.parametrize("shape", [SHAPES["grouped"], SHAPES["untied"]], ids=["grouped", "untied"])
@torch.no_grad()
def test_cached_logits_equal_uncached_ones_for_every_split(shape: dict[str, int]) -> None:
    model = llama(**shape).double()
    expected = model(tokens())
    for first in range(1, TOKENS):
        for second in range(first, TOKENS):  # two parts where the middle one is empty, else three
            cache = model.new_cache(batch=2)
            parts = [
                model.head(model.run_layers(model.embed(tokens()[:, start:stop]), 0, LAYERS, cache, start))
                for start, stop in ((0, first), (first, second), (second, TOKENS))
                if stop > start
            ]
            torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_cache_goes_back_by_writing_over_it() -> None:
    model = llama().double()
    cache = model.new_cache(batch=2, length=TOKENS)
    wrong = torch.zeros_like(tokens())
    model.run_layers(model.embed(wrong), 0, LAYERS, cache, 0)
    parts = [
        model.head(model.run_layers(model.embed(tokens()[:, start:stop]), 0, LAYERS, cache, start))
        for start, stop in ((0, 6), (6, TOKENS))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens()), atol=1e-12, rtol=0)


def test_a_cache_is_as_long_as_the_context_unless_told() -> None:
    model = llama(kv_heads=2)
    assert model.new_cache().keys.shape == (LAYERS, 1, 2, model.context, 8)
    assert model.new_cache(batch=3, length=7).values.shape == (LAYERS, 3, 2, 7, 8)


@pytest.mark.parametrize("share_kv", [False, True])
@torch.no_grad()
def test_components_compute_the_last_tokens_logits_by_way_of_one_cache(share_kv: bool) -> None:
    torch.manual_seed(0)
    model = Llama(97, 32, 2, 4, 2, 48, context=40, share="immediate", share_kv=share_kv).eval()
    expected = model(tokens())[:, -1]
    parts = model.components(tokens())
    assert list(parts) == ["prefill", "decode"]
    for module, inputs in parts.values():
        torch.testing.assert_close(module(*inputs), expected)
    read, _, _ = parts["decode"][1]
    assert read.tolist() == tokens()[:, -1:].tolist()


def test_bfloat16_training_on_a_cpu_is_close_to_float32() -> None:
    model = llama()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(tokens())[:, :-1].flatten(0, 1).float(), tokens()[:, 1:].flatten())
    expected = F.cross_entropy(model(tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)


def test_tied_embeddings_are_one_tensor() -> None:
    model = llama(tied=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert copy.deepcopy(model).double().lm_head.weight.dtype == torch.float64
    untied = llama(tied=False)
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("layers", "dim", "heads", "kv_heads", "hidden_dim", "parameters"),
    [(30, 576, 9, 3, 1536, 124_635_456), (32, 960, 15, 5, 2560, 345_355_200)],
    ids=["MobileLLM-125M", "MobileLLM-350M"],
)
def test_parameter_counts_of_published_models(
    layers: int, dim: int, heads: int, kv_heads: int, hidden_dim: int, parameters: int
) -> None:
    with torch.device("meta"):
        model = Llama(32000, dim, layers, heads, kv_heads, hidden_dim, context=2048)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_fresh_weights_have_the_documented_spread() -> None:
    torch.manual_seed(0)
    model = Llama(300, dim=128, layers=8, heads=4, kv_heads=4, hidden_dim=256, context=8)
    block = model.model.layers[0]
    assert block.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.down_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)


@pytest.mark.parametrize(
    ("dim", "heads", "kv_heads"), [(30, 4, 2), (32, 4, 3), (12, 4, 2)], ids=["dim", "kv_heads", "odd head width"]
)
def test_head_counts_that_do_not_divide_are_a_sentence(dim: int, heads: int, kv_heads: int) -> None:
    with pytest.raises(
        UserError, match=f"dim={dim} must be a multiple of 2\\*heads .heads={heads}.*kv_heads={kv_heads}"
    ):
        Llama(97, dim, 2, heads, kv_heads, hidden_dim=48, context=16)


def test_the_mlp_trains_as_the_plain_formula_and_keeps_half() -> None:
    """silu(gate) and its product with up are formed again: of four tensors of the inner width two are kept."""
    torch.manual_seed(0)
    mlp, rows, inner = SwiGLU(8, 64).double(), 50, 64
    x = torch.randn(rows, 8, dtype=torch.float64, requires_grad=True)

    def plain() -> torch.Tensor:
        return (F.silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T

    inputs = [x, *mlp.parameters()]
    upstream = torch.randn(rows, 8, dtype=torch.float64)
    torch.testing.assert_close(mlp(x), plain())
    found, expected = (torch.autograd.grad(each, inputs, upstream) for each in (mlp(x), plain()))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mlp.eval()(x), plain())
    mlp.train()
    result, one = [], rows * inner * 8
    assert kept(lambda: result.append(mlp(x))) < 2.5 * one
    assert kept(lambda: result.append(plain())) > 4 * one
