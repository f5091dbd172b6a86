"""Blocks that are compiled or recomputed give the gradients of blocks that are neither, and keep less."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from edgetrain.methods.layerskip import DroppableLayer, LayerSkip
from edgetrain.models.llama import Llama
from edgetrain.ops.blocks import blocks, prepared, prepared_blocks
from edgetrain.tasks.language import Language

TOKENS = torch.randint(31, (6, 9), generator=torch.Generator().manual_seed(1))
SIZES = {"vocab_size": 31, "dim": 16, "layers": 4, "heads": 2, "kv_heads": 1, "hidden_dim": 24, "context": 8}


def ours(**changes: object) -> Llama:
    torch.manual_seed(0)
    return Llama(**SIZES | changes)


def hugging_face() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=31, num_key_value_heads=1, attn_implementation="sdpa", **sizes))


def gradients(model: nn.Module, p_max: float = 0.0, within: AbstractContextManager | None = None) -> dict[str, Tensor]:
    """Accumulated over two batches, so that a layer is called again before its step is over."""
    methods = []
    if p_max:
        methods = [LayerSkip(p_max=p_max, e_scale=0.3, total_steps=5, rotation=2)]
        methods[0].apply(model, methods[0].plan(model, None))
    task = Language(model, methods, None, total_steps=5).train()
    with within or nullcontext():
        for part in TOKENS.chunk(2):
            task.training_step(part, 0).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize(
    ("changes", "p_max"),
    [
        ({}, 0.0),
        ({}, 0.9),
        ({"share": "immediate"}, 0.0),
        ({"share": "reverse"}, 0.9),
        ({"share": "repeat_all", "share_kv": True}, 0.0),
    ],
)
def test_recomputed_blocks_give_the_same_gradients(changes: dict[str, object], p_max: float) -> None:
    model = ours(**changes)
    recomputed = gradients(model, p_max, prepared_blocks(model, compiled=False, recomputed=True))
    torch.testing.assert_close(recomputed, gradients(ours(**changes), p_max), rtol=0, atol=0)


@pytest.mark.parametrize("p_max", [0.0, 0.9])
def test_hugging_faces_own_checkpointing_repeats_the_draws(p_max: float) -> None:
    """It runs a whole layer again, with what a method has put before it."""
    model = hugging_face()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(model, p_max), gradients(hugging_face(), p_max), rtol=0, atol=0)


def test_draws_are_repeated_in_reverse_where_two_batches_share_a_backward_pass() -> None:
    def gradients_of_both(model: LlamaForCausalLM) -> dict[str, Tensor]:
        method = LayerSkip(p_max=0.9, e_scale=0.3, total_steps=5, rotation=2)
        method.apply(model, method.plan(model, None))
        task = Language(model, [method], None, total_steps=5).train()
        first, second = (task.training_step(part, 0) for part in TOKENS.chunk(2))
        (first + second).backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    model = hugging_face()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients_of_both(model), gradients_of_both(hugging_face()), rtol=0, atol=0)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("p_max", [0.0, 0.9])
def test_compiled_blocks_give_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, p_max: float, recomputed: bool
) -> None:
    """Traced whole, with the method's draws outside; the backend adds nothing to what was traced."""
    prepared.cache_clear()
    traced = []

    def compile_whole(forward: object) -> object:
        traced.append(forward)
        return compiler(forward, backend="aot_eager", fullgraph=True)

    compiler = torch.compile
    monkeypatch.setattr("edgetrain.ops.blocks.torch.compile", compile_whole)
    model = ours()
    found = gradients(model, p_max, prepared_blocks(model, compiled=True, recomputed=recomputed))
    torch.testing.assert_close(found, gradients(ours(), p_max), rtol=1e-5, atol=1e-6)
    assert len(traced) == 1
    prepared.cache_clear()


def test_recomputed_blocks_keep_their_inputs_only() -> None:
    def kept(recomputed: bool) -> int:
        model, sizes = ours().train(), {}

        def note(tensor: Tensor) -> Tensor:
            if not any(tensor.data_ptr() == weight.data_ptr() for weight in model.parameters()):
                sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with prepared_blocks(model, False, recomputed), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            states = model.model(TOKENS[:, :-1])
        states.sum().backward()
        return sum(sizes.values())

    state = 6 * 8 * 16 * 4  # one [batch, n, dim] in bytes
    assert kept(True) < 2 * kept(False) / 5
    assert kept(True) < 12 * state


def test_a_model_gets_its_classes_back_and_keeps_its_keys() -> None:
    model = ours()
    method = LayerSkip(p_max=0.5, e_scale=0.3, total_steps=5)
    method.apply(model, method.plan(model, None))
    classes, keys = [type(block) for block in blocks(model)], list(model.state_dict())
    with prepared_blocks(model, compiled=False, recomputed=True):
        assert [type(block) for block in blocks(model)] != classes
        assert all(type(block).__mro__.index(DroppableLayer) == 1 for block in blocks(model))  # outermost
        assert list(model.state_dict()) == keys
    assert [type(block) for block in blocks(model)] == classes


def test_a_model_without_such_blocks_has_none() -> None:
    assert len(blocks(nn.Linear(2, 2))) == 0
