"""A plan that is kept: without the entries of its lists that nobody reads."""

from __future__ import annotations

from dataclasses import replace

import torch

from .plan import Plan
from .tile_list import TileList


def trim(plan: Plan) -> Plan:
    """The plan with lists as wide as their longest row. The host waits once to learn how wide that is.

    A planner that must not wait makes its lists as wide as they could get.

    >>> counts, indices = torch.tensor([[[2, 1]]], dtype=torch.int32), torch.tensor([[[[0, 2, 0], [1, 0, 0]]]])
    >>> plan = Plan(192, torch.arange(192)[None, None], (TileList(counts, indices, 64),), 96)
    >>> trim(plan).lists[0].indices.tolist()
    [[[[0, 2], [1, 0]]]]
    """
    longest = torch.stack([lists.counts.max() for lists in plan.lists]).tolist()
    return replace(plan, lists=tuple(_trim(lists, max(width, 1)) for lists, width in zip(plan.lists, longest)))


def _trim(lists: TileList, width: int) -> TileList:
    partial = None if lists.partial is None else lists.partial[..., :width].contiguous()
    return replace(lists, indices=lists.indices[..., :width].contiguous(), partial=partial)
