"""A traced model's layers: counted by hand, by torch's own counter, and followed from tensor to tensor."""

from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgetrain.errors import UserError
from edgetrain.hardware.formats import parse_format
from edgetrain.hardware.tracing import trace
from edgetrain.hardware.workload import MAC_KINDS, Layer, Loops, Workload
from edgetrain.models.llama import Llama


def counted_macs(model: nn.Module, *inputs: Tensor) -> int:
    """By torch's counter, which sees attention only where it is made of products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model.eval()(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def only(workload: Workload, kind: str) -> Layer:
    (layer,) = (layer for layer in workload if layer.kind == kind)
    return layer


def named(workload: Workload) -> dict[str, Layer]:
    return {layer.name: layer for layer in workload}


def names(tensors) -> list[str]:
    return [tensor.name for tensor in tensors]


class Lambda(nn.Module):
    """A function of tensors as a model, with modules and parameters of its own."""

    def __init__(self, function, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


# Whole models


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", 11_689_512),
        ("mobilenetv3_large_100", 5_483_032),
        ("efficientnet_b0", 5_288_548),
        ("vit_tiny_patch16_224", 5_717_416),
    ],
)
def test_a_timm_models_macs_are_torchs_and_its_weights_the_published_count(name, weights):
    timm = pytest.importorskip("timm")
    model, image = timm.create_model(name), torch.zeros(1, 3, 224, 224)
    workload = trace(model, (image,), name)
    assert workload.macs == counted_macs(model, image)
    assert workload.weights == parameters(model) == weights
    assert workload.name == name


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mobilenetv2_100", "convnext_atto", "swin_tiny_patch4_window7_224", "densenet121", "levit_128s", "ghostnet_100"],
)
def test_macs_of_more_timm_models_are_torchs(name):
    timm = pytest.importorskip("timm")
    model, image = timm.create_model(name), torch.zeros(1, 3, 224, 224)
    workload = trace(model, (image,), name)
    assert workload.macs == counted_macs(model, image)
    assert workload.weights >= parameters(model)  # position tables are stored as they are read, once for each pair


@pytest.mark.parametrize("kind", ["bert", "gpt2", "mamba"])
def test_macs_of_other_models_of_transformers_are_torchs(kind):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "bert": {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "hidden_size": 32},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "bos_token_id": 0, "eos_token_id": 0},
        "mamba": {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4},
    }
    config = transformers.AutoConfig.for_model(kind, vocab_size=97, **sizes[kind])
    model = transformers.AutoModel.from_config(config)
    assert trace(model, (TOKENS,)).macs == counted_macs(model, TOKENS)


class UNet(nn.Module):
    """Two levels: down by pooling, up by a transposed convolution, joined with what was before the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.bottom = nn.Conv2d(8, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        before = self.down(x)
        return self.head(torch.cat((before, self.up(self.bottom(self.pool(before)))), 1))


def test_a_unets_layers_are_counted_by_hand_and_joined():
    model, image = UNet(), torch.zeros(2, 1, 16, 12)
    workload = trace(model, (image,))
    layers = named(workload)
    assert [(layer.name, layer.kind) for layer in workload] == [
        ("down.0", "conv"),
        ("down.1", "norm"),
        ("down.2", "elementwise"),
        ("pool", "pool"),
        ("bottom", "conv"),
        ("up", "conv"),
        ("cat", "move"),
        ("head", "conv"),
    ]
    assert layers["up"].macs == 2 * (8 * 6) * 16 * 8 * (2 * 2)  # each input pixel with the whole kernel
    assert all(layer.loops.macs == layer.macs for layer in workload if layer.kind in MAC_KINDS)
    assert workload.macs == counted_macs(model, image)
    assert workload.weights == parameters(model)
    assert layers["down.1"].weights == 16  # a scale and a shift for each channel
    assert layers["pool"].loops == Loops(2, 8, 8, 8, 8, 6, 2, 2, 2, 2)
    assert layers["pool"].operations == 2 * 8 * 8 * 6 * 4
    assert names(layers["cat"].inputs) == ["down.2", "up"]
    assert (workload.inputs, workload.outputs) == (("x",), ("head",))


def test_macs_of_a_transformer_encoder_are_torchs():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    tokens = torch.zeros(3, 7, 16)
    workload = trace(encoder, (tokens,))
    assert workload.macs == counted_macs(encoder, tokens)
    assert workload.weights == parameters(encoder)


SIZES = {"vocab_size": 97, "dim": 32, "heads": 4, "kv_heads": 2, "hidden_dim": 48, "context": 40}
TOKENS = torch.zeros(1, 8, dtype=torch.int64)
TABLES = 2 * 8 * 8  # rotary cosines and sines: positions by width of a head


def test_a_llama_without_a_cache_costs_what_torch_counts_and_ties_its_embeddings():
    model = Llama(**SIZES, layers=2, tied=True)
    workload = trace(nn.Sequential(model), (TOKENS,))
    assert workload.macs == counted_macs(model, TOKENS)
    assert workload.weights == parameters(model) + TABLES
    assert named(workload)["0.lm_head"].weight_name == "0.model.embed_tokens.weight"
    assert named(workload)["0.model.embed_tokens"].operations == 8  # one look-up a token, not one a row of the table


def test_blocks_that_are_visited_twice_are_stored_once_and_computed_twice():
    shared, plain = Llama(**SIZES, layers=2, share="immediate"), Llama(**SIZES, layers=4)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    workload = trace(nn.Sequential(shared), (tokens,))
    assert workload.macs == trace(nn.Sequential(plain), (tokens,)).macs
    assert workload.weights == parameters(shared) + TABLES
    gates = [layer for layer in workload if layer.weight_name == "0.model.layers.1.mlp.gate_proj.weight"]
    assert [layer.name for layer in gates] == ["0.model.layers.1.mlp.gate_proj", "0.model.layers.1.mlp.gate_proj:2"]


@pytest.mark.parametrize("share_kv", [False, True])
def test_a_llamas_components_are_prefill_and_decode_on_one_cache(share_kv):
    model = Llama(**SIZES, layers=2, share="immediate" if share_kv else "none", share_kv=share_kv)
    visits, n = 4 if share_kv else 2, 8
    workload = trace(model, (TOKENS,))
    assert workload.components == ("prefill", "decode")
    own, again = 32 * 32 * 2 + 3 * 32 * 48, 2 * 32 * 16  # q, o and the MLP; k and v, which later visits reuse
    attention, head = 2 * 32, 32 * 97
    prefill = visits * n * own + 2 * n * again + visits * n * n * attention + head
    assert workload.component("prefill").macs == prefill
    assert workload.component("decode").macs == visits * own + 2 * again + visits * n * attention + head
    cache = {f"{side}_{slot}" for side in ("keys", "values") for slot in range(2)}
    assert {name for name, tensor in workload.activations.items() if tensor.state} == cache
    assert cache < set(workload.inputs) and cache < set(workload.outputs)
    assert workload.activations["keys_0"].shape == (1, 2, n, 8)
    decode = workload.component("decode")
    writes = [layer for layer in decode if cache & set(names(layer.outputs))]
    assert [layer.outputs[0].shape for layer in writes] == [(1, 2, 1, 8)] * 4
    assert all(layer.kind == "move" for layer in writes)
    scores = [layer for layer in decode if layer.name.endswith("qk:2") or ".qk" in layer.name]
    assert {layer.inputs[1].name for layer in scores} == {"keys_0", "keys_1"}
    assert all(layer.inputs[1].shape == (1, 2, n, 8) for layer in scores)
    assert workload.weights == parameters(model) + TABLES + 2 * 8  # decode reads one row of the tables


def test_a_llama_of_transformers_costs_what_ours_does():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=40, tie_word_embeddings=True,
    )  # fmt: skip
    peer = transformers.LlamaForCausalLM(config)
    workload = trace(peer, (TOKENS,))
    assert workload.macs == trace(nn.Sequential(Llama(**SIZES, layers=2)), (TOKENS,)).macs
    assert workload.weights == parameters(peer) + TABLES
    assert {layer.kind for layer in workload} == {"embedding", "linear", "matmul", "softmax", "elementwise", "move"}


