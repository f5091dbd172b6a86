"""A model that visits its blocks again is the model with a copy of a block for every visit (MobileLLM, section 2.3)."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from edgetrain.decoding.autoregressive import generate
from edgetrain.decoding.fused import FusedLlama
from edgetrain.decoding.self_speculative import SelfSpeculation
from edgetrain.decoding.static import StaticDecoder, StaticSelfSpeculation
from edgetrain.errors import UserError
from edgetrain.models.block_sharing import visit_order, visits
from edgetrain.models.huggingface import load_llama, save_llama, unrolled_weights
from edgetrain.models.llama import Llama, rotate

BLOCKS, CONTEXT, VOCABULARY = 3, 48, 61
ORDERS = {
    "immediate": [0, 0, 1, 1, 2, 2],
    "repeat_all": [0, 1, 2, 0, 1, 2],
    "reverse": [0, 1, 2, 2, 1, 0],
}


def shared(share: str = "immediate", repeats: int = 2, share_kv: bool = False) -> Llama:
    torch.manual_seed(0)
    model = Llama(VOCABULARY, 24, BLOCKS, 4, 2, 40, CONTEXT, share=share, repeats=repeats, share_kv=share_kv).double()
    for parameter in model.parameters():  # large enough for every part to show in the logits
        torch.nn.init.normal_(parameter, std=0.25, mean=0.0 if parameter.ndim == 2 else 1.0)
    return model.eval()


def unrolled(model: Llama) -> Llama:
    """A plain Llama with a copy of the block for every visit."""
    order = [visit.block for visit in model.model.visits]
    plain = Llama(VOCABULARY, 24, len(order), 4, 2, 40, CONTEXT).double().eval()
    plain.load_state_dict(unrolled_weights(model.state_dict(), order))
    return plain


def tokens(batch: int = 2, length: int = 17) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("share", ORDERS)
def test_the_order_of_visits(share: str) -> None:
    assert visit_order(3, share, 2) == ORDERS[share]


def test_three_visits() -> None:
    assert visit_order(2, "immediate", 3) == [0, 0, 0, 1, 1, 1]
    assert visit_order(2, "reverse", 3) == [0, 1, 1, 0, 0, 1]
    assert visit_order(4, "none", 3) == [0, 1, 2, 3]


def test_one_visit_shares_nothing() -> None:
    with pytest.raises(UserError, match="repeats=1 repeats nothing"):
        visit_order(3, "immediate", 1)


@pytest.mark.parametrize("share", ORDERS)
def test_sharing_adds_no_parameter_and_doubles_the_layers(share: str) -> None:
    model, plain = shared(share), Llama(VOCABULARY, 24, BLOCKS, 4, 2, 40, CONTEXT)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    assert model.layers == 2 * plain.layers
    assert model.new_cache().keys.shape[0] == 2 * plain.new_cache().keys.shape[0]


@pytest.mark.parametrize("share", ORDERS)
@torch.no_grad()
def test_logits_equal_the_unrolled_models_at_every_exit(share: str) -> None:
    model = shared(share)
    plain = unrolled(model)
    for layer in range(1, model.layers + 1):
        ours = model.head(model.run_layers(model.embed(tokens()), 0, layer))
        theirs = plain.head(plain.run_layers(plain.embed(tokens()), 0, layer))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("share", ORDERS)
def test_a_shared_weights_gradient_is_the_sum_of_its_copies(share: str) -> None:
    model = shared(share).train()
    plain = unrolled(model).train()
    for each in (model, plain):
        F.cross_entropy(each(tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("model.layers."):
            _, _, block, rest = name.split(".", 3)
            copies = [f"model.layers.{visit}.{rest}" for visit, b in enumerate(ORDERS[share]) if b == int(block)]
            expected = sum(plain.get_parameter(twin).grad for twin in copies)
        else:
            expected = plain.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-13, rtol=1e-9)


def fresh_decoding(model: Llama, prompt: Tensor, count: int) -> list[int]:
    """Greedy, without any cache: the whole text anew for every token."""
    text = prompt
    for _ in range(count):
        text = torch.cat((text, model(text[None])[0, -1].argmax()[None]))
    return text[len(prompt) :].tolist()


@pytest.mark.parametrize("share_kv", [False, True])
@pytest.mark.parametrize("share", ORDERS)
@torch.no_grad()
def test_every_way_of_decoding_gives_the_text_without_a_cache(share: str, share_kv: bool) -> None:
    model = shared(share, share_kv=share_kv)
    prompt, count = tokens(1, 5)[0], 40
    expected = fresh_decoding(model, prompt, count)
    assert len(set(expected)) > 3
    assert list(generate(model, prompt, count)) == expected
    model = model.float()
    assert expected == fresh_decoding(model, prompt, count)
    assert list(SelfSpeculation(model, prompt, count, exit_layer=3, draft_length=3)) == expected
    assert StaticDecoder(model).decode([prompt], count) == [expected]
    for draft_weights in (None, "float32"):
        decoder = StaticSelfSpeculation(model, exit_layer=3, draft_length=3, draft_weights=draft_weights)
        assert decoder.decode([prompt], count) == [expected]


def test_a_drafter_holds_only_the_blocks_of_its_layers() -> None:
    for share, blocks in (("immediate", 2), ("repeat_all", 3), ("reverse", 3)):
        drafter = FusedLlama(shared(share), layers=3)
        assert (drafter.layers, len(drafter.blocks), len(drafter.new_cache(1, 8).keys)) == (3, blocks, 3)


@torch.no_grad()
def test_cached_decoding_equals_the_unrolled_models() -> None:
    model = shared()
    prompt = tokens(1, 5)[0]
    assert list(generate(model, prompt, 40)) == list(generate(unrolled(model), prompt, 40))


@pytest.mark.parametrize("share", ORDERS)
def test_share_kv_attends_to_the_first_visits_keys_and_values(share: str) -> None:
    model = shared(share, share_kv=True)
    backbone, text = model.model, tokens()
    rotary = (backbone.cosines[: text.shape[1]], backbone.sines[: text.shape[1]])
    x, held = model.embed(text), {}
    for block in ORDERS[share]:
        layer = backbone.layers[block]
        attention, normal = layer.self_attn, layer.input_layernorm(x)

        def heads(weights: Tensor, count: int, normal: Tensor = normal) -> Tensor:
            return weights(normal).view(*normal.shape[:2], count, 6).transpose(1, 2)

        if block not in held:
            k, v = rotate(heads(attention.k_proj, 2), rotary), heads(attention.v_proj, 2)
            held[block] = (k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1))
        k, v = held[block]
        scores = rotate(heads(attention.q_proj, 4), rotary) @ k.transpose(2, 3) / 6**0.5
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        x = x + attention.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    expected = model.head(x)
    torch.testing.assert_close(model(text), expected, atol=1e-12, rtol=0)
    assert not torch.allclose(shared(share)(text), expected, atol=1e-2)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(out.square().sum(), parameters) for out in (model(text), expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_share_kv_halves_the_cache() -> None:
    slots = [model.new_cache().keys.shape[0] for model in (shared(), shared(share_kv=True))]
    assert slots == [6, 3]
    assert [visit.reuse for visit in visits([0, 0, 1, 1], share_kv=True)] == [False, True, False, True]


# Hugging Face


@pytest.mark.parametrize("share", ORDERS)
@torch.no_grad()
def test_the_exported_folder_holds_one_copy_and_computes_the_same(share: str, tmp_path: Path) -> None:
    model = shared(share).float()
    once, plain = tmp_path / "once", tmp_path / "unrolled"
    for folder in (once, plain):
        folder.mkdir()
        save_llama(model, folder, unrolled=folder == plain)
    theirs = AutoModelForCausalLM.from_pretrained(once, trust_remote_code=True, local_files_only=True).eval()
    copies = AutoModelForCausalLM.from_pretrained(plain, local_files_only=True).eval()
    prompt = tokens(1, 5)
    expected = list(generate(model, prompt[0], 40))
    for peer in (theirs, copies):
        torch.testing.assert_close(peer(tokens()).logits, model(tokens()), atol=1e-4, rtol=1e-4)
        decoded = peer.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)
        assert decoded[0, 5:].tolist() == expected
    blocks = sum(p.numel() for name, p in model.named_parameters() if name.startswith("model.layers."))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (once, plain)]
    assert sizes[1] - sizes[0] == pytest.approx(4 * blocks, rel=0.1)  # and a longer header
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_the_exported_folder_loads_back(tmp_path: Path) -> None:
    model = shared("reverse").float()
    save_llama(model, tmp_path)
    back = load_llama(tmp_path)
    assert (back.share, back.layers) == ("reverse", 6)
    torch.testing.assert_close(back(tokens()), model(tokens()), atol=1e-5, rtol=1e-5)


def test_share_kv_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="share_kv"):
        save_llama(shared(share_kv=True), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_copied_model_keeps_its_visits() -> None:
    model = shared()
    assert torch.equal(copy.deepcopy(model)(tokens()), model(tokens()))
