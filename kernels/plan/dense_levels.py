"""A plan as a map of all queries and keys: quadratic, for tests, pictures and short sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import PlanBase
from .tile_list import TileList


def dense_levels(plan: PlanBase) -> Tensor:
    """Int32 `(B|1, H|1, S, S)`, the smallest pool at which each query sees each key, 0 where it does not."""
    query_rows = plan.query_rows
    query_tile = torch.arange(query_rows.shape[-1], device=plan.order.device) // plan.block_q
    seen = None
    for lists in sorted(plan.lists, key=lambda lists: -lists.pool):
        kept = _rows_to_tokens(_kept(plan, lists, query_tile), query_rows, plan.tokens)
        level = torch.full((), lists.pool, dtype=torch.int32, device=kept.device)
        seen = torch.where(kept, level, 0 if seen is None else seen)
    return seen


def _kept(plan: PlanBase, lists: TileList, query_tile: Tensor) -> Tensor:
    """`(b, h, Rq, S)` bool, tokens that the query rows see at one level."""
    mask = lists.to_mask(plan.level_rows(lists) // lists.tile)[:, :, query_tile]  # (b, h, Rq, tiles)
    tile = plan.row_of_token // (lists.pool * lists.tile)
    valid = plan.valid_keys.gather(-1, plan.row_of_token.expand(plan.valid_keys.shape[0], -1, -1))
    mask, tile, valid = _broadcast(mask, tile[:, :, None], valid[:, :, None])
    kept = mask.gather(-1, tile.expand(*mask.shape[:3], -1)) & valid
    return kept if lists.partial is None else kept & _seen_in_partial(plan, lists, query_tile, tile)


def _seen_in_partial(plan: PlanBase, lists: TileList, query_tile: Tensor, tile: Tensor) -> Tensor:
    """`(b, h, Rq, S)` bool, True outside partial tiles and inside the boxes."""
    partial = lists.to_mask(plan.level_rows(lists) // lists.tile, lists.partial)[:, :, query_tile]
    rows = torch.arange(plan.query_shape[-1], device=plan.order.device)
    inside = plan.boxes.inside(rows, plan.row_of_token)  # (b, h, Rq, S)
    partial, tile = _broadcast(partial, tile)
    return inside | ~partial.gather(-1, tile.expand(*partial.shape[:3], -1))


def _rows_to_tokens(kept: Tensor, query_rows: Tensor, tokens: int) -> Tensor:
    """`kept` `(b, h, Rq, S)` as `(b, h, S, S)`: a token sees what any of its rows sees."""
    kept, rows = _broadcast(kept, query_rows[..., None])
    slot = rows.where(rows >= 0, tokens).long().expand_as(kept)
    hits = torch.zeros(*kept.shape[:2], tokens + 1, kept.shape[-1], dtype=torch.int32, device=kept.device)
    return hits.scatter_add_(2, slot, kept.to(torch.int32))[:, :, :tokens] > 0


def _broadcast(*tensors: Tensor) -> list[Tensor]:
    batch, heads = (max(tensor.shape[dim] for tensor in tensors) for dim in (0, 1))
    return [tensor.expand(batch, heads, -1, -1) for tensor in tensors]
