"""A Llama that visits its blocks more than once, for transformers. Exported beside the weights, which it holds once.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

config.json names this file in auto_map; `visit_order` there says which block every layer is, and num_hidden_layers
counts layers. Needs nothing but transformers.
"""

from collections.abc import Iterator
from itertools import islice

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class VisitedBlocks(nn.ModuleList):
    """Blocks that iterate and slice as the layers they are visited as."""

    def __init__(self, blocks: list[nn.Module], order: list[int]) -> None:
        super().__init__(blocks)
        self.order = order

    def __iter__(self) -> Iterator[nn.Module]:
        blocks = list(self._modules.values())
        for layer, block in enumerate(self.order):
            blocks[block].self_attn.layer_idx = layer  # its slot in the cache
            yield blocks[block]

    def __getitem__(self, index: int | slice) -> nn.Module | Iterator[nn.Module]:
        if isinstance(index, slice) and index.start is None and index.step is None:
            return islice(iter(self), index.stop)  # what LlamaModel.forward asks for
        return super().__getitem__(index)


class SharedLlamaForCausalLM(LlamaForCausalLM):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        order = config.visit_order
        self.model.layers = VisitedBlocks(list(self.model.layers)[: 1 + max(order)], order)
