"""The default method: no key is dropped, and the less error a block of keys would make, the coarser it is pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..attention_config import AttentionConfig, check_density, register
from ..grid import TokenGrid
from ..kernels.plan.plan import Plan
from ._allocate import allocate
from ._check import check_size
from ._order import SIZES, block_order, block_size, visual_rows
from ._pool_statistics import padded_rows, pool_statistics
from ._pooling_error import part_mass, pooling_errors
from ._scores import match_heads
from ._select import extend_text, lists_of_levels

LEVELS = {128: (1, 4, 16, 128), 64: (1, 4, 16, 64), 32: (1, 4, 16, 32), 16: (1, 8, 16)}  # pool sizes by block size
PARTS = {128: 16, 64: 8, 32: 4, 16: 4}  # tokens that count as their mean in the estimated mass


@register
@dataclass(frozen=True)
class AutoConfig(AttentionConfig):
    """Every key takes part: exactly where pooling would make an error, as a mean of 4, 16 or a whole block elsewhere.

    A mean of p neighbouring keys with ln p added to its score stands for all of them (Pyramid Sparse Attention, arXiv
    2512.04025). For each block of queries and block of keys, with m its share of the attention, d the variance of the
    logits in the pools and s the deviation of their values (in units of that of all values), pooling makes the error

        m * (s * sqrt(d) + |r - r0|),    r = 1 - exp(-d / 2),

    to second order in the logits. The first term is the covariance of weights and values in a pool, at most. Besides,
    a pool loses the share r of its mass, by Jensen's inequality. Where all blocks lose the same share, the softmax
    makes up for it: only the distance from the mean share r0 of the head is an error. The levels minimise the sum over
    all blocks of a head, subject to mean(1 / p) = density. Where no value is given, keys stand in for values.

    Tokens are ordered in tiles of 4x4x8 with nested cubes of 2x2x2, so that pools are compact. Text is always exact.

    Args:
        density (`float`, *optional*, defaults to 0.2): share of the products between visual tokens to compute, a mean
            counting as one. Products with text are all computed, on top.
        block (`int`, *optional*): tokens of a block; by default the largest of 128, 64, 32, 16 that gives at least 48
            blocks.

    Example:

    >>> query, key = torch.randn(2, 1, 2304, 2, 32, generator=torch.Generator().manual_seed(0))
    >>> plan = AutoConfig(density=0.25).plan(TokenGrid(9, 16, 16), query, key)
    >>> round(plan.density, 2), bool(plan.to_dense_mask().all())
    (0.25, True)
    """

    density: float = 0.2
    block: int | None = None

    method: ClassVar[str] = "auto"
    dynamic: ClassVar[bool] = True
    plans_references: ClassVar[bool] = True
    wants_value: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density is None:
            raise ValueError("density must be above 0 and at most 1, got None")
        check_density(self.density)
        check_size("block", self.block, SIZES)

    def _plan(self, grid: TokenGrid, query: Tensor, key: Tensor, *, value: Tensor | None = None, **_) -> Plan:
        block = self.block or block_size(grid, 48)
        pools = LEVELS[block]
        order, video = block_order(grid, "nested", block, query.device)
        tiles, all_tiles = video // block, len(order) // block
        error = _errors(grid, query, key, key if value is None else value, self.density, pools, tiles)
        level = allocate(error.flatten(-2), self.density, pools).view(error.shape[1:])
        lists = lists_of_levels(extend_text(level, all_tiles, all_tiles, 0), pools, block)
        return Plan(grid.tokens, order[None, None], lists, block, visual=visual_rows(grid, video))


def _errors(
    grid: TokenGrid, query: Tensor, key: Tensor, value: Tensor, density: float, pools: tuple[int, ...], tiles: int
) -> Tensor:
    """`(L, B, H, tiles, tiles)` float32, expected error of every pair of blocks of the video at every level."""
    heads, kv_heads, part = query.shape[2], key.shape[2], PARTS[pools[-1]]
    rows, ln_count = padded_rows(grid, pools[-1], part, query.device)
    parts, blocks, squares = pool_statistics((query, key, value), rows, pools, part)
    q, k, _ = parts.split((heads, kv_heads, kv_heads), 2)
    mass = part_mass(q, k, ln_count, pools[-1] // part)[..., :tiles, :tiles]
    squares = squares[:, :, :tiles].transpose(2, 3)  # (L, B, H + 2 Hkv, tiles)
    variance = (squares[:1] - squares)[:, :, heads:].clamp_(min=0)
    of_key, of_value = (
        match_heads(part.flatten(0, 1), heads).view(-1, *mass.shape[:-1]) for part in variance.split(kv_heads, 2)
    )
    between = blocks[:, :tiles, heads + kv_heads :].var(1, correction=0).sum(-1)
    total = match_heads(variance[-1, :, kv_heads:].mean(-1) + between, heads)  # (B, H), variance of all values
    of_value = of_value / total[..., None]  # NaN where all values are the same: any plan is exact
    return pooling_errors(mass, squares[0, :, :heads] / query.shape[-1] ** 2, of_key, of_value, density, pools)
