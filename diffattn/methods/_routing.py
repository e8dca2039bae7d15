"""VMoBA's choice of chunks for every query."""

from __future__ import annotations

import torch
from torch import Tensor

from ._scores import match_heads
from ._select import ranks

EPSILON = 1e-6  # in the published normalisation


def gate(query: Tensor, key: Tensor, chunk: Tensor, raw: bool) -> Tensor:
    """How well each query matches the mean key of each chunk.

    Args:
        query (`torch.Tensor`): `(B, H, V, D)` video queries.
        key (`torch.Tensor`): `(B, Hkv, V, D)` video keys.
        chunk (`torch.Tensor`): `(V,)` chunk of every key, from 0 without gaps.
        raw (`bool`): as published. Otherwise the mean key is subtracted: a constant added to all keys, which changes
            no attention, then changes no choice either.

    Returns:
        `torch.Tensor`: `(B, H, V, C)` float32, unscaled.
    """
    counts = torch.bincount(chunk)
    key = key.float()
    sums = key.new_zeros(*key.shape[:2], len(counts), key.shape[-1]).index_add_(2, chunk, key)
    means = sums / counts[:, None]
    if not raw:
        means = means - sums.sum(2, keepdim=True) / len(chunk)
    return query.float() @ match_heads(means, query.shape[1]).mT


def route_top(scores: Tensor, own: Tensor, count: float, per_head: bool) -> Tensor:
    """The `count` best chunks of each query, its own always among them; with `per_head`, `count` on average.

    Args:
        scores (`torch.Tensor`): `(B, H, N, C)`.
        own (`torch.Tensor`): `(N, C)` bool.

    Returns:
        `torch.Tensor`: `(B, H, N, C)` bool.
    """
    boosted = scores.masked_fill(own, torch.inf)
    if per_head:
        flat = boosted.flatten(2)
        return (ranks(flat) < round(count * scores.shape[2])).view_as(scores) | own
    return (ranks(boosted) < round(count)) | own


def route_threshold(scores: Tensor, own: Tensor, threshold: float, per_head: bool) -> Tensor:
    """Own chunks, and the best others until the share `threshold` of the min-max normalised scores is reached.

    Scores compete within a query, or with `per_head` within the whole head. At least one chunk beside the own ones is
    taken, and at `threshold` 1 all are (VMoBA, arXiv 2506.23858, Section 3.3).
    """
    flat, mine = (scores.flatten(2), own.flatten()) if per_head else (scores, own)
    low, high = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
    share = (flat - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    share = share / (share.sum(-1, keepdim=True) + EPSILON)
    left = (threshold - (share * mine).sum(-1, keepdim=True)).clamp(min=0)
    others = share.masked_fill(mine, -torch.inf)
    order = others.argsort(dim=-1, descending=True, stable=True)
    reached = share.masked_fill(mine, 0).gather(-1, order).cumsum(-1)
    taken = (reached < left).sum(-1, keepdim=True) + 1
    taken = taken.where(torch.tensor(threshold < 1, device=scores.device), flat.shape[-1])
    return ((ranks(others) < taken) | mine).view_as(scores)


def virtual_rows(chosen: Tensor, token: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """One row for each chosen (query, group) pair, sorted by group and filled up to whole tiles.

    Args:
        chosen (`torch.Tensor`): `(B, H, G, N)` bool, queries that attend to each group of keys.
        token (`torch.Tensor`): `(N,)` int64, token of each query.
        block (`int`): rows of a tile.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: tokens of the rows `(B, H, Rq)` int32, -1 for padding, and the group of
        every tile `(B, H, Rq / block)`, -1 where there is none.
    """
    counts = chosen.sum(-1)  # (B, H, G)
    tiles = (counts + block - 1) // block
    last = tiles.cumsum(-1)
    width = max(int(last[..., -1].max()), 1)
    tile = torch.arange(width, device=token.device).expand(*last.shape[:2], -1).contiguous()
    group = torch.searchsorted(last, tile, right=True)
    group = group.where(group < chosen.shape[2], -1)
    pair = chosen.flatten().nonzero()[:, 0]  # sorted by batch, head, group, query
    owner, counts = pair // chosen.shape[-1], counts.flatten()
    place = torch.arange(len(pair), device=pair.device) - (counts.cumsum(0) - counts)[owner]
    head = owner // chosen.shape[2]
    rows = torch.full((*last.shape[:2], width * block), -1, dtype=torch.int32, device=token.device)
    rows.view(-1)[(head * width + (last - tiles).flatten()[owner]) * block + place] = token.int()[
        pair % chosen.shape[-1]
    ]
    return rows, group
