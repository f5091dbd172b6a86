"""What must hold on a GPU too."""

import pytest
import torch

from edgetrain.decoding.autoregressive import generate
from edgetrain.decoding.self_speculative import SelfSpeculation
from edgetrain.models.llama import Llama


@pytest.mark.gpu
def test_self_speculative_output_equals_greedy_on_a_gpu() -> None:
    torch.manual_seed(0)
    model = Llama(64, dim=64, layers=4, heads=4, kv_heads=2, hidden_dim=96, context=128).cuda().double().eval()
    prompt = torch.arange(10, device="cuda")
    greedy = list(generate(model, prompt, 60))
    for exit_layer in (1, 2, 3):
        assert list(SelfSpeculation(model, prompt, 60, exit_layer=exit_layer, draft_length=4)) == greedy


@pytest.mark.gpu
def test_logits_of_a_gpu_equal_those_of_the_processor() -> None:
    torch.manual_seed(0)
    model = Llama(64, dim=64, layers=4, heads=4, kv_heads=2, hidden_dim=96, context=128).double().eval()
    tokens = torch.arange(20)[None]
    expected = model(tokens)
    torch.testing.assert_close(model.cuda()(tokens.cuda()).cpu(), expected)
