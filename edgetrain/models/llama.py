"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied or untied embeddings.

Touvron et al. 2023 (arXiv 2302.13971, 2307.09288). State-dict keys are those of Hugging Face's LlamaForCausalLM, so
weights go both ways (`edgetrain.models.huggingface`). Notable choices:

- the pieces that decoding needs are methods (`embed`, `run_layers`, `head`), so that a range of layers can run alone;
- the KV cache is allocated once, for all layers, and written in place;
- blocks may be visited more than once (`block_sharing`); a layer is a visit, and `layers` counts them;
- rotary tables are buffers outside the state dict, in the half-split layout of Hugging Face's checkpoints.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgetrain.errors import UserError
from edgetrain.models.block_sharing import Visit, visit_order, visits
from edgetrain.ops.attention import causal_attention
from edgetrain.ops.rms_norm import rms_norm

Rotary = tuple[Tensor, Tensor]  # cosines and sines, each [positions, head_dim]


class KVCache:
    """Keys and values of every slot, preallocated: for each slot [batch, kv_heads, length, head_dim], or all in one."""

    def __init__(self, keys: Tensor | list[Tensor], values: Tensor | list[Tensor]) -> None:
        self.keys, self.values = keys, values

    def write(self, slot: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [batch, kv_heads, n, head_dim] at `start`; returns everything from position 0 to the last written."""
        stop = start + keys.shape[2]
        self.keys[slot][:, :, start:stop] = keys
        self.values[slot][:, :, start:stop] = values
        return self.read(slot, stop)

    def read(self, slot: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions 0 to stop - 1."""
        return self.keys[slot][:, :, :stop], self.values[slot][:, :, :stop]


class PassKeysValues:
    """For `share_kv` without a cache: what this pass has computed, by slot, with its gradients."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, slot: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.slots[slot] = keys, values
        return keys, values

    def read(self, slot: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.slots[slot]


FIRST = Visit(0, 0)
Cache = KVCache | PassKeysValues


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the pairs (i, i + head_dim/2) of x [batch, heads, n, head_dim] by their position's angle."""
    cosines, sines = (table.to(x.dtype) for table in rotary)
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


class RMSNorm(nn.RMSNorm):
    """torch's; trained in float32 on a CPU it takes a third to a half of the time (`ops.rms_norm`)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu" and x.dtype == self.weight.dtype != torch.bfloat16:
            return rms_norm(x, self.weight, self.eps)
        return super().forward(x)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.q_proj = nn.Linear(dim, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, dim, bias=False)

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Tensor | None, cache: Cache | None, visit: Visit, start: int
    ) -> Tensor:
        batch, n, _ = x.shape
        q = rotate(self.q_proj(x).view(batch, n, self.heads, self.head_dim).transpose(1, 2), rotary)
        if visit.reuse:
            k, v = cache.read(visit.slot, start + n)
        else:
            k = rotate(self.k_proj(x).view(batch, n, self.kv_heads, self.head_dim).transpose(1, 2), rotary)
            v = self.v_proj(x).view(batch, n, self.kv_heads, self.head_dim).transpose(1, 2)
            if cache is not None:
                k, v = cache.write(visit.slot, start, k, v)
        whole = not isinstance(cache, KVCache)
        if whole and q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16:
            out = causal_attention(q, k, v)
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=mask is None and n > 1, enable_gqa=self.kv_heads != self.heads
            )
        return self.o_proj(out.transpose(1, 2).reshape(batch, n, -1))


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if not self.training:
            return self.down(gate, up)
        # Keeps gate and up only, half of what torch would: the two products of the rest are cheap, and formed again.
        return checkpoint(self.down, gate, up, use_reentrant=False, preserve_rng_state=False)

    def down(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); this sum is the x_l + f_l(x_l) of the LayerSkip paper."""

    def __init__(self, dim: int, heads: int, kv_heads: int, hidden_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(dim, eps=norm_eps)
        self.self_attn = Attention(dim, heads, kv_heads)
        self.post_attention_layernorm = RMSNorm(dim, eps=norm_eps)
        self.mlp = SwiGLU(dim, hidden_dim)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        visit: Visit = FIRST,
        start: int = 0,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache, visit, start)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Everything below the head; called `model` in the state dict. Returns normalised states [batch, n, dim].

    `layers` are the blocks, as in Hugging Face's models; `visits` are the layers as they run.
    """

    def __init__(
        self, vocab_size: int, dim: int, blocks: list[Block], visits: tuple[Visit, ...], norm_eps: float, rotary: Rotary
    ) -> None:
        super().__init__()
        self.visits = visits
        self.embed_tokens = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(blocks)
        self.norm = RMSNorm(dim, eps=norm_eps)
        self.register_buffer("cosines", rotary[0], persistent=False)
        self.register_buffer("sines", rotary[1], persistent=False)

    def run_layers(self, x: Tensor, first: int, last: int, cache: KVCache | None = None, start: int = 0) -> Tensor:
        """Layers first..last-1 on x [batch, n, dim], whose positions are start..start+n-1.

        With `share_kv` and no cache, the first visits of all blocks must be among them.
        """
        n = x.shape[1]
        rotary = (self.cosines[start : start + n], self.sines[start : start + n])
        mask = None
        if n > 1 and start > 0:  # SDPA's own causal mask is aligned to the first key, ours to the last
            mask = torch.ones(n, start + n, dtype=torch.bool, device=x.device).tril(start)
        if cache is None and any(visit.reuse for visit in self.visits):
            cache = PassKeysValues()
        for visit in self.visits[first:last]:
            x = self.layers[visit.block](x, rotary, mask, cache, visit, start)
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.run_layers(self.embed_tokens(tokens), 0, len(self.visits)))


class Llama(nn.Module):
    """A causal language model: int64 tokens [batch, n] to logits [batch, n, vocab_size].

    dim: width of the residual stream; hidden_dim: inner width of SwiGLU; kv_heads: key-value heads, one for each
    heads/kv_heads query heads; context: longest sequence in tokens; tied: input and output embedding are one tensor.
    layers: residual blocks; share, repeats: visit each of them `repeats` times in the order of `visit_order`, unless
    share is none; share_kv: later visits of a block use the keys and values of its first (half the cache of two visits;
    what facebookresearch/MobileLLM's published code computes, which gives both visits one cache index).
    Raises UserError when the head counts do not divide.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        layers: int,
        heads: int,
        kv_heads: int,
        hidden_dim: int,
        context: int,
        tied: bool = True,
        rope_theta: float = 10000.0,
        norm_eps: float = 1e-5,
        share: Literal["none", "immediate", "repeat_all", "reverse"] = "none",
        repeats: int = 2,
        share_kv: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads or heads % kv_heads or (dim // heads) % 2:
            raise UserError(
                f"model: dim={dim} must be a multiple of 2*heads (heads={heads}), and heads a multiple of "
                f"kv_heads={kv_heads}; change one of the three"
            )
        self.vocab_size, self.context, self.tied = vocab_size, context, tied
        self.rope_theta, self.norm_eps = rope_theta, norm_eps
        self.share, self.repeats, self.share_kv = share, repeats, share_kv
        blocks = [Block(dim, heads, kv_heads, hidden_dim, norm_eps) for _ in range(layers)]
        rotary = rotary_tables(context, dim // heads, rope_theta)
        order = visits(visit_order(layers, share, repeats), share_kv)
        self.model = Backbone(vocab_size, dim, blocks, order, norm_eps, rotary)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        self.reset_parameters()
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def reset_parameters(self) -> None:
        """Normal(0, 0.02); projections onto the residual stream are scaled by 1/sqrt(2 layers), as in GPT-2."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                onto_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.layers) if onto_residual else 0.02)

    @property
    def layers(self) -> int:
        """Layers as they run: blocks times visits."""
        return len(self.model.visits)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.model.embed_tokens(tokens)

    def run_layers(self, x: Tensor, first: int, last: int, cache: KVCache | None = None, start: int = 0) -> Tensor:
        """See `Backbone.run_layers`."""
        return self.model.run_layers(x, first, last, cache, start)

    def head(self, x: Tensor) -> Tensor:
        """The exit that all layers share: final norm, then LM head."""
        return self.lm_head(self.model.norm(x))

    def new_cache(self, batch: int = 1, length: int | None = None) -> KVCache:
        attention = self.model.layers[0].self_attn
        length = self.context if length is None else length
        weight = attention.k_proj.weight
        slots = 1 + max(visit.slot for visit in self.model.visits)
        shape = (slots, batch, attention.kv_heads, length, attention.head_dim)
        return KVCache(weight.new_zeros(shape), weight.new_zeros(shape))

    def components(self, tokens: Tensor) -> dict[str, tuple[nn.Module, tuple[Tensor | list[Tensor], ...]]]:
        """The two ways in which a device runs it, for tracing: `prefill` reads all tokens [batch, n] into an empty
        cache; `decode` reads the last of them, against a cache that holds the others."""
        batch, n = tokens.shape
        cache = self.new_cache(batch, n)
        keys, values = list(cache.keys), list(cache.values)
        return {
            "prefill": (CachedPass(self, 0), (tokens, keys, values)),
            "decode": (CachedPass(self, n - 1), (tokens[:, -1:], keys, values)),
        }

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.model(tokens))


class CachedPass(nn.Module):
    """A pass over tokens [batch, n] at positions from `start`, with the cache's tensors as inputs that it writes to.

    Gives the logits after the last token [batch, vocab_size].
    """

    def __init__(self, llama: Llama, start: int) -> None:
        super().__init__()
        self.llama, self.start = llama, start

    def forward(self, tokens: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        llama, cache = self.llama, KVCache(keys, values)
        return llama.head(llama.run_layers(llama.embed(tokens), 0, llama.layers, cache, self.start)[:, -1])


def rotary_tables(positions: int, head_dim: int, theta: float) -> Rotary:
    """Cosines and sines [positions, head_dim] in float32, both halves alike (RoFormer, arXiv 2104.09864, eq. 15)."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()