# Layers


CONVOLUTIONS = {
    "strided": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 9, 11), "conv", Loops(2, 1, 8, 6, 5, 6, 3, 3, 2, 2)),
    "dilated": (nn.Conv2d(6, 8, 3, dilation=2), (2, 6, 9, 11), "conv", Loops(2, 1, 8, 6, 5, 7, 3, 3)),
    "grouped": (nn.Conv2d(6, 9, (1, 5), groups=3), (2, 6, 9, 11), "grouped", Loops(2, 3, 9, 6, 9, 7, 1, 5)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), (2, 6, 9, 11), "depthwise", Loops(2, 6, 12, 6, 7, 9, 3, 3)),
    "one channel": (nn.Conv2d(1, 1, 3), (2, 1, 9, 11), "conv", Loops(2, 1, 1, 1, 7, 9, 3, 3)),
    "1-d": (nn.Conv1d(6, 8, 5, stride=3), (2, 6, 20), "conv", Loops(2, 1, 8, 6, 6, 1, 5, 1, 3, 1)),
    "3-d": (nn.Conv3d(6, 8, (2, 3, 3)), (2, 6, 5, 9, 11), "conv", Loops(2 * 4, 1, 8, 6 * 2, 7, 9, 3, 3)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, 2), (2, 6, 9, 11), "conv", Loops(2, 1, 8 * 9, 6, 9, 11)),
    "transposed, grouped": (
        nn.ConvTranspose2d(6, 8, (3, 2), 2, groups=2),
        (2, 6, 9, 11),
        "grouped",
        Loops(2, 2, 8 * 6, 6, 9, 11),
    ),
}


