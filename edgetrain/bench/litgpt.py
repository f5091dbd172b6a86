"""The other peer of the training bench: litgpt's GPT from a checkout, trained as its pretrain.py does.

Fabric, a plain loop, and the cross-entropy in chunks of 128 rows over logits that are all in memory.
"""

import importlib
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetrain.build import build
from edgetrain.config import Config
from edgetrain.errors import UserError
from edgetrain.models.huggingface import load_llama
from edgetrain.models.llama import Llama
from edgetrain.ops.blocks import recomputing


def load_litgpt(checkout: str) -> None:
    """Import a checkout's package: its code runs. Raises UserError when there is none or it cannot be imported."""
    place = Path(checkout).expanduser().resolve()
    if not (place / "litgpt" / "model.py").is_file():
        raise UserError(f"litgpt={checkout}: there is no litgpt/model.py in it; give the folder of a litgpt checkout")
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))
    try:
        for name in ("config", "model", "utils"):
            importlib.import_module(f"litgpt.{name}")
    except ImportError as error:
        raise UserError(f"litgpt={checkout} cannot be imported: {error}; install what it asks for") from error


def litgpt_model(checkout: str, weights: Path) -> nn.Module:
    """litgpt's GPT of the shape and weights of a Hugging Face folder that `save_llama` wrote."""
    load_litgpt(checkout)
    ours = load_llama(weights)
    model = sys.modules["litgpt.model"].GPT(litgpt_config(ours))
    if ours.tied:
        model.transformer.wte.weight = model.lm_head.weight
    model.load_state_dict(litgpt_weights(ours))
    return model


def litgpt_config(model: Llama) -> Any:
    """Its Config of the same shape, otherwise as its SmolLM2-135M, which is a Llama too."""
    attention = model.model.layers[0].self_attn
    return sys.modules["litgpt.config"].Config(
        name="bench",
        block_size=model.context,
        vocab_size=model.vocab_size,
        padded_vocab_size=model.vocab_size,
        n_layer=model.layers,
        n_head=attention.heads,
        n_embd=model.model.embed_tokens.embedding_dim,
        n_query_groups=attention.kv_heads,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=model.model.layers[0].mlp.up_proj.out_features,
        rope_base=int(model.rope_theta),
        norm_eps=model.norm_eps,
    )


def litgpt_weights(model: Llama) -> dict[str, Tensor]:
    """Our weights under litgpt's names; queries, keys and values are rows of one matrix there."""
    found = {
        "lm_head.weight": model.lm_head.weight,
        "transformer.wte.weight": model.model.embed_tokens.weight,
        "transformer.ln_f.weight": model.model.norm.weight,
    }
    for index, block in enumerate(model.model.layers):
        attention, mlp = block.self_attn, block.mlp
        qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        parts = {
            "norm_1": block.input_layernorm.weight,
            "attn.qkv": qkv,
            "attn.proj": attention.o_proj.weight,
            "norm_2": block.post_attention_layernorm.weight,
            "mlp.fc_1": mlp.gate_proj.weight,
            "mlp.fc_2": mlp.up_proj.weight,
            "mlp.proj": mlp.down_proj.weight,
        }
        found |= {f"transformer.h.{index}.{name}.weight": weight for name, weight in parts.items()}
    return {name: weight.detach() for name, weight in found.items()}


def train_with_litgpt(
    model: nn.Module, config: Config, precision: str, step: Callable[[], None], losses: list[Tensor]
) -> None:
    """The loop of its `fit` on the run's data, optimiser settings and learning rates."""
    from lightning import Fabric

    chunked_cross_entropy = sys.modules["litgpt.utils"].chunked_cross_entropy
    data = build(config.data)
    data.setup("fit")
    task = build(config.task, model=model, methods=[], optimizer=None)
    settings = {key: value for key, value in config.optimizer.items() if key != "_target_"}
    groups = [
        {"params": [parameter for parameter in model.parameters() if parameter.ndim >= 2]},
        {"params": [parameter for parameter in model.parameters() if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    if config.job["activation_checkpointing"]:
        for block in model.transformer.h:
            block.__class__ = type("Block", (type(block),), {"forward": recomputing(type(block).forward)})
    if config.job["compile"]:
        model = torch.compile(model)
    fabric = Fabric(devices=1, precision=precision)
    model, optimizer = fabric.setup(model, torch.optim.AdamW(groups, **settings))
    batches = fabric.setup_dataloaders(data.train_dataloader())
    for iteration, batch in enumerate(islice(batches, config.trainer["max_steps"])):
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * task.learning_rate_scale(iteration)
        input_ids, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        loss = chunked_cross_entropy(model(input_ids), targets)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=config.trainer["gradient_clip_val"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        step()
