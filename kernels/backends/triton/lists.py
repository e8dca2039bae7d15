"""The lists of a plan as the kernels read them: whole tiles first, in shapes that all plans of a grid share."""

from __future__ import annotations

import torch
from torch import Tensor

from ...plan.plan import Plan
from ...plan.tile_list import TileList
from .common import odd_levels

ALIGNED = 16  # Triton compiles another kernel where a stride becomes a multiple of 16, or ceases to be one


def full_first(plan: Plan, lists: TileList) -> tuple[Tensor, Tensor, Tensor]:
    """One level's lists, those tiles first whose keys all stand for as many tokens as the level pools.

    So log-weights of single keys are read where they matter only.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: counts `(B|1, H|1, NQ)`, how many of the entries are such
        tiles, and indices `(B|1, H|1, NQ, M)`, NQ and M filled up to multiples of 16. Both kinds of tiles keep their
        order.
    """
    place = plan.lists.index(lists)

    def make() -> tuple[Tensor, Tensor, Tensor]:
        if not odd_levels(plan)[place]:
            counts = aligned(lists.counts)
            return counts, counts, aligned(aligned(lists.indices).mT).mT.contiguous()
        return _partition(lists, full_tiles(plan, lists))

    return plan.memo(("full first", place), make)


def aligned(tensor: Tensor) -> Tensor:
    """The tensor with zeros up to a multiple of 16 entries in its last dim."""
    return torch.nn.functional.pad(tensor, (0, -tensor.shape[-1] % ALIGNED))


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
    size = [-(-size // ALIGNED) * ALIGNED for size in indices.shape[2:]]
    found = indices.new_zeros(batch, heads, *size)
    found[:, :, : indices.shape[2]].scatter_(-1, place, indices)
    return aligned(lists.counts.expand(batch, heads, -1)), aligned(before[..., -1].int()), found


def level_arguments(plan: Plan, batch: int, heads: int) -> tuple[tuple, ...]:
    """The argument `levels` of the kernels that go through the lists of a query tile."""
    levels = []
    for lists in plan.lists:
        counts, full, indices = full_first(plan, lists)
        counts, full = (part.expand(batch, heads, -1) for part in (counts, full))
        indices = indices.expand(batch, heads, -1, -1)
        levels.append((counts, full, counts.stride(), indices, indices.stride()[:3], plan.level_start(lists)))
    return tuple(levels)