@pytest.mark.parametrize(("module", "shape", "kind", "loops"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolutions_loops_are_written_by_hand_and_its_macs_torchs(module, shape, kind, loops):
    layer = trace(module, (torch.zeros(shape),)).layers[0]
    assert (layer.kind, layer.loops) == (kind, loops)
    assert layer.macs == loops.macs == counted_macs(module, torch.zeros(shape))
    assert layer.operations == 2 * layer.macs
    assert (layer.weights, layer.biases) == (module.weight.numel(), module.bias.numel())


WEIGHT = nn.Parameter(torch.zeros(6, 5))
PRODUCTS = {
    "linear": (lambda m, x: F.linear(x, m.w.T), (2, 3, 6), "linear", Loops(2, 1, 5, 6, 3)),
    "times a weight": (lambda m, x: x @ m.w, (2, 3, 6), "linear", Loops(2, 1, 5, 6, 3)),
    "a weight times": (lambda m, x: m.w.T @ x, (6, 3), "linear", Loops(3, 1, 5, 6)),
    "addmm": (lambda m, x: torch.addmm(x[:, :5], x, m.w), (4, 6), "linear", Loops(4, 1, 5, 6)),
    "vector": (lambda m, x: x[:, 0] @ m.w, (6, 2), "linear", Loops(1, 1, 5, 6)),
    "image": (lambda m, x: x @ m.w, (2, 3, 4, 6), "linear", Loops(2, 1, 5, 6, 3, 4)),
    "einsum with a weight": (lambda m, x: torch.einsum("btf,fo->bto", x, m.w), (2, 3, 6), "linear", None),
    "bmm": (lambda m, x: torch.bmm(x, x.mT), (2, 3, 6), "matmul", Loops(1, 2, 2 * 3, 2 * 6, 3)),
    "heads": (lambda m, x: x @ x.mT, (2, 4, 3, 6), "matmul", Loops(2, 4, 4 * 3, 4 * 6, 3)),
    "baddbmm": (lambda m, x: torch.baddbmm(x[:, :, :3], x, x.mT), (2, 3, 6), "matmul", Loops(1, 2, 6, 12, 3)),
    "einsum": (lambda m, x: torch.einsum("bhqd,bhkd->bhqk", x, x), (2, 4, 3, 6), "matmul", Loops(1, 8, 24, 48, 3)),
}


@pytest.mark.parametrize(("function", "shape", "kind", "loops"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_products_loops_are_written_by_hand_and_its_macs_torchs(function, shape, kind, loops):
    model = Lambda(function, w=WEIGHT)
    layer = only(trace(model, (torch.zeros(shape),)), kind)
    assert layer.macs == layer.loops.macs == counted_macs(model, torch.zeros(shape))
    assert loops is None or layer.loops == loops
    assert layer.weights == (WEIGHT.numel() if kind == "linear" else 0)


def test_attention_is_scores_softmax_and_a_sum_of_values():
    def attend(_, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    q, k, v = torch.zeros(2, 4, 3, 8), torch.zeros(2, 2, 5, 8), torch.zeros(2, 2, 5, 6)
    scores, softmax, mixed = trace(Lambda(attend), (q, k, v))
    assert [layer.kind for layer in (scores, softmax, mixed)] == ["matmul", "softmax", "matmul"]
    assert (scores.macs, mixed.macs) == (2 * 4 * 3 * 5 * 8, 2 * 4 * 3 * 5 * 6)
    assert scores.outputs[0].shape == softmax.outputs[0].shape == (2, 4, 3, 5)
    assert softmax.operations == 6 * 2 * 4 * 3 * 5  # scale, then five for the softmax
    assert scores.inputs[1].elements == 2 * 2 * 5 * 8  # keys are read once for two heads
    assert names(mixed.inputs) == ["qk", "softmax", "inputs_2"][1:]


def test_an_lstm_has_a_row_for_each_layer_and_direction():
    lstm, x = nn.LSTM(8, 6, num_layers=2, bidirectional=True, proj_size=3, batch_first=True), torch.zeros(2, 7, 8)
    workload = trace(lstm, (x,))
    assert [layer.name for layer in workload] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    first, _, second, _ = workload
    # Four gates of 6 from 8 inputs and 3 projected hidden features, then the projection from 6 to 3.
    assert first.macs == 2 * 7 * (4 * 6 * (8 + 3) + 6 * 3)
    assert second.macs == 2 * 7 * (4 * 6 * (2 * 3 + 3) + 6 * 3)
    assert first.loops == Loops(2, 1, 24, 11, 7)
    assert first.operations == 2 * first.macs + 2 * 7 * 6 * 9
    assert workload.weights == parameters(lstm)
    assert [tensor.shape for tensor in second.inputs] == [(2, 7, 6)]
    assert names(workload.layers[2].outputs) == names(workload.layers[3].outputs)  # each writes its half
    assert first.outputs[0].shape == (2, 7, 3)


RECURRENT = {
    "gru": (nn.GRU(8, 6), (7, 2, 8), 2 * 7 * 3 * 6 * (8 + 6)),
    "rnn": (nn.RNN(8, 6, bias=False), (7, 2, 8), 2 * 7 * 6 * (8 + 6)),
    "unbatched": (nn.GRU(8, 6, batch_first=True), (7, 8), 7 * 3 * 6 * (8 + 6)),
    "cell": (nn.LSTMCell(8, 6), (2, 8), 2 * 4 * 6 * (8 + 6)),
}


@pytest.mark.parametrize(("module", "shape", "macs"), RECURRENT.values(), ids=RECURRENT)
def test_recurrent_macs_are_counted_by_hand(module, shape, macs):
    workload = trace(module, (torch.zeros(shape),))
    assert workload.macs == only(workload, "recurrent").macs == macs
    assert workload.weights == parameters(module)


def test_the_hidden_state_that_goes_in_and_comes_out_is_state():
    model = Lambda(lambda m, x, h: m.gru(x, h), gru=nn.GRU(8, 6))
    workload = trace(model, (torch.zeros(7, 2, 8), torch.zeros(1, 2, 6)))
    layer = only(workload, "recurrent")
    assert [(tensor.name, tensor.state) for tensor in layer.inputs] == [("inputs_0", False), ("inputs_1", True)]
    assert [(tensor.shape, tensor.state) for tensor in layer.outputs] == [((7, 2, 6), False), ((1, 2, 6), True)]
    assert workload.outputs == ("gru", "gru.1")


POOLS = {
    "max": (nn.MaxPool2d(3, 2, 1), (2, 4, 9, 9), Loops(2, 4, 4, 4, 5, 5, 3, 3, 2, 2), 2 * 4 * 25 * 9),
    "average": (nn.AvgPool2d((2, 3)), (2, 4, 8, 9), Loops(2, 4, 4, 4, 4, 3, 2, 3, 2, 3), 2 * 4 * 72),
    "global": (nn.AdaptiveAvgPool2d(1), (2, 4, 7, 5), Loops(2, 4, 4, 4, 1, 1, 7, 5, 7, 5), 2 * 4 * 35),
    "uneven": (nn.AdaptiveAvgPool2d((2, 1)), (2, 4, 5, 1), Loops(2, 4, 4, 4, 2, 1, 3, 1, 2, 1), 2 * 4 * 6),
    "1-d": (nn.MaxPool1d(2), (2, 4, 8), Loops(2, 4, 4, 4, 4, 1, 2, 1, 2, 1), 2 * 4 * 8),
    "mean": (Lambda(lambda _, x: x.mean((2, 3))), (2, 4, 7, 5), Loops(2, 4, 4, 4, 1, 1, 7, 5), 2 * 4 * 35),
    "of tokens": (Lambda(lambda _, x: x.mean(1)), (2, 7, 4), Loops(2, 4, 4, 4, 1, 1, 1, 7), 2 * 4 * 7),
}


@pytest.mark.parametrize(("module", "shape", "loops", "operations"), POOLS.values(), ids=POOLS)
def test_pools_have_the_windows_that_they_really_use(module, shape, loops, operations):
    layer = only(trace(module, (torch.zeros(shape),)), "pool")
    assert (layer.loops, layer.operations, layer.macs) == (loops, operations, 0)


NORMS = {
    "layer": (nn.LayerNorm(6), (2, 3, 6), 7, 6, 6),
    "bare layer": (nn.LayerNorm(6, elementwise_affine=False), (2, 3, 6), 5, 0, 0),
    "rms": (nn.RMSNorm(6), (2, 3, 6), 4, 6, 0),
    "group": (nn.GroupNorm(2, 6), (2, 6, 3), 7, 6, 6),
    "batch": (nn.BatchNorm1d(6), (2, 6, 3), 2, 12, 0),
    "bare batch": (nn.BatchNorm1d(6, affine=False), (2, 6, 3), 2, 12, 0),
}


@pytest.mark.parametrize(("module", "shape", "steps", "weights", "biases"), NORMS.values(), ids=NORMS)
def test_norms_store_a_scale_and_a_shift(module, shape, steps, weights, biases):
    layer = only(trace(module, (torch.zeros(shape),)), "norm")
    assert (layer.operations, layer.weights, layer.biases) == (steps * 36, weights, biases)


POINTWISE = {
    "relu": (nn.ReLU(), "elementwise", 1),
    "gelu": (nn.GELU(), "elementwise", 1),
    "leaky": (nn.PReLU(), "elementwise", 1),
    "cast": (Lambda(lambda _, x: x.half()), "elementwise", 1),
    "broadcast": (Lambda(lambda _, x: x[:1] + x), "elementwise", 1),
    "comparison": (Lambda(lambda _, x: x > 0), "elementwise", 1),
    "bilinear": (Lambda(lambda _, x: F.interpolate(x[None], size=(3, 6), mode="bilinear")), "elementwise", 7),
    "softmax": (nn.Softmax(-1), "softmax", 5),
    "log softmax": (nn.LogSoftmax(-1), "softmax", 5),
}


@pytest.mark.parametrize(("module", "kind", "steps"), POINTWISE.values(), ids=POINTWISE)
def test_operations_of_a_layer_without_products_are_counted_by_the_number(module, kind, steps):
    layer = only(trace(module, (torch.zeros(2, 3, 6),)), kind)
    assert (layer.operations, layer.macs) == (steps * 36, 0)


def test_a_reduction_adds_every_number_that_it_reads():
    layer = only(trace(Lambda(lambda _, x: x.sum(-1)), (torch.zeros(2, 3, 6),)), "elementwise")
    assert (layer.operations, layer.outputs[0].shape) == (36, (2, 3))


def test_a_bag_of_rows_is_looked_up_and_summed():
    bag = nn.EmbeddingBag(9, 4, mode="sum")
    layer = only(trace(bag, (torch.zeros(2, 3, dtype=torch.int64),)), "embedding")
    assert (layer.operations, layer.weights, layer.outputs[0].shape) == (6 * (1 + 4), 36, (2, 4))


MOVES = {
    "pad": (lambda x: F.pad(x, (1, 1)), (2, 4, 6, 8)),
    "shuffle": (lambda x: F.pixel_shuffle(x, 2), (2, 1, 12, 12)),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), (2, 8, 6, 6)),
    "transposed copy": (lambda x: x.mT.contiguous() * 1, (2, 4, 6, 6)),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), (2, 4, 12, 12)),
    "rows": (lambda x: x[:, torch.tensor([0, 2])], (2, 2, 6, 6)),
}


@pytest.mark.parametrize(("function", "shape"), MOVES.values(), ids=MOVES)
def test_moves_copy_and_compute_nothing(function, shape):
    layer = only(trace(Lambda(lambda _, x: function(x)), (torch.zeros(2, 4, 6, 6),)), "move")
    assert (layer.macs, layer.operations, layer.outputs[0].shape) == (0, 0, shape)


# Tensors


def test_edges_of_a_residual_block_keep_the_input_alive():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(x + self.second(self.relu(self.first(x))))

    workload = trace(Block(), (torch.zeros(1, 4, 8, 8),))
    assert [(layer.name, names(layer.inputs), names(layer.outputs)) for layer in workload] == [
        ("first", ["x"], ["first"]),
        ("relu", ["first"], ["relu"]),
        ("second", ["relu"], ["second"]),
        ("add", ["x", "second"], ["add"]),
        ("relu:2", ["add"], ["relu:2"]),
    ]
    assert (workload.inputs, workload.outputs) == (("x",), ("relu:2",))


def test_views_are_the_tensor_and_a_part_has_its_own_shape():
    def swish(m, x):
        gate, up = m.both(x).view(2, 3, 8).transpose(0, 1).chunk(2, dim=-1)
        return F.silu(gate) * up

    workload = trace(Lambda(swish, both=nn.Linear(6, 8)), (torch.zeros(6, 6),))
    assert [layer.name for layer in workload] == ["both", "silu", "mul"]
    linear, silu, product = workload
    assert linear.outputs[0].shape == (6, 8)
    assert [(tensor.name, tensor.shape) for tensor in silu.inputs] == [("both", (3, 2, 4))]
    assert [(tensor.name, tensor.shape) for tensor in product.inputs] == [("silu", (3, 2, 4)), ("both", (3, 2, 4))]
    assert workload.activations["both"].shape == (6, 8)


def test_two_parts_of_one_tensor_are_both_read_and_one_part_once():
    def parts(_, x):
        return (x[:, :4] + x[:, 4:]) * x[:, :1].expand(2, 4), x * x

    added, scaled, squared = trace(Lambda(parts), (torch.zeros(2, 8),))
    assert [tensor.elements for tensor in added.inputs] == [8, 8]
    assert [tensor.elements for tensor in scaled.inputs] == [8, 2]  # one column, however often it is used
    assert [tensor.elements for tensor in squared.inputs] == [16]


def test_a_tensor_that_is_written_in_parts_is_one_tensor():
    def put_together(_, x, y):
        both = x.new_zeros(2, 6)
        both[:, :4] = x
        both[:, 4:5] = y
        both[0] = 3.0
        return both * 2

    workload = trace(Lambda(put_together), (torch.zeros(2, 4), torch.zeros(2, 1)))
    assert [(layer.name, names(layer.inputs), names(layer.outputs)) for layer in workload] == [
        ("copy", ["inputs_0"], ["copy"]),
        ("copy:2", ["inputs_1"], ["copy"]),
        ("fill", [], ["copy"]),
        ("mul", ["copy"], ["mul"]),
    ]
    assert [layer.outputs[0].shape for layer in workload] == [(2, 6), (2, 1), (6,), (2, 6)]


def test_a_buffer_that_the_model_writes_is_state():
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(1, 4))
            self.mix = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.mix(x + self.last)
            self.last.copy_(y)
            return y

    workload = trace(Memory(), (torch.zeros(1, 4),))
    assert [(layer.kind, names(layer.inputs), names(layer.outputs)) for layer in workload] == [
        ("elementwise", ["x", "last"], ["add"]),
        ("linear", ["add"], ["mix"]),
        ("move", ["mix"], ["last"]),
    ]
    assert [tensor.state for tensor in workload.layers[0].inputs] == [False, True]
    assert (workload.inputs, workload.outputs) == (("last", "x"), ("last", "mix"))
    assert workload.weights == 20


