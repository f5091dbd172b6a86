"""Block-wise weight sharing: in what order a model visits its blocks, and where every visit keeps its keys and values.

Liu et al. 2024, "MobileLLM: Optimizing Sub-billion Parameter Language Models for On-Device Use Cases" (arXiv
2402.14905), section 2.3. `immediate` is MobileLLM-LS: a block runs again while its weights are still in the fast
memory. Every visit is a layer of its own: 30 blocks that are visited twice make 60 layers, with 60 exits and 60 pairs
of keys and values.
"""

from dataclasses import dataclass
from typing import Literal

from edgetrain.errors import UserError

Share = Literal["none", "immediate", "repeat_all", "reverse"]


def visit_order(blocks: int, share: Share, repeats: int) -> list[int]:
    """The block of every visit. Of three blocks visited twice:

    immediate 0 0 1 1 2 2, repeat_all 0 1 2 0 1 2, reverse 0 1 2 2 1 0 (there and back), and none 0 1 2.
    Raises UserError when nothing would repeat.
    """
    if share == "none":
        return list(range(blocks))
    if repeats < 2:
        raise UserError(f"model.repeats={repeats} repeats nothing; set it to at least 2, or model.share to none")
    if share == "immediate":
        return [block for block in range(blocks) for _ in range(repeats)]
    if share == "repeat_all":
        return list(range(blocks)) * repeats
    back = range(blocks - 1, -1, -1)
    return [block for turn in range(repeats) for block in (back if turn % 2 else range(blocks))]


@dataclass(frozen=True)
class Visit:
    """One layer of the model as it runs. slot: where its keys and values are; reuse: an earlier visit wrote them."""

    block: int
    slot: int
    reuse: bool = False


def visits(order: list[int], share_kv: bool) -> tuple[Visit, ...]:
    """With `share_kv`, later visits of a block attend to the keys and values of its first one, in the block's slot."""
    if not share_kv:
        return tuple(Visit(block, slot) for slot, block in enumerate(order))
    return tuple(Visit(block, block, block in order[:index]) for index, block in enumerate(order))
