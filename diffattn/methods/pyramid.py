"""Pyramid Sparse Attention (arXiv 2512.04025): the less a block matters, the coarser its keys and values."""

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
from ._check import check_choice, check_integer, check_levels, check_shares, check_size
from ._order import ORDERS, SIZES, block_order, block_size, visual_rows
from ._scores import block_mass, match_heads, sampled_mass
from ._select import assign_levels, extend_text, similarity_cap, threshold_ends

MIX = (2 / 7, 1 / 7, 0.0, 4 / 7)  # shares of the blocks at levels 1, 2, 4, 8 in the published quantile presets

# arXiv 2512.04025, from the released configuration file; no layer is dense
COMMON = {"block_q": 128, "block_k": 128, "order": "hilbert"}
PUBLISHED = {
    name: ({**COMMON, **options}, Schedule(dense_start=dense_start, dense_layers=0))
    for name, dense_start, options in (
        ("wan2.1-14b", 15 / 50, {"thresholds": (0.4, 0.5, 0.6, 0.8)}),
        ("wan2.1-1.3b", 15 / 50, {"thresholds": (0.5, 0.6, 0.7, 0.8), "similarity": (0.70, 0.65, 0.60)}),
        ("wan2.1-1.3b-topk", 15 / 50, {"quantiles": (0.05, 0.10, 0.15, 0.25), "block_k": 32}),
        ("wan2.2-a14b", 12 / 40, {"thresholds": (0.5, 0.6, 0.6, 0.8), "block_k": 32}),
        ("wan2.2-5b", 15 / 50, {"thresholds": (0.6, 0.7, 0.7, 0.8), "block_k": 32}),
        ("cogvideox1.5-5b", 15 / 50, {"quantiles": (0.10, 0.15, 0.15, 0.35), "block_k": 32}),
        ("cogvideox-5b", 15 / 50, {"quantiles": (0.10, 0.15, 0.15, 0.35), "order": "raster"}),
        ("cogvideox-5b-4step", 0, {"quantiles": (0.05, 0.15, 0.25, 0.50), "order": "raster"}),
    )
}


