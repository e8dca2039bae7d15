"""NABLA (arXiv 2507.13546): the blocks with the most attention between mean queries and mean keys, and a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attention_config import AttentionConfig, Default, check_density, register
from ..grid import TokenGrid
from ..kernels.plan.plan import Plan
from ..kernels.plan.tile_list import TileList
from ..schedule import Schedule
from ._check import check_shares, check_size, check_triple
from ._order import block_size, coordinates, grid_numbers, nested_rank, pack, visual_rows, with_text
from ._scores import match_heads, pooled
from ._select import extend_text, largest

TILES = {128: (2, 8, 8), 64: (1, 8, 8), 32: (1, 4, 8), 16: (1, 4, 4)}  # tokens of a block
# the defaults of diffusers' Kandinsky6SRTransformer3DModel
PUBLISHED = {"kandinsky-6-sr": ({"threshold": 0.8, "window": (11, 7, 7), "block": 64}, Schedule(0, 0, 0))}


@register
@dataclass(frozen=True)
class NablaConfig(AttentionConfig):
    """NABLA: block means of queries and keys say how much attention each block of keys gets.

    Every block of queries keeps the blocks of keys with the largest shares. Blocks are tiles of a frame, 8x8 tokens as
    published; where tiles do not divide the grid, blocks run on into the next tile. Text attends to everything and
    everything to text.

    Args:
        density (`float`, *optional*, defaults to 0.2): share of the products between visual tokens to compute, window
            included.
        threshold (`float`, *optional*): keep blocks until they have this share of the attention, as published, instead
            of `density`; the window comes on top.
        window (`tuple`, *optional*): tiles along frames, height and width, odd numbers; the blocks within it are
            always kept. None by default.
        block (`int`, *optional*): tokens of a block, 128, 64, 32 or 16; by default the published 64, or, with
            `density`, less where that gives fewer than 32 blocks.

    Example:

    >>> query, key = torch.randn(2, 1, 2304, 2, 32, generator=torch.Generator().manual_seed(0))
    >>> plan = NablaConfig(density=0.25).plan(TokenGrid(9, 16, 16), query, key)
    >>> plan.density, plan.block_q
    (0.25, 64)
    """

    density: float | None = Default(0.2)
    threshold: float | None = None
    window: tuple[int, int, int] | None = None
    block: int | None = None

    method: ClassVar[str] = "nabla"
    dynamic: ClassVar[bool] = True
    plans_references: ClassVar[bool] = True
    published: ClassVar[dict] = PUBLISHED

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose_one("density", "threshold")
        check_density(self.density)
        check_shares("threshold", None if self.threshold is None else (self.threshold,), 1)
        check_triple("window", self.window)
        if any(size % 2 == 0 for size in self.window or ()):
            raise ValueError(f"window must be odd, for a block to sit in the middle, got {self.window}")
        check_size("block", self.block, tuple(TILES))

    def _plan(self, grid: TokenGrid, query: Tensor, key: Tensor, **_) -> Plan:
        block = self.block or (64 if self.density is None else min(64, block_size(grid, 32)))
        at = coordinates(grid, query.device)
        tile = TILES[block]
        video = pack(grid_numbers(grid, query.device), nested_rank(at, tile, tile), block)
        order = with_text(video, grid, block)
        kept = self._kept(block_attention(query, key, order[: len(video)], block), at[video[::block]], tile)
        tiles = len(order) // block
        lists = TileList.from_mask(extend_text(kept, tiles, tiles, True), block)
        return Plan(grid.tokens, order[None, None], (lists,), block, visual=visual_rows(grid, len(video)))

    def _kept(self, shares: Tensor, at: Tensor, tile: tuple[int, int, int]) -> Tensor:
        """`(B, H, N, N)` bool, from the shares of the same shape and where each block begins, `(N, 3)`."""
        always = torch.zeros_like(shares[0, 0], dtype=torch.bool)
        if self.window is not None:
            place = at // at.new_tensor(tile)
            reach = at.new_tensor(self.window) // 2
            always = ((place[:, None] - place).abs() <= reach).all(-1)
        if self.threshold is None:
            return largest(shares + 2 * always, max(1, round(self.density * shares.shape[-1])))
        return most_attended(shares, self.threshold) | always


def block_attention(query: Tensor, key: Tensor, order: Tensor, block: int) -> Tensor:
    """`(B, H, N, N)` float32, the attention of block means; each mean key stands for the tokens of its block.

    Args:
        query, key (`torch.Tensor`): `(B, S, H, D)` and `(B, S, Hkv, D)`.
        order (`torch.Tensor`): `(N * block,)`, token of each row, -1 for padding.
    """
    (q, _), (k, counts) = pooled(query, order, block), pooled(key, order, block)
    k = match_heads(k, q.shape[1])
    return (query.shape[-1] ** -0.5 * q @ k.mT + counts.log()).softmax(-1)


def most_attended(shares: Tensor, threshold: float) -> Tensor:
    """Bool of the shape of `shares`: from the smallest on, entries are dropped while their sum is below 1 - threshold.

    >>> most_attended(torch.tensor([0.1, 0.5, 0.15, 0.25]), 0.8).tolist()
    [False, True, True, True]
    """
    ascending, indices = shares.sort(dim=-1, stable=True)
    kept = ascending.cumsum(-1) >= 1 - threshold
    return torch.zeros_like(kept).scatter_(-1, indices, kept)
