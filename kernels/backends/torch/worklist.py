"""The lists of a plan, flattened and cut into chunks of equal work for the torch path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

from ...plan.plan import Plan
from .visits import Visits, runs_of


@dataclass(frozen=True)
class Sizes:
    """How much is processed at once, so that it stays in the cache.

    Args:
        chunk (`int`): bytes of a chunk per thread; the optimum is flat between 0.5 and 4 MB on the CPUs measured.
        part (`int`): bytes of keys and values of one query tile in one call: torch reads them again for every few
            query rows.
        kept_cells (`int`): products of partial tiles, a byte each. Up to this number, the keys that boxes hide are
            computed once per plan, beyond it in every call.
    """

    chunk: int = 2 << 20
    part: int = 5 << 20
    kept_cells: int = 64 << 20


DEFAULT_SIZES = Sizes()


@dataclass(frozen=True, eq=False)
class Chunk:
    """Query tiles that visit equally many granules of each run.

    Args:
        share (`int`): number of its group of KV heads, see [`Worklist`].
        tiles (`torch.Tensor`): `(n,)`, numbers among all `B * H * NQ` query tiles.
        visited (`list[torch.Tensor]`): per run `(n * L,)`, numbers among its `B * Hkv * rows / granule` granules.
        partial (`torch.Tensor`, *optional*): `(n, L)` bool, granules in which boxes decide which keys are seen.
        weighted (`bool`): whether some of the keys have log-weights other than 0.
        may_lack_keys (`bool`): whether some query may see no key at all.
    """

    share: int
    tiles: Tensor
    visited: list[Tensor]
    partial: Tensor | None
    weighted: bool
    may_lack_keys: bool


class _Kind(NamedTuple):
    """The common properties of the query tiles of a chunk; lengths are granules of every run."""

    share: int
    partial: bool
    may_lack_keys: bool
    lengths: list[int]


class Worklist:
    """The chunks of a plan for one shape of inputs.

    Args:
        plan ([`Plan`]): whose lists to flatten.
        query_shape (`tuple[int, int, int]`): B, H and Rq, the query rows.
        key (`torch.Tensor`): `(B, Hkv, Rkv, D)`.
        scored (`bool`): whether the scores of a chunk are held in memory, beside its keys and values.
        threads (`int`): that work on one chunk.
        shares (`int`): groups of KV heads; a chunk has query tiles of one of them only.
        sizes ([`Sizes`]): of chunks and their parts.
    """

    def __init__(
        self, plan: Plan, query_shape: tuple[int, int, int], key: Tensor, scored: bool, threads: int, shares: int,
        sizes: Sizes,
    ) -> None:  # fmt: skip
        self.runs, self.dtype, self.sizes = runs_of(plan), key.dtype, sizes
        tiles, kv_heads = math.prod(query_shape) // plan.block_q, key.shape[0] * key.shape[1]
        counts = self.granules(plan.kv_counts.expand(*key.shape[:2], -1))
        visits = [Visits(run, query_shape[:2], key.shape[1], tiles, part) for run, part in zip(self.runs, counts)]
        partial, weighted = sum(run.partial_count for run in visits) > 0, sum(run.weighted_count for run in visits) > 0
        self.partial_cells = int(visits[0].partial.sum()) * plan.block_q * self.runs[0].granule
        may_lack_keys = sum(run.whole_count for run in visits) == 0
        share = torch.arange(tiles, device=key.device) * kv_heads // tiles * shares // kv_heads
        kinds = torch.stack([share, partial.long(), may_lack_keys.long(), *(run.lengths for run in visits)], -1)
        found, kind = kinds.unique(dim=0, return_inverse=True)
        # query tiles of a kind follow each other, those with log-weights last, so that few chunks mix the two
        order = torch.argsort(2 * kind + weighted, stable=True)
        row_bytes = 2 * key.shape[-1] * key.element_size() + scored * 4 * plan.block_q
        tiles_of_kind = torch.bincount(kind, minlength=len(found)).tolist()
        cuts = self._cuts(found.tolist(), tiles_of_kind, sizes.chunk * threads // row_bytes)
        chunks = _chunks(order, cuts, visits, weighted)
        self.chunks = [chunk for chunk in reversed(chunks) if any(map(len, chunk.visited))]  # the longest first
        idle = [chunk.tiles for chunk in chunks if not any(map(len, chunk.visited))]
        self.idle = torch.cat([order[:0], *idle])  # query tiles that visit nothing
        wide = torch.promote_types(key.dtype, torch.float32)
        # the log-weights, as granules
        self.bias = [part.to(wide).log() for part in counts] if any(chunk.weighted for chunk in self.chunks) else []

    def granules(self, rows: Tensor) -> list[Tensor]:
        """KV rows `(B, Hkv, Rkv, ...)` of every run as `(B Hkv Rkv_run / G, G, ...)`."""
        return [
            rows[:, :, run.start : run.start + run.rows].reshape(-1, run.granule, *rows.shape[3:]) for run in self.runs
        ]

    def _cuts(self, kinds: list[list[int]], counts: list[int], most_keys: int) -> list[tuple[_Kind, int]]:
        """The kind of each chunk and its number of query tiles, so that chunks hold at most so many keys."""
        cuts = []
        for (share, partial, may_lack_keys, *lengths), count in zip(kinds, counts):
            keys = sum(map(mul, lengths, (run.granule for run in self.runs)))
            size = max(1, most_keys // keys) if keys else count
            kind = _Kind(share, bool(partial), bool(may_lack_keys), lengths)
            cuts += [(kind, min(size, count - first)) for first in range(0, count, size)]
        return cuts


def worklist(
    plan: Plan, query_shape: tuple[int, int, int], key: Tensor, scored: bool, threads: int, shares: int, sizes: Sizes
) -> Worklist:
    """The plan's worklist for these shapes, built once."""
    at = ("worklist", tuple(query_shape), tuple(key.shape), key.dtype, scored, threads, shares, sizes)
    return plan.memo(at, lambda: Worklist(plan, query_shape, key, scored, threads, shares, sizes))


def _chunks(order: Tensor, cuts: list[tuple[_Kind, int]], visits: list[Visits], weighted: Tensor) -> list[Chunk]:
    """The query tiles `order`, cut into chunks of a kind and a number of tiles: all of them at once."""
    counts = [count for _, count in cuts]
    sizes = [[kind.lengths[run] * count for kind, count in cuts] for run in range(len(visits))]
    at = [run.of(order) for run in visits]
    visited = zip(*(run.granules[index].split(each) for run, index, each in zip(visits, at, sizes)))
    partial = visits[0].partial[at[0]].split(sizes[0])
    chunks = []
    for (kind, count), *columns in zip(cuts, order.split(counts), visited, partial, weighted[order].split(counts)):
        tiles, granules, cells, weights = columns
        cells = cells.view(count, -1) if kind.partial else None
        chunks.append(Chunk(kind.share, tiles, list(granules), cells, bool(weights.any()), kind.may_lack_keys))
    return chunks