def test_a_cache_that_is_joined_and_given_back_is_state():
    def stream(m, x, cache):
        frames = torch.cat((cache, x), dim=2)
        return m.conv(frames), frames[:, :, -2:]

    model = Lambda(stream, conv=nn.Conv1d(3, 5, 3))
    workload = trace(model, (torch.zeros(1, 3, 4), torch.zeros(1, 3, 2)))
    cat = only(workload, "move")
    assert [(tensor.name, tensor.state) for tensor in cat.inputs] == [("inputs_1", True), ("inputs_0", False)]
    assert cat.outputs[0].state and workload.outputs == ("conv", "cat")


def test_what_nobody_reads_is_left_out():
    model = Lambda(lambda m, x: m.a(x) + 0 * len(m.b(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 9))
    assert [layer.name for layer in trace(model, (torch.zeros(1, 4),)) if layer.macs] == ["a"]


def test_masks_and_positions_are_no_layers_and_a_computed_weight_is_the_layers():
    def masked(m, x):
        mask = torch.arange(4)[:, None] >= torch.arange(4)
        return (m.mix(x) @ (m.scale * m.weight).T).masked_fill(~mask, -1.0)

    parts = {"mix": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))}
    model = Lambda(masked, **parts, scale=nn.Parameter(torch.ones(4)), weight=nn.Parameter(torch.ones(4, 4)))
    workload = trace(model, (torch.zeros(4, 4),))
    assert [(layer.kind, layer.weights) for layer in workload] == [("linear", 16), ("linear", 16), ("elementwise", 0)]
    assert workload.weights == 36


