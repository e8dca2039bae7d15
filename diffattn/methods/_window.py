"""One axis of generalized neighborhood attention: which keys each query sees, and in which tiles they lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..attention_config import plain_cpu


@dataclass(frozen=True, eq=False)
class Axis:
    """Windows along one axis, coordinates sorted by dilation group so that every window is one interval.

    Args:
        coordinate (`torch.Tensor`): `(L,)` int64, where each token lies among its group and the groups before it.
        low, high (`torch.Tensor`): `(L,)` int64, first and last coordinate each token sees.
        tile (`torch.Tensor`): `(L,)` int64, tile of each token; no tile spans two groups.
    """

    coordinate: Tensor
    low: Tensor
    high: Tensor
    tile: Tensor

    @property
    def sizes(self) -> Tensor:
        """`(N,)` int64, tokens of each tile."""
        return torch.bincount(self.tile)

    def pairs(self) -> Tensor:
        """`(L, L)` bool, whether token i sees token j."""
        return (self.low[:, None] <= self.coordinate) & (self.coordinate <= self.high[:, None])

    def tile_pairs(self) -> Tensor:
        """`(N, N)` int64, how many pairs of tokens of two tiles see each other."""
        member = torch.nn.functional.one_hot(self.tile).double()  # (L, N)
        return (member.T @ self.pairs().double() @ member).long()


@lru_cache(maxsize=4096)
@plain_cpu()
def axis(size: int, window: int, stride: int, dilation: int, causal: bool, tile: int) -> Axis:
    """Windows of `window` tokens (-1 for all) whose position moves in steps of `stride`, among every `dilation`-th.

    The rule of NATTEN: the queries of one stride share the window of their leader, and a window that would stick out
    is shifted inward, so that it always holds `window` tokens; a causal one ends at the query instead
    (arXiv 2504.16922, Section 3).
    """
    token = torch.arange(size)
    group, place = token % dilation, token // dilation
    length = (size - torch.arange(dilation) + dilation - 1) // dilation  # (dilation,)
    base = (length.cumsum(0) - length)[group]
    tiles = (length + tile - 1) // tile
    tile_base = (tiles.cumsum(0) - tiles)[group]
    low, high = _bounds(place, length[group], window, stride, causal)
    return Axis(base + place, base + low, base + high, tile_base + place // tile)


def _bounds(place: Tensor, length: Tensor, window: int, stride: int, causal: bool) -> tuple[Tensor, Tensor]:
    if window == -1:
        return torch.zeros_like(place), place if causal else length - 1
    width = length.clamp(max=window)
    first = place // stride * stride
    if causal:
        leader = torch.minimum(first + stride - 1, length - 1)
        return (leader - width + 1).clamp(min=0), place
    left, right = width // 2, width // 2 + width % 2 - 1
    leader = torch.minimum(first + stride // 2, length - 1)
    centre = torch.minimum(torch.maximum(leader, left), length - 1 - right)
    return centre - left, centre + right
