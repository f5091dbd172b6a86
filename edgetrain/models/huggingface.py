"""Llama weights and settings to and from Hugging Face's folder format, and Hugging Face models by name."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from edgetrain.checkpoint import load_weights, read_weights
from edgetrain.errors import UserError
from edgetrain.models.llama import Llama

LAYER = "model.layers."
SHARED_LLAMA = Path(__file__).with_name("shared_llama.py")  # goes with a folder whose blocks are shared


def llama_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `Llama` from the contents of a LlamaForCausalLM's config.json, or a MobileLLM's.

    facebookresearch/MobileLLM says `share_embedding` and `layer_sharing` beside a `tie_word_embeddings` that is false.
    Raises UserError for what our Llama does not compute: biases, another activation, scaled rotary positions, a head
    width that is not dim/heads.
    """
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    unsupported = {
        "model_type": config.get("model_type", "llama") not in ("llama", "mobilellm"),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "rope_scaling": rope.get("rope_type", "default") != "default",
        "head_dim": head_dim * heads != config["hidden_size"],
    }
    if any(unsupported.values()):
        names = ", ".join(name for name, is_so in unsupported.items() if is_so)
        raise UserError(f"this Hugging Face model is not a plain Llama ({names}); use model=transformers for it")
    return {
        "vocab_size": config["vocab_size"],
        "dim": config["hidden_size"],
        "layers": 1 + max(config["visit_order"]) if "visit_order" in config else config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "hidden_dim": config["intermediate_size"],
        "context": config["max_position_embeddings"],
        "tied": config.get("tie_word_embeddings", False) or config.get("share_embedding", False),
        "rope_theta": rope.get("rope_theta") or config.get("rope_theta", 10000.0),
        "norm_eps": config["rms_norm_eps"],
        "share": config.get("share", "immediate" if config.get("layer_sharing") else "none"),
        "repeats": config.get("repeats", 2),
    }


def load_llama(folder: str | Path, share_kv: bool = False) -> Llama:
    """A Llama from a Hugging Face folder (config.json and *.safetensors).

    Whether input and output embedding are one tensor is decided by the weights: configurations say it wrongly.
    share_kv: see `Llama`; no configuration says it.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a Hugging Face model folder: there is no config.json in it")
    settings = llama_settings(json.loads(path.read_text()))
    weights = read_weights(str(folder))
    embedding, head = (weights.get(key) for key in ("model.embed_tokens.weight", "lm_head.weight"))
    if embedding is not None:
        settings["tied"] = head is None or torch.equal(embedding, head)
    model = Llama(**settings, share_kv=share_kv)
    load_weights(model, weights, str(folder))
    return model


def save_llama(model: Llama, folder: Path, tokenizer: Any = None, unrolled: bool = False) -> None:
    """Write config.json, generation_config.json, model.safetensors (fp32) and the tokenizer's files.

    Blocks that are visited more than once are written once, with the file that makes transformers visit them so;
    `unrolled` writes a plain Llama instead, with a copy for every visit. Raises UserError for share_kv.
    """
    from transformers import GenerationConfig, LlamaConfig

    if model.share_kv and model.share != "none":
        raise UserError("a Hugging Face folder cannot say model.share_kv=true; train with share_kv=false to export one")
    order = [visit.block for visit in model.model.visits]
    weights = {key: value.detach().float().cpu().contiguous() for key, value in model.state_dict().items()}
    shared: dict[str, Any] = {}
    if model.share != "none" and unrolled:
        weights = unrolled_weights(weights, order)
    elif model.share != "none":
        shared = {
            "visit_order": order,
            "share": model.share,
            "repeats": model.repeats,
            "auto_map": {"AutoModelForCausalLM": "shared_llama.SharedLlamaForCausalLM"},
        }
        shutil.copyfile(SHARED_LLAMA, folder / SHARED_LLAMA.name)
    attention = model.model.layers[0].self_attn
    end = getattr(tokenizer, "eos_token_id", None)
    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.model.embed_tokens.embedding_dim,
        num_hidden_layers=model.layers,
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.kv_heads,
        intermediate_size=model.model.layers[0].mlp.up_proj.out_features,
        max_position_embeddings=model.context,
        tie_word_embeddings=model.tied,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        rms_norm_eps=model.norm_eps,
        bos_token_id=end,
        eos_token_id=end,
        architectures=["SharedLlamaForCausalLM" if shared else "LlamaForCausalLM"],
        **shared,
    )
    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=end, eos_token_id=end).save_pretrained(folder)
    if model.tied:  # safetensors keeps one copy; transformers ties the other on loading
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def unrolled_weights(weights: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """The state dict of the model with a block of its own for every visit."""
    unrolled = {key: value for key, value in weights.items() if not key.startswith(LAYER)}
    for visit, block in enumerate(order):
        prefix = f"{LAYER}{block}."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        unrolled |= {f"{LAYER}{visit}.{key}": value.clone() for key, value in own.items()}
    return unrolled


def transformers_model(name: str, **settings: Any) -> Any:
    """Any causal language model of transformers: a local folder with weights, or a model type with fresh weights.

    name: a folder made by save_pretrained, a hub name, or a type such as "qwen2"; settings: of that type's config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if settings:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings))
    try:
        return AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"model.name={name} cannot be loaded: its weights hold code or objects, which are never loaded; "
            "use a copy with model.safetensors"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.name={name} cannot be loaded: {str(error).splitlines()[0]}; name a local folder made by "
            "save_pretrained, a hub model, or a type with its settings"
        ) from error