def test_parts_of_one_weight_are_counted_each_and_two_readers_of_one_part_once():
    def parts(m, x, y):
        q, k = m.weight.chunk(2)
        return F.linear(x, q), F.linear(y, k), F.linear(x, k)

    workload = trace(Lambda(parts, weight=nn.Parameter(torch.zeros(6, 4))), (torch.zeros(1, 4), torch.zeros(2, 4)))
    assert [layer.weight_name for layer in workload] == ["weight[0:12]", "weight[12:24]", "weight[12:24]"]
    assert workload.weights == 24


def test_a_tied_head_with_a_bias_of_its_own_stores_the_bias():
    model = Lambda(lambda m, x: m.head(m.table(x)), table=nn.Embedding(9, 4), head=nn.Linear(4, 9))
    model.head.weight = model.table.weight
    workload = trace(model, (torch.zeros(1, 3, dtype=torch.int64),))
    assert workload.weights == 9 * 4 + 9


def test_formats_are_those_of_the_tensors():
    class Int8(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.zeros(6, 8, dtype=torch.int8))
            self.register_buffer("scales", torch.ones(6, dtype=torch.bfloat16))

        def forward(self, x: Tensor) -> Tensor:
            return torch._weight_int8pack_mm(x, self.weight, self.scales)

    layer = only(trace(Int8(), (torch.zeros(3, 8, dtype=torch.bfloat16),)), "linear")
    assert (str(layer.weight_format), str(layer.input_format), str(layer.output_format)) == ("int8", "bf16", "bf16")
    assert (layer.weights, layer.biases, layer.macs) == (48, 6, 3 * 6 * 8)
    indices = trace(nn.Embedding(4, 2).half(), (torch.zeros(1, 3, dtype=torch.int64),)).layers[0]
    assert (str(indices.input_format), str(indices.weight_format)) == ("int64", "fp16")


