"""The tile lists of a plan as granules of keys, sorted by query tile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

from ...plan.plan import Plan
from ...plan.tile_list import TileList

SMALL_TILE = 4  # rows; levels of smaller tiles are gathered separately, so that the granules of the others stay large


@dataclass(frozen=True, eq=False)
class Run:
    """Consecutive levels whose KV rows are gathered in the same granules: the gcd of their tile sizes.

    Args:
        lists (`tuple[TileList, ...]`): the levels.
        starts (`tuple[int, ...]`): first KV row of each level, within the run.
        start (`int`): first KV row of the run.
        rows (`int`): KV rows of the run, of one head.
        granule (`int`): rows gathered at once.
    """

    lists: tuple[TileList, ...]
    starts: tuple[int, ...]
    start: int
    rows: int
    granule: int


def runs_of(plan: Plan) -> list[Run]:
    """The runs of a plan's levels."""
    runs, start = [], 0
    for _, group in groupby(plan.lists, key=lambda lists: lists.tile < SMALL_TILE):
        lists = tuple(group)
        ends = list(accumulate(plan.level_rows(level) for level in lists))
        granule = math.gcd(*(level.tile for level in lists))
        runs.append(Run(lists, (0, *ends[:-1]), start, ends[-1], granule))
        start += ends[-1]
    return runs


class Visits:
    """The granules of one run that each query tile visits, one query tile after the other.

    Args:
        run ([`Run`]): whose lists are flattened.
        batch_heads (`tuple[int, int]`): B and H.
        kv_heads (`int`): a divisor of H.
        tiles (`int`): query tiles of all batch entries and heads.
        counts (`torch.Tensor`): `(granules, rows)`, the keys that each KV row stands for.
    """

    def __init__(self, run: Run, batch_heads: tuple[int, int], kv_heads: int, tiles: int, counts: Tensor) -> None:
        levels = [
            _level_visits(lists, start, run, batch_heads, kv_heads) for lists, start in zip(run.lists, run.starts)
        ]
        owner, granules, partial = (torch.cat(columns) for columns in zip(*levels))
        by_tile = torch.argsort(owner, stable=True)
        self.granules, self.partial = granules[by_tile], partial[by_tile]
        weighted, keyless = (test[granules] for test in (counts.ne(1).any(1), counts.eq(0).all(1)))

        def count(where: Tensor | slice) -> Tensor:
            return torch.bincount(owner[where], minlength=tiles)

        # per query tile: all granules, partial ones, weighted ones, and those in which every query sees a key
        self.lengths, self.partial_count, self.weighted_count = count(slice(None)), count(partial), count(weighted)
        self.whole_count = count(~(partial | keyless))
        self.first = self.lengths.cumsum(0) - self.lengths

    def of(self, tiles: Tensor) -> Tensor:
        """Index of the granules of these query tiles, one tile after the other."""
        lengths = self.lengths[tiles]
        shift = self.first[tiles] - (lengths.cumsum(0) - lengths)
        shift = shift.repeat_interleave(lengths)
        return shift + torch.arange(len(shift), device=shift.device)


def _level_visits(lists: TileList, start: int, run: Run, batch_heads: tuple[int, int], kv_heads: int) -> list[Tensor]:
    """Flat (query tile, granule, whether it is partial) of one level."""
    batch, heads = batch_heads
    device = lists.counts.device
    head = torch.arange(batch * heads, device=device)
    kv_head = head // heads * kv_heads + head % heads // (heads // kv_heads)
    indices = lists.indices.expand(batch, heads, -1, -1).flatten(0, 1).long()
    live = lists.live.expand(batch, heads, -1, -1).flatten(0, 1)
    partial = torch.zeros_like(live) if lists.partial is None else lists.partial.expand(batch, heads, -1, -1)
    first = (indices * lists.tile + start + (kv_head * run.rows)[:, None, None]) // run.granule
    tile = torch.arange(live.shape[0] * live.shape[1], device=device).view(*live.shape[:2], 1).expand_as(live)
    part = torch.arange(lists.tile // run.granule, device=device)
    return [
        tile[live].repeat_interleave(len(part)),
        (first[live][:, None] + part).flatten(),
        partial.reshape(live.shape)[live].repeat_interleave(len(part)),
    ]
