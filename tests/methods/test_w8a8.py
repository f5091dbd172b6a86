"""A W8A8 model against the same model computed with integers, layer by layer."""

import copy

import pytest
import torch
from torch import nn

from edgetrain.methods.w8a8 import W8A8Linear, quantize_w8a8
from edgetrain.models.llama import Llama


def llama(tied: bool = True) -> Llama:
    torch.manual_seed(0)
    model = Llama(50, dim=16, layers=3, heads=2, kv_heads=1, hidden_dim=32, context=16, tied=tied)
    for parameter in model.parameters():
        parameter.data.mul_(4)  # activations that differ from token to token
    return model.eval()


TOKENS = torch.arange(24).view(2, 12)


def integers(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """One scale a token, one an output channel, int32 in between."""
    token = x.abs().amax(-1, keepdim=True) / 127
    channel = linear.weight.abs().amax(1) / 127
    sums = (x / token).round().int() @ (linear.weight / channel[:, None]).round().int().T
    return sums.float() * token * channel


@pytest.mark.parametrize("head", [False, True])
def test_the_model_computes_its_linear_layers_with_integers(head: bool) -> None:
    model, reference = llama(), llama()
    for name, module in reference.named_modules():
        if isinstance(module, nn.Linear) and (head or name != "lm_head"):
            module.forward = lambda x, linear=module: integers(linear, x)
    with torch.no_grad():
        torch.testing.assert_close(quantize_w8a8(model, head)(TOKENS), reference(TOKENS), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(reference(TOKENS), model(TOKENS), atol=1e-3)


def test_the_model_itself_stays_as_it_was_and_the_copy_is_close() -> None:
    model = llama()
    before = copy.deepcopy(model.state_dict())
    quantized = quantize_w8a8(model.train())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(module, W8A8Linear) for module in model.modules())
    model.eval()
    with torch.no_grad():
        error = (quantized(TOKENS) - model(TOKENS)).norm() / model(TOKENS).norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_norms_and_by_default_the_head_keep_their_weights(tied: bool) -> None:
    model = llama(tied)
    kept, whole = quantize_w8a8(model), quantize_w8a8(model, head=True)
    assert isinstance(kept.lm_head, nn.Linear)
    assert isinstance(whole.lm_head, W8A8Linear)
    for each in (kept, whole):
        assert torch.equal(each.model.embed_tokens.weight, model.model.embed_tokens.weight)
        assert sum(isinstance(module, W8A8Linear) for module in each.model.modules()) == 3 * 7


def test_a_scale_is_an_output_channels_and_a_tokens() -> None:
    linear = nn.Linear(8, 4)
    linear.weight.data[2] *= 1000  # one channel's size does not spoil the others
    x = torch.randn(1, 3, 8)
    x[0, 1] *= 1000  # nor one token's
    with torch.no_grad():
        ratio = (W8A8Linear(linear)(x) - linear(x)).abs() / (x.norm(dim=-1, keepdim=True) * linear.weight.norm(dim=1))
    assert ratio.max() < 0.02


def test_a_layer_that_stands_in_two_places_is_quantised_in_both() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"first": nn.Sequential(shared), "second": nn.Sequential(shared)})
    quantized = quantize_w8a8(model)
    x = torch.randn(2, 4)
    assert isinstance(quantized["second"][0], W8A8Linear)
    assert torch.equal(quantized["first"](x), quantized["second"](x))
