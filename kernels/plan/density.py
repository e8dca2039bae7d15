"""The share of products that a plan computes, counted from its lists."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import PlanBase
from .routed import RoutedRows
from .tile_list import TileList


def level_densities(plan: PlanBase, visual: tuple[int, int] | None) -> Tensor:
    """The share of products that each level of a plan computes, a pooled key counting as one, partial tiles as whole.

    Args:
        plan ([`Plan`]): on any device; this does not wait for it.
        visual (`tuple[int, int]`, *optional*): the rows of `plan.order` whose products count; all by default.

    Returns:
        `torch.Tensor`: `(levels,)` float64, mean over batch entries and heads.
    """
    first, last = visual or (0, plan.order.shape[-1])
    row = torch.arange(plan.order.shape[-1], device=plan.order.device)
    counted = (plan.order >= 0) & (row >= first) & (row < last)
    queries = _queries_of_tile(plan, counted)
    pairs = counted.sum(-1, dtype=torch.float64).mean().clamp(min=1).square()
    shares = []
    for lists in plan.lists:
        keys = plan.level_sum((plan.valid_keys & counted).float(), lists) > 0
        visited = _visited(lists, keys.unflatten(-1, (-1, lists.tile)).sum(-1, dtype=torch.float32))
        shares.append((visited * queries).sum(-1, dtype=torch.float64).mean() / pairs)
    return torch.stack(shares)


def _queries_of_tile(plan: PlanBase, counted: Tensor) -> Tensor:
    """`(B|1, H|1, NQ)` float64, the number of query rows in each tile whose token counts."""
    if plan.q_rows is None:
        return counted.unflatten(-1, (-1, plan.block_q)).sum(-1, dtype=torch.float64)
    slots = plan.order.where(plan.order >= 0, plan.tokens).long()
    token_counted = counted.new_zeros(*counted.shape[:2], plan.tokens + 1).scatter_(-1, slots, counted)
    if isinstance(plan.q_rows, RoutedRows):
        return plan.q_rows.count(token_counted[..., :-1]).double()
    shape = torch.broadcast_shapes(plan.q_rows.shape[:2], token_counted.shape[:2])
    rows = plan.q_rows.where(plan.q_rows >= 0, plan.tokens).long().expand(*shape, -1)
    return token_counted.expand(*shape, -1).gather(-1, rows).unflatten(-1, (-1, plan.block_q)).sum(-1).double()


def _visited(lists: TileList, keys: Tensor) -> Tensor:
    """`(B|1, H|1, NQ)` float64, the sum over each query tile's KV tiles of `keys` `(B|1, H|1, NK)`."""
    shape = torch.broadcast_shapes(keys.shape[:2], lists.indices.shape[:2])
    indices = lists.indices.clamp(0, keys.shape[-1] - 1).long().expand(*shape, -1, -1)
    entries = keys.expand(*shape, -1).gather(-1, indices.flatten(2)).view(indices.shape)
    return entries.where(lists.live, 0).sum(-1, dtype=torch.float64)
