"""The transposed lists of a plan: the query tiles that visit each KV tile, for gradients of key and value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .plan import Plan
from .tile_list import TileList

MAX_GROUP = 64  # KV tiles of one group: their visits are bits of an int64


@dataclass(frozen=True, eq=False)
class Visitors:
    """The query tiles that visit each group of `group` consecutive KV tiles of one level.

    Args:
        first (`torch.Tensor`): `(B|1, H|1, NG)` int64, where the entries of a group start in `tiles`.
        counts (`torch.Tensor`): `(B|1, H|1, NG)` int32, how many there are.
        tiles (`torch.Tensor`): `(N,)` int32, query tiles, ascending and each once within a group.
        bits (`torch.Tensor`): `(N,)` int64, bit i is set where the query tile visits KV tile i of the group.
        group (`int`): KV tiles of a group.
    """

    first: Tensor
    counts: Tensor
    tiles: Tensor
    bits: Tensor
    group: int


def visitors(plan: Plan, lists: TileList, group: int = 1) -> Visitors:
    """The transpose of one level of `plan`, built once; its memory grows with the visits, not with NQ x NK."""
    at = ("visitors", plan.lists.index(lists), group)
    return plan.memo(at, lambda: transpose(lists, plan.level_rows(lists) // lists.tile, group))


def transpose(lists: TileList, tiles: int, group: int = 1) -> Visitors:
    """The query tiles that visit each of `tiles` KV tiles.

    >>> lists = TileList.from_mask(torch.tensor([[[[True, False, True], [False, True, True]]]]), tile=64)
    >>> found = transpose(lists, 3)
    >>> found.counts.tolist(), found.tiles.tolist()
    ([[[1, 1, 2]]], [0, 1, 0, 1])
    """
    if not 1 <= group <= MAX_GROUP:
        raise ValueError(f"groups hold 1 to {MAX_GROUP} tiles, got {group}")
    batch, heads, queries = lists.counts.shape
    groups = -(-tiles // group)
    live = lists.live.flatten(0, 1)
    head, query, _ = live.nonzero(as_tuple=True)
    visited = lists.indices.flatten(0, 1)[live].long()
    # One number for each (head, group, query tile): sorted, they are the transposed lists.
    keys = (head * groups + visited // group) * queries + query
    keys, entry = keys.unique(return_inverse=True)
    # A tile is at most once in a list, so that sums of its bits are unions.
    bits = torch.zeros_like(keys).scatter_add_(0, entry, torch.ones_like(visited) << visited % group)
    counts = torch.bincount(keys // queries, minlength=batch * heads * groups)
    shape = (batch, heads, groups)
    first = (counts.cumsum(0) - counts).view(shape)
    return Visitors(first, counts.to(torch.int32).view(shape), (keys % queries).to(torch.int32), bits, group)
