"""A Llama rearranged for decoding: fewer and larger products, positions as data, weights in the format that is fastest.

The same function as `edgetrain.models.llama`, in other pieces. Notable choices:

- q, k and v are one product and so are gate and up: a token of a small model is bound by the number of operations;
- positions are a tensor, a row of the batch each, so that one compiled graph serves every step, and several prompts
  of different lengths decode together;
- the cache has a fixed length and one tensor a layer (written through a view of one large tensor, a compiled graph
  would copy all layers for each); keys past a row's position are masked;
- weight-only bfloat16 and int8 (symmetric, one scale for each output channel) for where they pay.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.models.llama import Llama, rotary_tables

Weights = Literal["float32", "bfloat16", "int8"]
OVERSHOOT = 64  # positions after the context, where drafts that will be rejected may stand


class StaticCache:
    """Keys and values of some slots, for each a tensor [batch, kv_heads, length, head_dim]."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values = keys, values

    @property
    def length(self) -> int:
        return self.keys[0].shape[2]


class Product(nn.Module):
    """x W^T with W [out, in] held in one format; x and the result have the type that goes with it."""

    def __init__(self, weight: Tensor, weights: Weights) -> None:
        super().__init__()
        if weights == "int8":
            scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
            levels = (weight / scales.float()[:, None]).round().clamp(-127, 127)  # the scale was rounded, too
            self.register_buffer("weight", levels.to(torch.int8))
            self.register_buffer("scales", scales)
        else:
            self.register_buffer("weight", weight.to(getattr(torch, weights)))
            self.scales = None

    def forward(self, x: Tensor) -> Tensor:
        if self.scales is None:
            return F.linear(x, self.weight)
        out = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.weight, self.scales)
        return out.view(*x.shape[:-1], -1)


class FusedBlock(nn.Module):
    """One decoder layer; see `edgetrain.models.llama.Block`."""

    def __init__(self, block: nn.Module, weights: Weights) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        joined = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        self.qkv = Product(torch.cat([weight.detach() for weight in joined]), weights)
        self.out = Product(attention.o_proj.weight.detach(), weights)
        self.gate_up = Product(torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()]), weights)
        self.down = Product(mlp.down_proj.weight.detach(), weights)
        self.attention_norm = Norm(block.input_layernorm)
        self.mlp_norm = Norm(block.post_attention_layernorm)

    def forward(
        self,
        x: Tensor,
        places: tuple[Tensor, Tensor],
        rotary: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: tuple[Tensor, Tensor],
        reuse: bool,
    ) -> Tensor:
        """x [batch, n, dim]; places: row and position of each token; mask [batch, 1, n, length], 0 or -inf.

        reuse: attend to what an earlier visit of this block has written.
        """
        batch, n, _ = x.shape
        keys, values = cache
        heads = self.qkv(self.attention_norm(x)).view(batch, n, self.heads + 2 * self.kv_heads, self.head_dim)
        turned = rotate_halves(heads[:, :, : self.heads + self.kv_heads], rotary)
        q, k = turned.split([self.heads, self.kv_heads], dim=2)
        if not reuse:
            rows, positions = places
            keys[rows, :, positions] = k
            values[rows, :, positions] = heads[:, :, self.heads + self.kv_heads :]
        x = x + self.out(self.attend(q, keys, values, mask))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """[batch, n, heads, head_dim] to [batch, n, heads * head_dim], as two plain products.

        With one query a head, or a few, SDPA's blocks cost more than the scores they save.
        """
        batch, n = q.shape[:2]
        group = self.heads // self.kv_heads
        shape = (batch, self.kv_heads, group, n, -1)
        q = q.view(batch, n, self.kv_heads, group, self.head_dim).permute(0, 2, 3, 1, 4)
        q = q.reshape(batch * self.kv_heads, group * n, self.head_dim)
        scores = torch.bmm(q, keys.flatten(0, 1).transpose(1, 2)).view(shape) * self.head_dim**-0.5
        shares = (scores.float() + mask[:, :, None]).softmax(-1).to(values.dtype)
        out = torch.bmm(shares.view(batch * self.kv_heads, group * n, -1), values.flatten(0, 1)).view(shape)
        return out.permute(0, 3, 1, 2, 4).reshape(batch, n, -1)


