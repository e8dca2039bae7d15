"""How VMoBA chooses chunks for every query."""

from __future__ import annotations

import torch
from torch import Tensor

from ._scores import pooled
from ._select import largest, ranks

EPSILON = 1e-6  # of the published normalisation


def chunk_means(key: Tensor, rows: Tensor, block: int, chunk_of_tile: Tensor, raw: bool) -> Tensor:
    """The mean key of each chunk.

    Args:
        key (`torch.Tensor`): `(B, S, Hkv, D)`.
        rows (`torch.Tensor`): `(R,)` key of each row, -1 for padding, every chunk in tiles of its own.
        block (`int`): rows of a tile.
        chunk_of_tile (`torch.Tensor`): `(R / block,)` int64, from 0 without gaps.
        raw (`bool`): whether to leave the means as published. Otherwise the mean of all keys is subtracted, so that a
            constant added to all keys changes no choice, as it changes no attention.

    Returns:
        `torch.Tensor`: `(B, Hkv, C, D)` float32.
    """
    means, counts = pooled(key, rows, block)
    weight = torch.nn.functional.one_hot(chunk_of_tile).T * counts  # (C, tiles)
    size = weight.sum(-1, keepdim=True)
    sums = weight @ means
    return sums / size if raw else sums / size - sums.sum(2, keepdim=True) / size.sum()


def route_top(scores: Tensor, own: Tensor, count: float, per_head: bool) -> Tensor:
    """The `count` best chunks of each query, its own always among them; with `per_head`, `count` on average.

    Args:
        scores (`torch.Tensor`): `(B, H, N, C)` float32.
        own (`torch.Tensor`): `(N, C)` bool, the chunk that each query lies in.
        count (`float`): is rounded to whole chunks, or with `per_head` to whole choices of the head.

    Returns:
        `torch.Tensor`: `(B, H, N, C)` bool.
    """
    boosted = scores.masked_fill(own, torch.inf)
    if per_head:
        flat = boosted.flatten(2)
        return (ranks(flat) < round(count * scores.shape[2])).view_as(scores) | own
    return largest(boosted, round(count)) | own


def route_threshold(scores: Tensor, own: Tensor, threshold: float, per_head: bool) -> Tensor:
    """The own chunk, and the best others until the share `threshold` of the min-max normalised scores is reached.

    Scores compete within a query, or with `per_head` within the head. At least one other chunk is chosen, and at
    `threshold` 1 all are (VMoBA, arXiv 2506.23858, Section 3.3).
    """
    if threshold >= 1:
        return torch.ones_like(scores, dtype=torch.bool)
    flat, own_flat = (scores.flatten(2), own.flatten()) if per_head else (scores, own)
    low, high = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
    share = ((flat - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).where(high > low, 1.0)
    share = share / (share.sum(-1, keepdim=True) + EPSILON)
    missing = (threshold - (share * own_flat).sum(-1, keepdim=True)).clamp(min=0)
    others = share.masked_fill(own_flat, -torch.inf)
    order = others.argsort(dim=-1, descending=True, stable=True)
    reached = share.masked_fill(own_flat, 0).gather(-1, order).cumsum(-1)
    taken = (reached < missing).sum(-1, keepdim=True) + 1
    return ((ranks(others) < taken) | own_flat).view_as(scores)