def test_a_block_under_autocast_is_walked_through():
    def half(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.mix(x)
        return y.float() + x

    workload = trace(Lambda(half, mix=nn.Linear(4, 4)), (torch.zeros(2, 4),))
    assert workload.macs == 2 * 16
    assert str(only(workload, "linear").output_format) == "bf16"


def test_a_model_that_is_compiled_in_place_is_traced_as_it_is():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.compile()
    assert [layer.kind for layer in trace(model, (torch.zeros(2, 4),))] == ["linear", "elementwise"]


def test_every_module_gets_its_mode_back():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4)).train()
    model[2].eval()
    assert len(trace(model, (torch.zeros(2, 4),))) == 2  # dropout is none
    assert [module.training for module in model] == [True, True, False]
    assert not model._forward_hooks


# What modules say of themselves


class Int4(nn.Linear):
    facts = MappingProxyType({"weight_format": "int4", "density": 0.5})

    def layer_facts(self) -> dict:
        return self.facts if isinstance(self.facts, list) else dict(self.facts)


def test_a_module_says_more_of_its_layer_than_shapes_do():
    model = nn.Sequential(Int4(8, 6), nn.ReLU(), nn.Linear(6, 2))
    first, relu, last = trace(model, (torch.zeros(1, 8),))
    assert (first.weight_format, first.density) == (parse_format("int4"), 0.5)
    assert (first.weights, first.macs) == (48, 48)
    assert relu.density == last.density == 1.0
    assert str(last.weight_format) == "fp32"


