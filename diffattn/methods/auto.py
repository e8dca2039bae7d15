"""The default method: no key is dropped, and the less a block of keys matters, the coarser it is pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attention_config import AttentionConfig, check_density, register
from ..grid import TokenGrid
from ..kernels.plan.plan import Plan
from ..kernels.plan.tile_list import TileList
from ._check import check_size
from ._order import SIZES, block_order, block_size, visual_rows
from ._scores import block_mass
from ._select import extend_text

LEVELS = {128: (1, 4, 16, 128), 64: (1, 4, 16, 64), 32: (1, 4, 16, 32), 16: (1, 8, 16)}  # pool sizes by block size
GROWTH = 1 / 3  # the error of a pool of p tokens grows with its edge, p ** (1 / 3)
LEAST_MASS = 1e-30  # of a block, so that it has a price
TIE_BREAK = 1e-3  # relative difference of the first and the last block where all blocks have the same mass
BISECTIONS = 40  # to the last bit of float32


@register
@dataclass(frozen=True)
class AutoConfig(AttentionConfig):
    """Every key takes part: exactly where the attention is, as a mean of 4, 16 or a whole block of tokens elsewhere.

    A mean of p neighbouring keys with ln p added to its score stands for all of them (Pyramid Sparse Attention, arXiv
    2512.04025). Its error grows with the variance inside the pool, which grows with the edge of the pool, p^(1/3) (in
    a smooth field with the square of the edge, but the keys of a model are not smooth). For each block of queries the
    levels minimise

        sum over blocks of keys of mass * (p^(1/3) - 1), subject to mean(1 / p) = density,

    which one Lagrange multiplier solves exactly. Tokens are ordered in tiles of 4x4x8 with nested cubes of 2x2x2, so
    that pools are compact. Text is always exact.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density is None:
            raise ValueError("density must be above 0 and at most 1, got None")
        check_density(self.density)
        check_size("block", self.block, SIZES)

    def _plan(self, grid: TokenGrid, query: Tensor, key: Tensor, **_) -> Plan:
        block = self.block or block_size(grid, 48)
        levels = LEVELS[block]
        order, video = block_order(grid, "nested", block, query.device)
        tiles, all_tiles = video // block, len(order) // block
        mass = block_mass(query, key, order, block, block)[:, :, :tiles, :tiles]
        level = extend_text(allocate(mass, self.density, levels), all_tiles, all_tiles, 0)
        lists = [TileList.from_mask(level == index, block // pool, pool) for index, pool in enumerate(levels)]
        return Plan(grid.tokens, order[None, None], tuple(lists), block, visual=visual_rows(grid, video))


def allocate(mass: Tensor, density: float, levels: tuple[int, ...]) -> Tensor:
    """The levels that lose least, row by row, at no more than `density`.

    A block is at level i rather than i + 1 where `mass * (error[i + 1] - error[i]) > price * (cost[i] - cost[i + 1])`.
    Bisection on the sorted masses of a row finds its one price. Where all blocks of a row have the same mass, or a
    mass is NaN, the first ones are pooled further than the last ones.

    Args:
        mass (`torch.Tensor`): `(..., N)` float32, non-negative.
        density (`float`): mean of `1 / level` in a row, at most; below `1 / levels[-1]` all are at the last level.
        levels (`tuple[int, ...]`): pool sizes, ascending from 1.

    Returns:
        `torch.Tensor`: `(..., N)` int64, index into `levels`.

    >>> allocate(torch.tensor([0.7, 0.2, 0.06, 0.04]), 0.4, (1, 4, 16)).tolist()
    [0, 1, 1, 2]
    """
    if density >= 1:
        return torch.zeros(mass.shape, dtype=torch.int64, device=mass.device)
    mass = mass.clamp(min=LEAST_MASS)
    ramp = torch.linspace(1, 1 + TIE_BREAK, mass.shape[-1], dtype=mass.dtype, device=mass.device)
    mass = mass.where(mass.amin(-1, keepdim=True) < mass.amax(-1, keepdim=True), ramp)
    pool = torch.tensor(levels, dtype=torch.float64, device="cpu")
    cost, error = 1 / pool, pool**GROWTH
    saving = cost[:-1] - cost[1:]
    least_mass = (saving / (error[1:] - error[:-1])).to(mass)  # at price 1, to be at a finer level; descending
    saving = saving.to(mass.device)
    ascending = mass.sort(dim=-1).values
    low, high = (mass.new_full(mass.shape[:-1], bound) for bound in (-80.0, 20.0))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        finer = mass.shape[-1] - torch.searchsorted(ascending, middle.exp()[..., None] * least_mass, right=True)
        spent = cost[-1] + (finer.double() @ saving) / mass.shape[-1]
        over = spent > density
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (mass[..., None] <= high.exp()[..., None, None] * least_mass).sum(-1)
