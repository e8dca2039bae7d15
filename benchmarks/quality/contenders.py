"""Who takes part in the study: the methods, and controls: the best tokens, the best blocks, and blocks at random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from diffattn.kernels.plan.affine import Affine
from torch import Tensor

import diffattn
from diffattn import AttentionConfig, Plan, TileList, TokenGrid
from diffattn.methods._order import block_order, block_size
from diffattn.methods._scores import block_mass, match_heads
from diffattn.methods._select import largest

ROWS = 512  # query rows scored at once


def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Full attention, `(B, S, H, D)`."""
    parts = (x.transpose(1, 2) for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*parts, enable_gqa=True).transpose(1, 2)


def best_tokens(query: Tensor, key: Tensor, value: Tensor, density: float, rest: bool = False) -> Tensor:
    """Each query with the share `density` of the keys that score highest: no selection of keys keeps more mass.

    With `rest` the keys that are left out share their mass evenly, as if one mean value stood for them.
    """
    count = _count(density, key.shape[1])
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    out = []
    for rows in q.split(ROWS, 2):
        probs = (rows @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        kept = probs >= probs.topk(count, -1).values[..., -1:]
        best = probs.where(kept, 0)
        mass = best.sum(-1, keepdim=True)
        share = (1 - mass) / (~kept).sum(-1, keepdim=True).clamp(min=1)
        out.append((best.where(kept, share) if rest else best / mass) @ v)
    return torch.cat(out, 2).transpose(1, 2)


@dataclass(frozen=True)
class TopTokens(AttentionConfig):
    """[`best_tokens`] as a plan: tiles of one token, so for short sequences only."""

    density: float
    rest: bool = False

    method: ClassVar[str] = "top-k tokens"
    dynamic: ClassVar[bool] = True

    def _plan(self, grid: TokenGrid, query: Tensor, key: Tensor, **_) -> Plan:
        q, k = (x.transpose(1, 2) for x in (query, key))
        scores = q @ match_heads(k, q.shape[1]).mT
        best = scores.topk(_count(self.density, grid.tokens), -1).indices
        counts = torch.full(best.shape[:-1], best.shape[-1], dtype=torch.int32)
        order = torch.arange(grid.tokens, device=query.device)[None, None]
        lists = TileList(counts.to(query.device), best.int(), 1)
        post = _mean_of_the_rest(scores * q.shape[-1] ** -0.5, best) if self.rest else None
        return Plan(grid.tokens, order, (lists,), 1, post=post)


def _mean_of_the_rest(scores: Tensor, best: Tensor) -> Affine:
    """What makes the mean value of all keys but the `best` stand for the mass they had; tiles of one token."""
    mass = scores.softmax(-1).gather(-1, best).sum(-1)
    share = (1 - mass) / max(scores.shape[-1] - best.shape[-1], 1)
    return Affine(mass, share[..., None].expand_as(scores).scatter(-1, best, 0.0), 1)


@dataclass(frozen=True)
class TopBlocks(AttentionConfig):
    """Each query tile with the blocks of the most estimated mass; blocks and order are those of `PyramidConfig`.

    For grids without text.
    """

    density: float

    method: ClassVar[str] = "top-k blocks"
    dynamic: ClassVar[bool] = True

    def _plan(self, grid: TokenGrid, query: Tensor, key: Tensor, layer: int, **_) -> Plan:
        block = block_size(grid, 32)
        order, rows = block_order(grid, "nested", block, query.device)
        scores = self.scores(query, key, order, block, layer)
        lists = TileList.from_mask(largest(scores, _count(self.density, rows // block)), block)
        return Plan(grid.tokens, order[None, None], (lists,), block)

    def scores(self, query: Tensor, key: Tensor, order: Tensor, block: int, layer: int) -> Tensor:
        """`(B, H, N, N)`, larger for blocks to keep."""
        return block_mass(query, key, order, block, block)


@dataclass(frozen=True)
class RandomBlocks(TopBlocks):
    """Blocks drawn from a seed, others in every layer, head and sample, the same in every step."""

    seed: int = 0

    method: ClassVar[str] = "random blocks"

    def scores(self, query: Tensor, key: Tensor, order: Tensor, block: int, layer: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + layer)
        blocks = len(order) // block
        return torch.rand(query.shape[0], query.shape[2], blocks, blocks, generator=generator)


def _count(density: float, total: int) -> int:
    return max(1, round(density * total))


METHODS = {
    "auto": {},
    "pyramid": {},
    "rectified": {},
    "sol": {},
    "vmoba": {},
    "vmoba, tile routing": {"routing": "tile"},
    "neighborhood": {},
    "radial": {},
}
ORACLES = {"top-k tokens, mean of the rest (oracle)": True, "top-k tokens (oracle)": False}
CONTROLS = {
    **{name: partial(TopTokens, rest=rest) for name, rest in ORACLES.items()},
    "top-k blocks": TopBlocks,
    "random blocks": RandomBlocks,
}
CONTENDERS = {
    **{name: partial(diffattn.config, name.split(",")[0], **options) for name, options in METHODS.items()},
    **CONTROLS,
}


def contender(name: str, density: float) -> AttentionConfig:
    """A method or control by its name in the tables, at a density."""
    return CONTENDERS[name](density=density)
