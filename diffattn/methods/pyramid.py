"""Pyramid Sparse Attention (arXiv 2512.04025): the less a block matters, the coarser its keys and values are."""

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
from ._select import assign_levels, extend_text, level_ends_of_thresholds, similarity_cap

PUBLISHED_MIX = (2 / 7, 1 / 7, 0.0, 4 / 7)  # of levels 1, 2, 4, 8 among the kept blocks of the quantile presets

# arXiv 2512.04025, from the released configuration file; no layer is dense
SHARED = {"block_q": 128, "block_k": 128, "order": "hilbert"}
PUBLISHED = {
    name: ({**SHARED, **options}, Schedule(dense_start=dense_start, dense_layers=0))
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
    """Pyramid Sparse Attention: each block of keys is kept at level 1, 2, 4 or 8, or dropped, by its importance.

    Level p pools p keys and values into one, with ln(p) added to the score. Blocks of keys are ranked by estimated
    importance for each block of queries; `thresholds` end the levels at a cumulated importance, `quantiles` at a share
    of the blocks. Text is always at level 1. Where the released code departs from the paper by accident (it reads keys
    past a pooled block, counts padding, and does not protect text), this follows the paper.

    Args:
        density (`float`, *optional*, defaults to 0.2): share of the products between visual tokens to compute, a
            pooled key counting as one. The levels have the proportions of the published quantile presets.
        thresholds (`tuple`, *optional*): ends of the levels as cumulated importance, instead of `density`.
        quantiles (`tuple`, *optional*): ends of the levels as shares of the blocks, instead of `density`.
        levels (`tuple`, *optional*, defaults to `(1, 2, 4, 8)`): pool sizes, powers of 2, ascending from 1.
        similarity (`tuple`, *optional*): for each level above 1, the least mean cosine of keys at which a block may be
            pooled so far (Section 3.4). Raises the density.
        block_q, block_k (`int`, *optional*): tokens of a block of queries and of keys; by default the largest of 128,
            64, 32, 16 that gives at least 32 blocks.
        order (`str`, *optional*, defaults to `"nested"`): `"nested"` (tiles of 4x4x8 tokens, made of cubes of
            2x2x2), `"hilbert"` (a space-filling curve, as published), or `"raster"`.
        importance (`str`, *optional*, defaults to `"pooled"`): is estimated from means of up to 16 tokens
            (`"pooled"`), or from a random quarter of the tokens as in the paper (`"sampled"`).
        seed (`int`, *optional*, defaults to 0): decides which tokens `"sampled"` takes.
        floor (`float`, *optional*, defaults to 0.06): with `thresholds`, the least share of blocks at level 1.

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
    plans_references: ClassVar[bool] = True
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
        level = assign_levels(scores, self._level_ends(scores), self.levels)
        if self.similarity is not None:
            rows = key.index_select(1, order[: blocks * block_k].clamp(min=0)).transpose(1, 2)
            cap = similarity_cap(match_heads(rows, query.shape[2]), block_k, self.levels[1:], self.similarity)
            level = torch.minimum(level, cap[:, :, None])
        return level

    def _level_ends(self, scores: Tensor) -> Tensor | list[int]:
        if self.thresholds is not None:
            return level_ends_of_thresholds(scores, self.thresholds, self.floor)
        blocks = scores.shape[-1]
        if self.quantiles is not None:
            return [int(blocks * end) for end in self.quantiles]  # rounded as in the released code
        return level_ends_of_density(self.density, blocks, self.levels)


def level_ends_of_density(density: float, blocks: int, levels: tuple[int, ...]) -> list[int]:
    """The ranks at which the levels end so that `density` is met, with the published mix of levels.

    Once the mix covers every block, a higher density moves blocks of all levels to level 1, in proportion. Level 1
    also absorbs the rounding.

    >>> level_ends_of_density(0.15, 20, (1, 2, 4, 8)), level_ends_of_density(1.0, 20, (1, 2, 4, 8))
    ([2, 3, 3, 7], [20, 20, 20, 20])
    """
    coarser = len(levels) - 1
    exact = PUBLISHED_MIX[0]
    mix = PUBLISHED_MIX if levels == (1, 2, 4, 8) else (exact, *[(1 - exact) / max(coarser, 1)] * coarser)
    cost = sum(share / level for share, level in zip(mix, levels))
    if density <= cost:
        shares = [share * density / cost for share in mix]
    else:
        moved = (density - cost) / (1 - cost)
        shares = [share * (1 - moved) for share in mix]
        shares[0] += moved
    counts = [round(share * blocks) for share in shares]
    pooled = sum(count / level for count, level in zip(counts[1:], levels[1:]))
    counts[0] = min(blocks, max(1, round(density * blocks - pooled)))
    return [min(blocks, sum(counts[: last + 1])) for last in range(len(counts))]
