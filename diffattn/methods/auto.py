"""The default: nothing is dropped, and every block of keys is pooled as coarsely as it can be afforded."""

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

LEVELS = {128: (1, 4, 16, 128), 64: (1, 4, 16, 64), 32: (1, 4, 16, 32), 16: (1, 8, 16)}  # by block; 8 is a cube
GROWTH = 1 / 3  # of the error with the pool: with its edge, as the variance in a field that has edges itself
LEAST_MASS = 1e-30  # so that a block without any estimated mass still has a price
SPLIT = 1e-3  # between the first and the last block where all are alike: one price would put all at one level
STEPS = 40  # of the bisection: to the last bit of float32


@register
@dataclass(frozen=True)
class AutoConfig(AttentionConfig):
    """Every key takes part: exactly where the attention is, as means of 4, 16 or a whole block of tokens elsewhere.

    A mean of p neighbouring keys with ln p added to its score stands for all of them (Pyramid Sparse Attention, arXiv
    2512.04025). How far it is off grows with the variance inside the pool, which grows with the pool's edge, p^(1/3)
    (with its square where the field is smooth, which that of a model is not). So for each block of queries the levels
    minimise

        sum over blocks of keys of mass * (p^(1/3) - 1), subject to mean(1 / p) = density,

    solved exactly by one Lagrange multiplier. Tokens are taken in tiles of 4x4x8 with nested cubes of 2x2x2, so that
    pools are compact; text is always exact.

    Args:
        density (`float`, *optional*, defaults to 0.2): share of the products between visual tokens to compute, a mean
            counting as one. Products with text are all computed, on top.
        block (`int`, *optional*): tokens of a block; by default the largest of 128, 64, 32, 16 that gives 48 blocks.

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

    A block is at level i rather than i + 1 where `mass * (error[i + 1] - error[i]) > price * (cost[i] - cost[i + 1])`;
    the one price of a row is found by bisection on its sorted masses.

    Args:
        mass (`torch.Tensor`): `(..., N)` float32, non-negative.
        density (`float`): mean cost of a row; below `1 / levels[-1]` all are at the last level.
        levels (`tuple[int, ...]`): pool sizes, ascending from 1.

    Returns:
        `torch.Tensor`: `(..., N)` int64, index into `levels`.

    >>> allocate(torch.tensor([0.7, 0.2, 0.06, 0.04]), 0.4, (1, 4, 16)).tolist()
    [0, 1, 1, 2]
    """
    if density >= 1:
        return torch.zeros(mass.shape, dtype=torch.int64, device=mass.device)
    mass = mass.clamp(min=LEAST_MASS)
    ramp = torch.linspace(1, 1 + SPLIT, mass.shape[-1], dtype=mass.dtype, device=mass.device)
    mass = mass.where(mass.amin(-1, keepdim=True) < mass.amax(-1, keepdim=True), ramp)
    pool = torch.tensor(levels, dtype=torch.float64, device="cpu")
    cost, error = 1 / pool, pool**GROWTH
    worth = ((cost[:-1] - cost[1:]) / (error[1:] - error[:-1])).to(mass)  # descending
    saving = (cost[:-1] - cost[1:]).to(mass.device)
    ascending = mass.sort(dim=-1).values
    low, high = (mass.new_full(mass.shape[:-1], bound) for bound in (-80.0, 20.0))
    for _ in range(STEPS):
        middle = (low + high) / 2
        finer = mass.shape[-1] - torch.searchsorted(ascending, middle.exp()[..., None] * worth, right=True)
        spent = cost[-1] + (finer.double() @ saving) / mass.shape[-1]
        dear = spent > density
        low, high = torch.where(dear, middle, low), torch.where(dear, high, middle)
    return (mass[..., None] <= high.exp()[..., None, None] * worth).sum(-1)
