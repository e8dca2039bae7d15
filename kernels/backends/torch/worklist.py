"""The lists of a plan, flattened and cut into chunks of equal work for the torch path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, compress, groupby
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

from ...plan.plan import Plan
from ...plan.tile_list import TileList

CHUNK_BYTES = 2 << 20  # of a chunk per thread: flat optimum between 0.5 and 4 MB on the CPUs measured
THIN_TILE = 4  # rows; a level of smaller tiles is gathered on its own, so that it does not cut up the others


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


@dataclass(frozen=True, eq=False)
class Chunk:
    """Query tiles that visit equally many granules of each run.

    Args:
        part (`int`): of the KV heads, of those the worklist was made for.
        rows (`torch.Tensor`): `(n,)`, numbers among all `B * H * NQ` query tiles.
        visited (`list[torch.Tensor]`): per run `(n * L,)`, numbers among its `B * Hkv * rows / granule` granules.
        tested (`torch.Tensor`, *optional*): `(n, L)` bool, granules whose keys are tested against the boxes.
        weighted (`bool`): whether some of the keys have log-weights other than 0.
        hollow (`bool`): whether some query may see no key at all.
    """

    part: int
    rows: Tensor
    visited: list[Tensor]
    tested: Tensor | None
    weighted: bool
    hollow: bool


class Worklist:
    """The chunks of a plan for one shape of inputs.

    Args:
        plan ([`Plan`]): whose lists to flatten.
        query_shape (`tuple[int, int, int]`): B, H and Rq, the query rows.
        key (`torch.Tensor`): `(B, Hkv, Rkv, D)`.
        scored (`bool`): whether the scores of a chunk are held in memory, beside its keys and values.
        threads (`int`): that work on one chunk.
        parts (`int`): groups of KV heads; a chunk has query tiles of one of them only.
    """

    def __init__(
        self, plan: Plan, query_shape: tuple[int, int, int], key: Tensor, scored: bool, threads: int, parts: int
    ) -> None:
        self.runs, self.dtype = _runs(plan), key.dtype
        tiles = math.prod(query_shape) // plan.block_q
        counts = self.granules(plan.kv_counts.expand(*key.shape[:2], -1))
        flat = [_Flat(run, query_shape[:2], key.shape[1], tiles, part) for run, part in zip(self.runs, counts)]
        tested = sum(part.partial_count for part in flat) > 0
        hollow = tested | (sum(part.void_count for part in flat) == sum(part.lengths for part in flat))
        odd = sum(part.odd_count for part in flat) > 0
        pairs = key.shape[0] * key.shape[1]
        group = torch.arange(tiles, device=key.device) * pairs // tiles * parts // pairs
        kinds = torch.stack([group, tested.long(), hollow.long(), *(part.lengths for part in flat)], -1)
        found, kind = kinds.unique(dim=0, return_inverse=True)
        order = torch.argsort(2 * kind + odd, stable=True)  # what has log-weights shares few chunks with what has none
        row_bytes = 2 * key.shape[-1] * key.element_size() + scored * 4 * plan.block_q
        granules, cut = [run.granule for run in self.runs], []
        for row, count in zip(found.tolist(), torch.bincount(kind, minlength=len(found)).tolist()):
            some = _Kind(row[0], bool(row[1]), bool(row[2]), row[3:])
            keys = sum(map(mul, some.lengths, granules))
            size = max(1, CHUNK_BYTES * threads // (row_bytes * keys)) if keys else count
            cut += [(some, min(size, count - first)) for first in range(0, count, size)]
        chunks = _chunks(order, cut, flat, odd)
        live = [any(kind.lengths) for kind, _ in cut]
        self.chunks = list(compress(chunks, live))[::-1]  # the longest first
        idle = [chunk.rows for chunk, some in zip(chunks, live) if not some]
        self.idle = torch.cat([order[:0], *idle])  # query tiles that visit nothing
        wide = torch.promote_types(key.dtype, torch.float32)
        # the log-weights, as granules
        self.bias = [part.to(wide).log() for part in counts] if any(chunk.weighted for chunk in self.chunks) else []

    def granules(self, rows: Tensor) -> list[Tensor]:
        """KV rows `(B, Hkv, Rkv, ...)` of every run as `(B Hkv Rkv_run / G, G, ...)`."""
        return [
            rows[:, :, run.start : run.start + run.rows].reshape(-1, run.granule, *rows.shape[3:]) for run in self.runs
        ]


def worklist(
    plan: Plan, query_shape: tuple[int, int, int], key: Tensor, scored: bool, threads: int = 1, parts: int = 1
) -> Worklist:
    """The plan's worklist for these shapes, built once."""
    at = ("worklist", tuple(query_shape), tuple(key.shape), key.dtype, scored, threads, parts)
    return plan.memo(at, lambda: Worklist(plan, query_shape, key, scored, threads, parts))


