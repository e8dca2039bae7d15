"""What the methods are measured against: dense attention, the best tokens, the best blocks, and blocks at random."""

from __future__ import annotations

import torch
from torch import Tensor

from diffattn import Plan, TileList, TokenGrid, attend
from diffattn.methods._order import block_order, block_size
from diffattn.methods._scores import block_mass
from diffattn.methods._select import top

ROWS = 512  # query rows scored at once


def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Full attention, `(B, S, H, D)`."""
    parts = (x.transpose(1, 2) for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2)


def best_tokens(query: Tensor, key: Tensor, value: Tensor, density: float) -> Tensor:
    """Each query with the share `density` of the keys that score highest: no selection of keys does better."""
    count = max(1, round(density * key.shape[1]))
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    out = []
    for rows in q.split(ROWS, 2):
        scores = rows @ k.mT * q.shape[-1] ** -0.5
        least = scores.topk(count, -1).values[..., -1:]
        out.append(scores.masked_fill(scores < least, -torch.inf).softmax(-1) @ v)
    return torch.cat(out, 2).transpose(1, 2)


def block_plan(grid: TokenGrid, query: Tensor, key: Tensor, density: float, seed: int | None = None) -> Plan:
    """Each query tile with the blocks of the most estimated mass, or with random ones drawn from `seed`.

    Blocks and order are those of [`diffattn.PyramidConfig`]; grids without text.
    """
    block = block_size(grid, 32)
    order, rows = block_order(grid, "nested", block)
    blocks = rows // block
    if seed is None:
        scores = block_mass(query, key, order, block, block)
    else:
        shape = (query.shape[0], query.shape[2], blocks, blocks)
        scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    lists = TileList.from_mask(top(scores, max(1, round(density * blocks))), block)
    return Plan(grid.tokens, order[None, None], (lists,), block)


def run_blocks(grid: TokenGrid, query: Tensor, key: Tensor, value: Tensor, density: float, seed: int | None = None):
    """Output of [`block_plan`] and the density it reached."""
    plan = block_plan(grid, query, key, density, seed)
    return attend(query, key, value, plan), plan.density
