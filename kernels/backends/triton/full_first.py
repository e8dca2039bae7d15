"""The lists of a plan with whole tiles first, so that log-weights are read where they matter only."""

from __future__ import annotations

import torch
from torch import Tensor

from ...plan.plan import Plan
from ...plan.tile_list import TileList
from .common import odd_levels


def full_first(plan: Plan, lists: TileList) -> tuple[Tensor, Tensor, Tensor]:
    """One level's lists, those tiles first whose keys all stand for as many tokens as the level pools.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: counts `(B|1, H|1, NQ)`, how many of the entries are such
        tiles, and indices `(B|1, H|1, NQ, M)`. Both kinds of tiles keep their order.
    """
    place = plan.lists.index(lists)
    if not odd_levels(plan)[place]:
        return lists.counts, lists.counts, lists.indices
    return plan.memo(("full first", place), lambda: _partition(lists, full_tiles(plan, lists)))


def full_tiles(plan: Plan, lists: TileList) -> Tensor:
    """`(B|1, H|1, tiles)` bool, tiles of one level whose keys all stand for as many tokens as it pools."""
    start = plan.level_start(lists)
    counts = plan.kv_counts[..., start : start + plan.level_rows(lists)]
    return (counts == lists.pool).unflatten(-1, (-1, lists.tile)).all(-1)


def _partition(lists: TileList, full: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads = (max(full.shape[dim], lists.counts.shape[dim]) for dim in (0, 1))
    indices = lists.indices.expand(batch, heads, -1, -1)
    live = lists.live.expand(indices.shape)
    tiles = full[:, :, None].expand(batch, heads, indices.shape[2], -1)
    is_full = tiles.gather(-1, indices.masked_fill(~live, 0).long()) & live
    before = is_full.cumsum(-1)
    place = torch.arange(indices.shape[-1], device=indices.device) - before + before[..., -1:]
    place = torch.where(is_full, before - 1, place)
    sorted_indices = torch.empty_like(indices, memory_format=torch.contiguous_format).scatter_(-1, place, indices)
    return lists.counts.expand(batch, heads, -1).contiguous(), before[..., -1].int(), sorted_indices


def sorted_level_arguments(plan: Plan, batch: int, heads: int) -> tuple[tuple, ...]:
    """The argument `levels` of the forward kernel."""
    levels = []
    for lists in plan.lists:
        counts, full, indices = full_first(plan, lists)
        counts, full = (part.expand(batch, heads, -1) for part in (counts, full))
        indices = indices.expand(batch, heads, -1, -1)
        levels.append((counts, full, counts.stride(), indices, indices.stride()[:3], plan.level_start(lists)))
    return tuple(levels)