class Norm(nn.Module):
    """RMSNorm in float32, spelled out: torch's own takes longer than the product that follows it."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.register_buffer("weight", norm.weight.detach().float())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class FusedLlama(nn.Module):
    """The first `layers` layers of a model, and its head, for inference. Shares no storage with the model.

    A block that is visited more than once is held once.

    weights: format of all products; activations are float32 with float32 weights, bfloat16 otherwise. Raises UserError
    for int8 on a device that has no such product.
    """

    def __init__(self, model: Llama, weights: Weights = "float32", layers: int | None = None) -> None:
        super().__init__()
        device = model.lm_head.weight.device
        if weights == "int8" and device.type not in ("cpu", "cuda"):
            raise UserError(f"weights=int8 runs on cpu and cuda, not on {device.type}; use weights=bfloat16")
        self.activation = torch.float32 if weights == "float32" else torch.bfloat16
        self.context = model.context
        self.visits = model.model.visits[:layers]
        blocks = 1 + max(visit.block for visit in self.visits)  # every order begins with the first ones
        self.blocks = nn.ModuleList(FusedBlock(block, weights) for block in model.model.layers[:blocks])
        self.norm = Norm(model.model.norm)
        self.lm_head = Product(model.lm_head.weight.detach(), weights)
        self.register_buffer("embedding", model.model.embed_tokens.weight.detach().to(self.activation))
        half = self.blocks[0].head_dim // 2
        cosines, sines = rotary_tables(model.context + OVERSHOOT, 2 * half, model.rope_theta)
        self.register_buffer("cosines", cosines[:, :half].to(device, self.activation))
        self.register_buffer("sines", sines[:, :half].to(device, self.activation))

    @property
    def layers(self) -> int:
        return len(self.visits)

    def new_cache(self, batch: int, length: int) -> StaticCache:
        block = self.blocks[0]
        shape = (batch, block.kv_heads, length, block.head_dim)
        slots = 1 + max(visit.slot for visit in self.visits)
        keys, values = ([self.embedding.new_zeros(shape) for _ in range(slots)] for _ in range(2))
        return StaticCache(keys, values)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding[tokens]

    def run_layers(self, x: Tensor, first: int, last: int, cache: StaticCache, start: Tensor) -> Tensor:
        """Layers first..last-1 on x [batch, n, dim]; start: int64 [batch], the position of each row's first token."""
        batch, n, _ = x.shape
        positions = start[:, None] + torch.arange(n, device=x.device)
        slots = torch.arange(cache.length, device=x.device)
        mask = torch.where(slots <= positions[:, :, None], 0.0, -math.inf)[:, None]
        rotary = (self.cosines[positions][:, :, None], self.sines[positions][:, :, None])
        places = (torch.arange(batch, device=x.device)[:, None], positions)
        for visit in self.visits[first:last]:
            held = (cache.keys[visit.slot], cache.values[visit.slot])
            x = self.blocks[visit.block](x, places, rotary, mask, held, visit.reuse)
        return x

    def head(self, x: Tensor) -> Tensor:
        """Logits [..., vocab] of states [..., dim]."""
        return self.lm_head(self.norm(x))

    def forward(self, tokens: Tensor, cache: StaticCache, start: Tensor) -> Tensor:
        """States after the last layer [batch, n, dim] of int64 tokens [batch, n]."""
        return self.run_layers(self.embed(tokens), 0, self.layers, cache, start)


def rotate_halves(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """As `models.llama.rotate`, on [batch, n, heads, head_dim], with tables of half the width, [batch, n, 1, half]."""
    cosines, sines = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
