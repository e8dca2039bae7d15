"""The levels at which some queries see some keys, without a map of the whole sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .plan import Plan
from .tile_list import TileList


def sampled_levels(plan: Plan, queries: Tensor, keys: Tensor, batch: int = 0, head: int = 0) -> Tensor:
    """The smallest pool at which some queries see some keys.

    Args:
        plan ([`Plan`]): of S tokens, on the CPU.
        queries, keys (`torch.Tensor`): `(n,)` and `(m,)` int64, tokens.
        batch, head (`int`, *optional*, defaults to 0): which map.

    Returns:
        `torch.Tensor`: `(n, m)` int64, 0 where a query does not see a key. Unlike `Plan.to_dense_levels` this is not
        quadratic in S.
    """

    def pick(tensor: Tensor) -> Tensor:
        return tensor[min(batch, tensor.shape[0] - 1), min(head, tensor.shape[1] - 1)]

    sample = torch.full((plan.tokens + 1,), -1)
    sample[queries] = torch.arange(len(queries))
    asked = sample[pick(plan.query_rows)]  # a padding row reads the last entry, which is never a sample
    rows = (asked >= 0).nonzero()[:, 0]
    key_rows = pick(plan.row_of_token)[keys]
    levels = torch.zeros(len(queries), len(keys), dtype=torch.int64)
    for shared in sorted(plan.lists, key=lambda lists: -lists.pool):
        lists = _of_one_head(shared, pick)
        tiles = plan.level_rows(lists) // lists.tile
        tile = key_rows // (lists.pool * lists.tile)
        seen = pick(lists.to_mask(tiles))[rows // plan.block_q][:, tile]
        if lists.partial is not None:
            cut = pick(lists.to_mask(tiles, lists.partial))[rows // plan.block_q][:, tile]
            seen &= plan.boxes.inside(rows, key_rows) | ~cut
        hits = torch.zeros(levels.shape, dtype=torch.int32).index_add_(0, asked[rows], seen.int())
        levels = torch.where(hits > 0, lists.pool, levels)
    return levels


def _of_one_head(lists: TileList, pick: Callable[[Tensor], Tensor]) -> TileList:
    # one head before the lists become masks: the masks of all heads would be large
    counts, indices = (pick(part)[None, None] for part in (lists.counts, lists.indices))
    partial = None if lists.partial is None else pick(lists.partial)[None, None]
    return replace(lists, counts=counts, indices=indices, partial=partial)