def test_facts_of_a_factored_weight_hold_for_both_its_products():
    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Parameter(torch.zeros(2, 8)), nn.Parameter(torch.zeros(6, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.down), self.up)

        def layer_facts(self) -> dict:
            return {"rank": 2, "weight_format": "int8"}

    first, second = trace(nn.Sequential(LowRank()), (torch.zeros(3, 8),))
    assert [layer.name for layer in (first, second)] == ["0", "0:2"]
    assert (first.rank, second.rank, first.macs, second.macs) == (2, 2, 3 * 16, 3 * 12)
    assert str(second.weight_format) == "int8"


def test_facts_may_bring_counts_and_integer_codes():
    class Coded(Int4):
        def layer_facts(self) -> dict:
            return {"weights": 7, "macs": 5, "operands": ([[1]], [[2]])}

    layer = only(trace(nn.Sequential(Coded(8, 6)), (torch.zeros(1, 8),)), "linear")
    assert (layer.weights, layer.macs, layer.operands.inputs) == (7, 5, [[2]])


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"bits": 4}, "layer_facts\\(\\) must give a dict with some of weight_format"),
        ([4], "must give a dict"),
        ({"density": 2}, "density=2, which must be from 0.0 to 1.0"),
        ({"rank": 0}, "rank=0, which must be from 1"),
        ({"macs": 1.5}, "macs=1.5"),
        ({"weight_format": "four"}, "'four' is not a number format"),
    ],
)
def test_facts_that_cannot_be_are_a_sentence(facts, said, monkeypatch):
    monkeypatch.setattr(Int4, "facts", facts)
    with pytest.raises(UserError, match=said):
        trace(nn.Sequential(Int4(8, 6)), (torch.zeros(1, 8),))


