"""Choosing blocks by their scores: the largest, cumulated mass, levels by rank, and the cap by similarity."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.plan.tile_list import TileList

TOLERANCE = 1e-6  # of the cumulative thresholds, as published


def ranks(scores: Tensor) -> Tensor:
    """Rank of every entry along the last dim, 0 for the largest; ties go to the lower index."""
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    position = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, position)


def largest(scores: Tensor, count: int) -> Tensor:
    """Bool mask of the `count` largest entries along the last dim."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    best = scores.topk(min(count, scores.shape[-1]), dim=-1, sorted=False).indices
    return chosen.scatter_(-1, best, True)


def level_ends_of_thresholds(scores: Tensor, thresholds: tuple[float, ...], floor: float) -> Tensor:
    """The rank at which each level ends: a level includes the block that crosses its threshold.

    Args:
        scores (`torch.Tensor`): `(..., N)` non-negative.
        thresholds (`tuple[float, ...]`): cumulated share of the row's sum at which each level ends, not descending.
        floor (`float`): the first level takes at least this share of the blocks, and one block more.

    Returns:
        `torch.Tensor`: `(..., L)` int64 (PSA, arXiv 2512.04025, Section 3.3, with the rule of the released code).
    """
    blocks = scores.shape[-1]
    mass = scores.sort(dim=-1, descending=True, stable=True).values.cumsum(-1)
    mass = mass / mass[..., -1:].clamp(min=torch.finfo(mass.dtype).tiny)
    previous = torch.zeros(scores.shape[:-1], dtype=torch.int64, device=scores.device)
    ends = []
    for level, threshold in enumerate(thresholds):
        below = (mass <= threshold + TOLERANCE).sum(-1)
        end = torch.maximum(torch.where(below > 0, below + 1, previous), previous).clamp(max=blocks)
        if level == 0:
            end = end.clamp(min=min(blocks, int(blocks * floor) + 1))
        ends.append(end)
        previous = end
    return torch.stack(ends, -1)


def assign_levels(scores: Tensor, ends: Tensor | list[int], levels: tuple[int, ...]) -> Tensor:
    """The level of every block, by its rank: `levels[i]` before rank `ends[..., i]`, 0 after the last end.

    >>> assign_levels(torch.tensor([0.1, 0.4, 0.3, 0.2]), [1, 3], (1, 8)).tolist()
    [0, 1, 8, 8]
    """
    ends = torch.as_tensor(ends, device=scores.device)
    index = (ranks(scores)[..., None] >= ends[..., None, :]).sum(-1)
    return torch.tensor((*levels, 0), device=scores.device)[index]


def similarity_cap(rows: Tensor, block: int, levels: tuple[int, ...], thresholds: tuple[float, ...]) -> Tensor:
    """The coarsest level to which a block may be pooled: first and last key of its pools must be similar enough.

    Args:
        rows (`torch.Tensor`): `(B, H, R, D)` keys.
        levels (`tuple[int, ...]`): pool sizes above 1.
        thresholds (`tuple[float, ...]`): least mean cosine of the first and last key of a pool, one per level.

    Returns:
        `torch.Tensor`: `(B, H, R / block)` int64 (PSA, Section 3.4). A later level may pass where an earlier fails.
    """
    unit = torch.nn.functional.normalize(rows.float(), dim=-1).unflatten(2, (-1, block))  # (B, H, N, block, D)
    cap = torch.ones(unit.shape[:3], dtype=torch.int64, device=rows.device)
    for level, threshold in zip(levels, thresholds):
        cosine = (unit[..., ::level, :] * unit[..., level - 1 :: level, :]).sum(-1).mean(-1)
        cap = torch.where(cosine > threshold, level, cap)
    return cap


def extend_text(video: Tensor, query_tiles: int, key_blocks: int, value: int | bool) -> Tensor:
    """`video` `(..., nq, nk)`, an entry for each pair of blocks, extended to `(..., NQ, NK)` with `value` for text."""
    pad = (0, key_blocks - video.shape[-1], 0, query_tiles - video.shape[-2])
    return torch.nn.functional.pad(video, pad, value=value)


def lists_of_levels(level: Tensor, pools: tuple[int, ...], block: int) -> tuple[TileList, ...]:
    """The lists of every level, as wide as they can get, so that nobody waits for the device to tell their width.

    Args:
        level (`torch.Tensor`): `(B, H, NQ, NK)`, index into `pools` of every pair of blocks.
        pools (`tuple[int, ...]`): pool size of each level.
        block (`int`): rows of a block.
    """
    blocks = level.shape[-1]
    number = torch.arange(
        max(blocks, len(pools)), dtype=torch.int16 if blocks < 2**15 else torch.int32, device=level.device
    )
    seen = level == number[: len(pools)].view(-1, 1, 1, 1, 1)
    place = seen.cumsum(-1)
    # column 0 takes what is not seen, and is cut off
    indices = number.new_zeros(*seen.shape[:-1], blocks + 1)
    indices.scatter_(-1, place * seen, number[:blocks].expand_as(seen))
    counts, indices = place[..., -1].int(), indices[..., 1:]
    return tuple(TileList(*part, block // pool, pool) for *part, pool in zip(counts, indices, pools))
