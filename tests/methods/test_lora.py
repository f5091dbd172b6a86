"""LoRA is a second method through the same contract, so the contract is not shaped by LayerSkip."""

import torch

from edgetrain.methods.layerskip import LayerSkip
from edgetrain.methods.lora import LoRA
from edgetrain.models.llama import Llama
from edgetrain.tasks.language import Language


def small_llama() -> Llama:
    torch.manual_seed(0)
    return Llama(50, dim=16, layers=4, heads=2, kv_heads=1, hidden_dim=32, context=16)


def test_lora_starts_as_the_same_function_and_trains_adapters_only() -> None:
    plain, model = small_llama(), small_llama()
    LoRA(rank=2, alpha=4, targets=["q_proj", "down_proj"]).apply(model, {})
    batch = torch.arange(10)[None]
    torch.testing.assert_close(model(batch), plain(batch))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4 * 2 * 2
    assert all("lora_" in name for name in trained)


def test_finish_merges_the_adapters_and_gives_the_keys_back() -> None:
    model = small_llama()
    keys, before = list(model.state_dict()), model.state_dict()["model.layers.0.self_attn.q_proj.weight"].clone()
    skip, lora = LayerSkip(p_max=0.1, e_scale=0.2, total_steps=20, rotation=3), LoRA(2, 4, ["q_proj"])
    skip.apply(model, skip.plan(model, None))
    lora.apply(model, {})
    task = Language(model, [skip, lora], lambda groups: torch.optim.SGD(groups, lr=1.0), total_steps=20)
    optimizer = task.configure_optimizers()["optimizer"]
    batch = torch.randint(50, (4, 11), generator=torch.Generator().manual_seed(0))
    for step in range(3):
        task.training_step(batch, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(step + 1)
    trained = model.eval()(batch[:, :-1])
    merged = lora.finish(model, None)
    torch.testing.assert_close(merged(batch[:, :-1]), trained)
    assert list(merged.state_dict()) == keys
    assert not torch.equal(merged.state_dict()["model.layers.0.self_attn.q_proj.weight"], before)