def test_facts_of_one_layer_are_refused_for_two():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

        def layer_facts(self) -> dict:
            return {"macs": 4}

    with pytest.raises(UserError, match="module 'both': layer_facts\\(\\) gives macs, and the module makes 2 layers"):
        trace(Lambda(lambda m, x: m.both(x), both=Both()), (torch.zeros(1, 4),))


# What cannot be traced


class Choice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Linear(4, 4), Choice()), "at test_tracing.py:\\d+, in module '1': .*components\\(\\)"),
        (
            Lambda(lambda _, x: torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))),
            "the operator cond is not known, as it runs a graph of its own",
        ),
        (nn.Sequential(nn.Linear(5, 5)), "Sequential cannot be exported.*check that the example inputs fit"),
        (Lambda(lambda _, x: x.nonzero()), "Lambda.*components\\(\\)"),
        (Lambda(lambda _, x: x.topk(2).values), "the operator aten.topk.default is not known"),
        (Lambda(lambda m, x: m.conv(x[:0, None, None]), conv=nn.Conv2d(1, 1, 1)), "a conv layer of size zero"),
        (Lambda(lambda _, x: torch.fft.rfft(x).real), "a tensor is complex64, which has no format on a device"),
    ],
    ids=["control flow", "branch", "shapes", "sizes by value", "unknown operator", "nothing", "complex"],
)
def test_a_model_that_cannot_be_traced_is_a_sentence_and_nothing_else(model, said, capfd):
    with pytest.raises(UserError, match=said) as caught:
        trace(model, (torch.zeros(3, 4),))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_operator_that_keeps_the_size_counts_one_an_element_with_a_warning():
    with pytest.warns(UserWarning, match="aten.erfinv.default is counted as one operation an element"):
        layer = only(trace(Lambda(lambda _, x: torch.erfinv(x)), (torch.zeros(3, 4),)), "elementwise")
    assert layer.operations == 12


def test_example_inputs_that_are_no_tuple_are_a_sentence():
    with pytest.raises(UserError, match="example_inputs must be a tuple"):
        trace(nn.ReLU(), torch.zeros(1))
