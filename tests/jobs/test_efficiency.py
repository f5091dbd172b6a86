"""FLOPs by hand, from torch's counter on a real pass, and the peaks of data sheets."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from edgetrain.folder import RunFolder
from edgetrain.jobs.efficiency import PEAKS, forward_flops, peak_flops, peak_memory, training_flops
from edgetrain.models.llama import Llama

SIZES = {"vocab_size": 300, "dim": 64, "layers": 3, "heads": 4, "kv_heads": 2, "hidden_dim": 96, "context": 32}
BLOCK = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96  # weights: queries and output, keys and values, SwiGLU
HEAD = 300 * 64
N = 32


@pytest.mark.parametrize(("changes", "visits"), [({}, 3), ({"tied": False}, 3), ({"share": "immediate"}, 6)])
def test_a_token_costs_6_a_weight_and_12_a_layer_width_and_position(changes: dict[str, object], visits: int) -> None:
    """Blocks that are visited twice cost twice; the embedding is looked up, which is no product."""
    model = Llama(**SIZES | changes).eval()
    by_hand = 6 * (visits * BLOCK + HEAD) + 12 * visits * 64 * N
    assert training_flops(model, [(5, N)]) == 5 * N * by_hand


def test_share_kv_saves_the_second_visits_keys_and_values() -> None:
    model = Llama(**SIZES, share="immediate", share_kv=True).eval()
    by_hand = 6 * (6 * BLOCK - 3 * 64 * 32 * 2 + HEAD) + 12 * 6 * 64 * N
    assert training_flops(model, [(1, N)]) == N * by_hand


def test_mobilellm_125m_at_2048() -> None:
    """124,635,456 weights less the norms', and 30 layers of width 576."""
    with torch.device("meta"):
        model = Llama(32000, 576, 30, 9, 3, 1536, 2048).eval()
    matrices = 124_635_456 - 61 * 576
    assert training_flops(model, [(1, 2048)]) == 2048 * (6 * matrices + 12 * 30 * 576 * 2048)


def test_three_times_a_forward_pass_is_what_torch_counts_in_a_real_training_pass() -> None:
    """The embedding's rows have no product, so its gradient has none; the input of the first product has a gradient."""
    model = Llama(**SIZES).train()
    tokens = torch.randint(300, (2, N))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(tokens).sum().backward()
    assert training_flops(model.eval(), [(2, N)]) == counter.get_total_flops()


def test_hugging_faces_llama_costs_what_ours_does() -> None:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
    )
    assert forward_flops(LlamaForCausalLM(config).eval(), [(2, N)]) == forward_flops(Llama(**SIZES).eval(), [(2, N)])


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == peak
    assert peak_flops(torch.device("cpu")) is None
    assert all(value > 1e14 for value in PEAKS.values())


def test_peak_memory_is_that_of_the_process() -> None:
    """It holds torch and what was just allocated, and no machine here has a TiB."""
    before = peak_memory(torch.device("cpu"))
    torch.ones(2**28).sum()  # 1 GiB
    after = peak_memory(torch.device("cpu"))
    assert 0.05 < before <= after < 1024
    assert after > 1


def test_a_finished_run_says_how_efficient_it_was(finished_run: RunFolder) -> None:
    """A batch of 4 windows of 32 tokens; SMALL's model; no peak is known for a CPU."""
    metrics = finished_run.read_json("metrics.json")
    block = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64
    assert metrics["flops_per_token"] == 6 * (4 * block + 300 * 32) + 12 * 4 * 32 * 32
    assert metrics["flops_per_s"] == pytest.approx(metrics["flops_per_token"] * metrics["tokens_per_s"])
    assert metrics["peak_memory_gib"] > 0.05
    assert "mfu" not in metrics
