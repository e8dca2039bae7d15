"""The KV tiles that every query tile visits, as lists of tile numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TileList:
    """The KV tiles that every query tile visits at one pooling level.

    Args:
        counts (`torch.Tensor`): `(B|1, H|1, NQ)` int32, how many entries of `indices` are read.
        indices (`torch.Tensor`): `(B|1, H|1, NQ, M)` int16, int32 or int64, tile numbers within this level, each at
            most once.
        tile (`int`): rows of one KV tile.
        pool (`int`, *optional*, defaults to 1): tokens averaged into one KV row.
        partial (`torch.Tensor`, *optional*): shape of `indices`, bool; entries in which `Plan.boxes` decide which
            keys a query sees.
    """

    counts: Tensor
    indices: Tensor
    tile: int
    pool: int = 1
    partial: Tensor | None = None

    @classmethod
    def from_mask(cls, mask: Tensor, tile: int, pool: int = 1, partial: Tensor | None = None) -> TileList:
        """Lists of the kept tiles of a boolean `(B|1, H|1, NQ, NK)` tile mask, ascending; `partial` is a second one.

        >>> lists = TileList.from_mask(torch.tensor([[[[True, False, True], [False, True, False]]]]), tile=64)
        >>> lists.counts.tolist(), lists.indices.tolist()
        ([[[2, 1]]], [[[[0, 2], [1, 0]]]])
        """
        place = mask.cumsum(-1)
        counts = place[..., -1].int()
        width, tiles = max(int(counts.max()), 1), mask.shape[-1]
        place = (place - 1).masked_fill_(~mask, width)  # other tiles go to an extra column, which is cut off
        dtype = torch.int16 if tiles <= 2**15 else torch.int32
        indices = torch.zeros(*mask.shape[:-1], width + 1, dtype=dtype, device=mask.device)
        indices.scatter_(-1, place, torch.arange(tiles, dtype=dtype, device=mask.device).expand_as(mask))
        indices = indices[..., :width].contiguous()
        if partial is not None:
            partial = (mask & partial).gather(-1, indices.long()) if bool((mask & partial).any()) else None
        return cls(counts, indices, tile, pool, partial)

    @property
    def live(self) -> Tensor:
        """Shape of `indices`, bool: the entries that are read."""
        return torch.arange(self.indices.shape[-1], device=self.indices.device) < self.counts[..., None]

    def to_mask(self, tiles: int, entries: Tensor | None = None) -> Tensor:
        """The boolean `(B|1, H|1, NQ, tiles)` tile mask of these lists, or of some of their `entries`."""
        live = self.live if entries is None else self.live & entries
        hits = torch.zeros(*self.indices.shape[:-1], tiles, dtype=torch.int32, device=self.indices.device)
        return hits.scatter_add_(-1, self.indices.long(), live.to(torch.int32)) > 0
