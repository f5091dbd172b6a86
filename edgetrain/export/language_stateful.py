"""A Llama whose cache is in its own buffers, for runtimes that keep state (ExecuTorch, pt2).

The function of `edgetrain.models.llama`, in pieces that leave a layer in one part when a backend such as XNNPACK takes
over what it knows; with the model's own lines it is cut into eleven. Notable choices:

- the mean square of RMSNorm is a product with a row of 1/dim, and half of a rotation one with a signed permutation:
  XNNPACK has no mean over a row, and no slice of a tensor whose length is unknown;
- grouped queries stand in the rows of one product with their keys, so that the cache is never copied out for them;
- the cache has a fixed length; keys past a token's own position are masked;
- a call reads at most CHUNK tokens, which bounds the memory of activations.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.models.block_sharing import Visit
from edgetrain.models.llama import Attention, Block, Llama, RMSNorm, Rotary

CHUNK = 128  # most tokens of one call
EXAMPLE = 7  # tokens that the program is traced with; a number that nothing else in a model has


class StatefulLlama(nn.Module):
    """forward(int64 tokens [1, n], start int64 [1]) -> logits [1, n, vocab]; token i stands at position start + i.

    A text that begins at 0 sees nothing of an older one. The arguments are those that ExecuTorch's own runner for
    language models passes. Parameters are those of `llama`, not copies.
    """

    def __init__(self, llama: Llama) -> None:
        super().__init__()
        self.llama = llama
        attention = llama.model.layers[0].self_attn
        dim, head_dim = llama.model.embed_tokens.embedding_dim, attention.head_dim
        self.group = attention.heads // attention.kv_heads
        cache = llama.new_cache()
        for slot, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
            self.register_buffer(f"keys_{slot}", keys[0].clone(), persistent=False)  # [kv_heads, context, head_dim]
            self.register_buffer(f"values_{slot}", values[0].clone(), persistent=False)
        identity, zeros = torch.eye(head_dim // 2), torch.zeros(head_dim // 2, head_dim // 2)
        turn = torch.cat((torch.cat((zeros, -identity), 1), torch.cat((identity, zeros), 1)))
        self.register_buffer("turn", turn, persistent=False)  # (first, second) to (-second, first)
        self.register_buffer("mean", torch.full((1, dim), 1 / dim), persistent=False)
        self.register_buffer("eps", torch.full((1,), llama.norm_eps), persistent=False)
        self.register_buffer("scale", torch.full((1,), head_dim**-0.5), persistent=False)

    def forward(self, tokens: Tensor, start: Tensor) -> Tensor:
        llama, n = self.llama, tokens.shape[1]
        positions = start + torch.arange(n)
        rotary = tuple(table[positions][:, None, None] for table in (llama.model.cosines, llama.model.sines))
        of_rows = start + torch.arange(n * self.group) // self.group  # the position of each query of a group
        mask = torch.where(torch.arange(llama.context) <= of_rows[:, None], 0.0, -math.inf)
        x = llama.embed(tokens)
        for visit in llama.model.visits:
            x = self.layer(llama.model.layers[visit.block], x, positions, rotary, mask, visit)
        return llama.lm_head(self.normal(x, llama.model.norm))

    def layer(self, block: Block, x: Tensor, positions: Tensor, rotary: Rotary, mask: Tensor, visit: Visit) -> Tensor:
        """x [1, n, dim]; mask [n * group, context], 0 or -inf."""
        x = x + self.attend(block.self_attn, self.normal(x, block.input_layernorm), positions, rotary, mask, visit)
        normal = self.normal(x, block.post_attention_layernorm)
        return x + block.mlp.down(block.mlp.gate_proj(normal), block.mlp.up_proj(normal))

    def attend(
        self, attention: Attention, x: Tensor, positions: Tensor, rotary: Rotary, mask: Tensor, visit: Visit
    ) -> Tensor:
        kv_heads, head_dim = attention.kv_heads, attention.head_dim
        keys, values = getattr(self, f"keys_{visit.slot}"), getattr(self, f"values_{visit.slot}")
        q = self.rotated(attention.q_proj(x).view(-1, kv_heads, self.group, head_dim), rotary)
        q = q.permute(1, 0, 2, 3).contiguous().view(kv_heads, -1, head_dim)
        if not visit.reuse:
            k = self.rotated(attention.k_proj(x).view(-1, kv_heads, 1, head_dim), rotary)
            keys.index_copy_(1, positions, k.view(-1, kv_heads, head_dim).transpose(0, 1))
            values.index_copy_(1, positions, attention.v_proj(x).view(-1, kv_heads, head_dim).transpose(0, 1))
        scores = torch.bmm(q, keys.transpose(1, 2)) * self.scale + mask
        out = torch.bmm(scores.softmax(-1), values).view(kv_heads, -1, self.group, head_dim)
        return attention.o_proj(out.permute(1, 0, 2, 3).contiguous().view(1, -1, attention.heads * head_dim))

    def rotated(self, x: Tensor, rotary: Rotary) -> Tensor:
        """x [n, kv_heads, heads of a group, head_dim]"""
        cosines, sines = rotary
        return x * cosines + F.linear(x, self.turn) * sines

    def normal(self, x: Tensor, norm: RMSNorm) -> Tensor:
        return x * torch.rsqrt(F.linear(x * x, self.mean, self.eps)) * norm.weight


def traced(llama: Llama) -> tuple[torch.export.ExportedProgram, int]:
    """The program of a model without gradients, and the most tokens that a call may give it."""
    chunk = min(CHUNK, llama.context)
    tokens = torch.export.Dim("tokens", min=1, max=chunk)
    example = (torch.zeros(1, min(chunk, EXAMPLE), dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    program = torch.export.export(StatefulLlama(llama), example, dynamic_shapes=({1: tokens}, None))
    for node in program.graph.nodes:
        for key in ("stack_trace", "from_node"):  # this machine's folders, which would be shipped
            node.meta.pop(key, None)
    return program, chunk