def _runs(plan: Plan) -> list[Run]:
    runs, start = [], 0
    for _, group in groupby(plan.lists, key=lambda lists: lists.tile < THIN_TILE):
        lists = tuple(group)
        ends = list(accumulate(plan.level_rows(level) for level in lists))
        granule = math.gcd(*(level.tile for level in lists))
        runs.append(Run(lists, (0, *ends[:-1]), start, ends[-1], granule))
        start += ends[-1]
    return runs


class _Kind(NamedTuple):
    """What the query tiles of a chunk have in common; lengths are granules of every run."""

    part: int
    tested: bool
    hollow: bool
    lengths: list[int]


def _chunks(order: Tensor, cut: list[tuple[_Kind, int]], flat: list[_Flat], odd: Tensor) -> list[Chunk]:
    """The query tiles `order`, cut into chunks of a kind and a number of tiles: all of them at once."""
    counts = [count for _, count in cut]
    sizes = [[kind.lengths[run] * count for kind, count in cut] for run in range(len(flat))]
    at = [run.of(order) for run in flat]
    visited = zip(*(run.granules[index].split(each) for run, index, each in zip(flat, at, sizes)))
    partial = flat[0].partial[at[0]].split(sizes[0])
    chunks = []
    for (kind, count), *columns in zip(cut, order.split(counts), visited, partial, odd[order].split(counts)):
        rows, granules, cells, weighted = columns
        tested = cells.view(count, -1) if kind.tested else None
        chunks.append(Chunk(kind.part, rows, list(granules), tested, bool(weighted.any()), kind.hollow))
    return chunks


class _Flat:
    """The granules of one run, sorted by query tile.

    `counts` are the keys that each row of each granule stands for: odd are granules with rows of other than one, void
    are those without keys.
    """

    def __init__(self, run: Run, batch_heads: tuple[int, int], kv_heads: int, tiles: int, counts: Tensor) -> None:
        parts = [_entries(lists, start, run, batch_heads, kv_heads) for lists, start in zip(run.lists, run.starts)]
        owner, granules, partial = (torch.cat(columns) for columns in zip(*parts))
        by_tile = torch.argsort(owner, stable=True)
        self.granules, self.partial = granules[by_tile], partial[by_tile]
        odd, void = counts.ne(1).any(1), counts.eq(0).all(1)
        some = (slice(None), partial, odd[granules], void[granules])
        self.lengths, self.partial_count, self.odd_count, self.void_count = (
            torch.bincount(owner[at], minlength=tiles) for at in some
        )
        self.first = self.lengths.cumsum(0) - self.lengths

    def of(self, tiles: Tensor) -> Tensor:
        """Index of the granules of these query tiles, one tile after the other."""
        lengths = self.lengths[tiles]
        shift = self.first[tiles] - (lengths.cumsum(0) - lengths)
        shift = shift.repeat_interleave(lengths)
        return shift + torch.arange(len(shift), device=shift.device)


def _entries(lists: TileList, start: int, run: Run, batch_heads: tuple[int, int], kv_heads: int) -> list[Tensor]:
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
    copies = len(part)
    return [
        tile[live].repeat_interleave(copies),
        (first[live][:, None] + part).flatten(),
        partial.reshape(live.shape)[live].repeat_interleave(copies),
    ]
