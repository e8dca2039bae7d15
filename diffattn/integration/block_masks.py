"""Block masks of FlexAttention that a model brings along, as plans."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from ..kernels.plan.plan import Plan
from ..kernels.plan.tile_list import TileList

INSIDE = "a block mask that decides inside of its blocks"


class BlockLists(NamedTuple):
    """The blocks of keys that each block of queries sees whole.

    Args:
        counts (`torch.Tensor`): `(B|1, H|1, NQ)` int32, how many.
        indices (`torch.Tensor`): `(B|1, H|1, NQ, NK)` int32, which; only so many entries are read.
        block_q, block_k (`int`): tokens of a block of queries and of keys.
    """

    counts: Tensor
    indices: Tensor
    block_q: int
    block_k: int

    def plan(self, tokens: int) -> Plan:
        """The plan of a sequence of so many tokens, which are in the order of the blocks."""
        rows = self.counts.shape[-1] * self.block_q
        order = torch.arange(rows, device=self.counts.device)
        order = order.where(order < tokens, -1)[None, None]
        return Plan(tokens, order, (TileList(self.counts, self.indices, self.block_k),), self.block_q)


def is_block_mask(mask: Any) -> bool:
    """Whether a mask is a `BlockMask`."""
    return isinstance(mask, BlockMask)


def block_lists(mask: BlockMask, tokens: int) -> BlockLists | str:
    """The lists of a block mask over `tokens` queries and keys, or why there are none."""
    counts, indices = mask.kv_num_blocks, mask.kv_indices
    block_q, block_k = mask.BLOCK_SIZE
    rows = counts.shape[-1] * block_q
    if (
        counts.ndim != 3
        or rows != indices.shape[-1] * block_k
        or not tokens <= rows < tokens + math.lcm(*mask.BLOCK_SIZE)
    ):
        return f"a block mask of {rows} queries and {indices.shape[-1] * block_k} keys for {tokens} tokens"
    if mask.mask_mod is not noop_mask:
        if torch.compiler.is_compiling() or mask.full_kv_num_blocks is None or bool(counts.any()):
            return INSIDE
        return BlockLists(mask.full_kv_num_blocks, mask.full_kv_indices, block_q, block_k)
    if mask.full_kv_num_blocks is not None:
        counts, indices = _one_after_the_other(counts, indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    return BlockLists(counts, indices, block_q, block_k)


def _one_after_the_other(counts: Tensor, indices: Tensor, more: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Two lists as one: the entries of the first that are read, then those of the second."""
    place = torch.arange(indices.shape[-1], device=indices.device) - counts[..., None]
    following = others.gather(-1, place.clamp(min=0).expand(others.shape))
    return counts + more, torch.where(place < 0, indices, following)