@register
@dataclass(frozen=True)
class PyramidConfig(AttentionConfig):
    """Pyramid Sparse Attention: every block of keys at level 1, 2, 4 or 8, or not at all, by estimated importance.

    A level pools so many keys and values into one, with ln(tokens) added to its score. Blocks are ranked for every
    block of queries; `thresholds` end the levels at a cumulated importance, `quantiles` at a share of the blocks.
    Text is always at level 1. Where the released code departs from the paper by accident (keys read past a pooled
    block, padding that counts, text unprotected), this follows the paper.

    Args:
        density (`float`, *optional*, defaults to 0.2): share of the products between visual tokens to compute, a
            pooled key counting as one; levels are then filled in the proportions of the published presets.
        thresholds (`tuple`, *optional*): ends of the levels as cumulated importance, instead of `density`.
        quantiles (`tuple`, *optional*): ends of the levels as shares of the blocks, instead of `density`.
        levels (`tuple`, *optional*, defaults to `(1, 2, 4, 8)`): pool sizes, powers of 2, ascending from 1.
        similarity (`tuple`, *optional*): for each level above 1, the mean cosine of keys below which no block is
            pooled so far (Section 3.4); raises the density.
        block_q, block_k (`int`, *optional*): tokens of a block; by default the largest of 128, 64, 32, 16 that
            gives 32 blocks.
        order (`str`, *optional*, defaults to `"nested"`): `"nested"` tiles of 4x4x8 tokens in cubes of 2x2x2,
            `"hilbert"` a space-filling curve, as published, or `"raster"`.
        importance (`str`, *optional*, defaults to `"pooled"`): `"pooled"` means of 16 tokens, or `"sampled"`, the
            paper's random quarter of the tokens, drawn from `seed`.
        seed (`int`, *optional*, defaults to 0): of the sample.
        floor (`float`, *optional*, defaults to 0.06): with `thresholds`, least share of blocks at level 1.

    Example:

    >>> query, key = torch.randn(2, 1, 2304, 2, 32, generator=torch.Generator().manual_seed(0))
    >>> plan = PyramidConfig(density=0.25).plan(TokenGrid(9, 16, 16), query, key)
    >>> round(plan.density, 2), sorted(plan.level_density)
    (0.25, [1, 2, 4, 8])
    """

    density: float | None = Default(0.2)
    thresholds: tuple[float, ...] | None = None
    quantiles: tuple[float, ...] | None = None
    levels: tuple[int, ...] = (1, 2, 4, 8)
    similarity: tuple[float, ...] | None = None
    block_q: int | None = None
    block_k: int | None = None
    order: str = "nested"
    importance: str = "pooled"
    seed: int = 0
    floor: float = 0.06

    method: ClassVar[str] = "pyramid"
    dynamic: ClassVar[bool] = True
    published: ClassVar[dict] = PUBLISHED

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose_one("density", "thresholds", "quantiles")
        check_density(self.density)
        check_levels("levels", self.levels)
        for name in ("thresholds", "quantiles"):
            check_shares(name, getattr(self, name), len(self.levels), "levels")
        check_shares("similarity", self.similarity, len(self.levels) - 1, "levels above 1", ordered=False, low=-1)
        for name in ("block_q", "block_k"):
            check_size(name, getattr(self, name), SIZES, at_least=self.levels[-1])
        check_choice("order", self.order, ORDERS)
        check_choice("importance", self.importance, ("pooled", "sampled"))
        check_integer("seed", self.seed, least=0)
        check_shares("floor", (self.floor,), 1)

    def _plan(self, grid: TokenGrid, query: Tensor, key: Tensor, **_) -> Plan:
        size = max(block_size(grid, 32), self.levels[-1])
        block_q, block_k = self.block_q or size, self.block_k or size
        order, video = block_order(grid, self.order, max(block_q, block_k), query.device)
        level = self._levels(query, key, order, video // block_q, video // block_k, block_q, block_k)
        level = extend_text(level, len(order) // block_q, len(order) // block_k, 1)
        lists = [TileList.from_mask(level == pool, block_k // pool, pool) for pool in self.levels]
        return Plan(grid.tokens, order[None, None], tuple(lists), block_q, visual=visual_rows(grid, video))

    def _levels(self, query, key, order, tiles, blocks, block_q, block_k) -> Tensor:
        """`(B, H, tiles, blocks)` level of every block of video keys for every tile of video queries."""
        if self.importance == "sampled":
            scores = sampled_mass(query, key, order, block_q, block_k, self.seed)
        else:
            scores = block_mass(query, key, order, block_q, block_k)
        scores = scores[:, :, :tiles, :blocks]
        level = assign_levels(scores, self._ends(scores), self.levels)
        if self.similarity is not None:
            rows = key.index_select(1, order[: blocks * block_k].clamp(min=0)).transpose(1, 2)
            cap = similarity_cap(match_heads(rows, query.shape[2]), block_k, self.levels[1:], self.similarity)
            level = torch.minimum(level, cap[:, :, None])
        return level

    def _ends(self, scores: Tensor) -> Tensor | list[int]:
        if self.thresholds is not None:
            return threshold_ends(scores, self.thresholds, self.floor)
        blocks = scores.shape[-1]
        if self.quantiles is not None:
            return [int(blocks * end) for end in self.quantiles]  # rounded as in the released code
        return level_ends(self.density, blocks, self.levels)


def level_ends(density: float, blocks: int, levels: tuple[int, ...]) -> list[int]:
    """Ranks at which the levels end so that `density` is met: the published mix of levels, as far as it goes.

    Past the density at which the mix reaches every block, blocks of all levels turn exact in proportion. Level 1 takes
    up what rounding leaves.

    >>> level_ends(0.15, 20, (1, 2, 4, 8)), level_ends(1.0, 20, (1, 2, 4, 8))
    ([2, 3, 3, 7], [20, 20, 20, 20])
    """
    coarser = len(levels) - 1
    mix = MIX if levels == (1, 2, 4, 8) else (MIX[0], *[(1 - MIX[0]) / max(coarser, 1)] * coarser)
    cost = sum(share / level for share, level in zip(mix, levels))
    if density <= cost:
        shares = [share * density / cost for share in mix]
    else:
        exact = (density - cost) / (1 - cost)
        shares = [share * (1 - exact) for share in mix]
        shares[0] += exact
    counts = [round(share * blocks) for share in shares]
    pooled = sum(count / level for count, level in zip(counts[1:], levels[1:]))
    counts[0] = min(blocks, max(1, round(density * blocks - pooled)))
    return [min(blocks, sum(counts[: last + 1])) for last in range(len(counts))]
