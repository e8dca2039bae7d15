"""Sol-Attn (arXiv 2607.24027): blocks that score above their row's spread are exact, all others enter as a mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from diffusers.utils import logging
from torch import Tensor

from ..attention_config import AttentionConfig, Default, check_density, register
from ..grid import TokenGrid
from ..kernels.plan.plan import Plan
from ..kernels.plan.tile_list import TileList
from ..schedule import Schedule
from ._check import check_choice, check_integer, check_size, is_number
from ._order import ORDERS, SIZES, block_order, visual_rows
from ._scores import counts_of, finite, match_heads, pooled
from ._select import extend_text

logger = logging.get_logger(__name__)

LEAST_VARIANCE = 1e-6 * math.log(2) ** 2  # the released kernels add 1e-6 to the variance of scores in units of ln 2

# Settings of programs, not of models: NVlabs' Sol-Engine (10 of 50 steps and two layers dense), ComfyUI, Wan2GP
PUBLISHED = {
    "sol-engine": ({"tau": 1.0}, Schedule(dense_start=0.2, dense_layers=2)),
    "comfyui": ({"tau": 1.3}, Schedule(dense_start=0.2, dense_end=1, dense_layers=0)),
    "wan2gp": ({"tau": (1.3, 0.8)}, Schedule(dense_start=0.2, dense_layers=0)),
}


@register
@dataclass(frozen=True)
class SolConfig(AttentionConfig):
    """Sol-Attn: blocks of keys that score above mean + tau * deviation are exact, the others enter as their mean.

    The score of a block of keys for a block of queries is the product of their means over sqrt(d). A block is exact
    where its score exceeds `mu + tau * sigma` of its row, where it is a neighbor in the order of the tokens, or where
    it is a sink. Any other block takes part as one mean key and its summed values, counted once for each of its
    tokens, in the same softmax: no key is dropped. Text is exact, as the authors advise for joint models.

    Args:
        density (`float`, *optional*): share of the products between visual tokens to compute, instead of `tau`: each
            sample and head gets the tau that meets it. Neighbors, sinks and means are computed even if they exceed it.
        tau (`float` or `tuple[float, float]`, *optional*, defaults to 1.0): deviations above the mean that make a
            block exact; about 16 % of the blocks exceed 1. Two numbers are those of the first and the last step of a
            run, with a straight line between them.
        rule (`str`, *optional*, defaults to `"diag"`): sigma of a row as the released code does by default, from the
            variance of every channel of the mean keys as if channels were independent (`"diag"`), or the standard
            deviation of the row's scores (`"exact"`).
        sinks (`int`, *optional*, defaults to 0): how many first blocks of visual keys are exact for every query.
        neighbors (`int`, *optional*, defaults to 1): how many blocks on either side of a block are exact for it, as it
            is itself.
        block (`int`, *optional*, defaults to 64): tokens of a block.
        order (`str`, *optional*, defaults to `"raster"`): the order of the sequence (`"raster"`), or one that makes
            blocks compact in space and time (`"nested"`, `"hilbert"`).

    Example:

    >>> query, key = torch.randn(2, 1, 2304, 2, 32, generator=torch.Generator().manual_seed(0))
    >>> plan = SolConfig(density=0.25).plan(TokenGrid(9, 16, 16), query, key)
    >>> round(plan.density, 2), bool(plan.to_dense_mask().all())
    (0.25, True)
    """

    density: float | None = None
    tau: float | tuple[float, float] | None = Default(1.0)
    rule: str = "diag"
    sinks: int = 0
    neighbors: int = 1
    block: int = 64
    order: str = "raster"

    method: ClassVar[str] = "sol"
    dynamic: ClassVar[bool] = True
    plans_references: ClassVar[bool] = True
    published: ClassVar[dict] = PUBLISHED

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose_one("density", "tau")
        check_density(self.density)
        ends = self.tau if isinstance(self.tau, tuple) else (self.tau, self.tau)
        if self.density is None and not (len(ends) == 2 and all(map(is_number, ends))):
            raise ValueError(f"tau must be a number, or two for the first and the last step, got {self.tau!r}")
        check_choice("rule", self.rule, ("diag", "exact"))
        check_integer("sinks", self.sinks, least=0)
        check_integer("neighbors", self.neighbors, least=0)
        check_size("block", self.block or 0, SIZES)
        check_choice("order", self.order, ORDERS)

    def _plan(
        self, grid: TokenGrid, query: Tensor, key: Tensor, step: int | None = None, steps: int | None = None, **_
    ) -> Plan:
        order, video = block_order(grid, self.order, self.block, query.device)
        tiles, all_tiles = video // self.block, len(order) // self.block
        scores = standard_scores(query, key, order[:video], self.block, self.rule)
        always = always_exact(tiles, self.sinks, self.neighbors, query.device)
        if self.density is None:
            exact = (scores > self._tau_at(step, steps)) | always
        else:
            _warn_where_out_of_reach(self, grid.video_tokens)
            exact = best_within(self.density, scores, always, counts_of(order[:video], self.block))
        exact = extend_text(exact, all_tiles, all_tiles, True)
        lists = TileList.from_mask(exact, self.block), TileList.from_mask(~exact, 1, self.block)
        return Plan(grid.tokens, order[None, None], lists, self.block, visual=visual_rows(grid, video))

    def _tau_at(self, step: int | None, steps: int | None) -> float:
        if not isinstance(self.tau, tuple):
            return self.tau
        first, last = self.tau
        if step is None or steps is None:
            _warn_of_unknown_step(first, last)
            return first
        return first + (last - first) * step / max(steps - 1, 1)


def standard_scores(query: Tensor, key: Tensor, order: Tensor, block: int, rule: str) -> Tensor:
    """`(B, H, N, N)` float32, by how many sigma the score of each block exceeds the mean of its row.

    Args:
        query, key (`torch.Tensor`): `(B, S, H, D)` and `(B, S, Hkv, D)`.
        order (`torch.Tensor`): `(R,)` token of each row, -1 for padding, R a multiple of `block`.
        rule (`str`): where sigma comes from, `"diag"` or `"exact"`.
    """
    q, k = (pooled(tokens, order, block)[0] for tokens in (query, key))
    k = match_heads(k, q.shape[1])
    k = k - k.mean(-2, keepdim=True)  # the mean of every row becomes 0
    q = q * q.shape[-1] ** -0.5
    scores = q @ k.mT
    if rule == "exact":
        variance = scores.square().mean(-1, keepdim=True)
    else:
        variance = q.square() @ k.square().mean(-2)[..., None]
    return finite(scores / (variance + LEAST_VARIANCE).sqrt())


def always_exact(blocks: int, sinks: int, neighbors: int, device: torch.device | str) -> Tensor:
    """`(N, N)` bool, the blocks of keys that are exact for each block of queries whatever they score.

    >>> always_exact(4, sinks=1, neighbors=0, device="cpu").int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    """
    block = torch.arange(blocks, device=device)
    return ((block[:, None] - block).abs() <= neighbors) | (block < sinks)


def best_within(density: float, scores: Tensor, always: Tensor, counts: Tensor) -> Tensor:
    """The exact blocks `(B, H, N, N)` bool: `always`, and the best scores of each head that the density has room for.

    This is the least threshold on the scores that meets the density, where ties go to the lower index.

    Args:
        density (`float`): exact products and means over all products, at most.
        scores (`torch.Tensor`): `(B, H, N, N)` float32.
        always (`torch.Tensor`): `(N, N)` bool, exact in any case.
        counts (`torch.Tensor`): `(N,)` tokens of each block.
    """
    counts = counts.long()
    cost = (counts[:, None] * (counts - 1)).flatten()  # of an exact block, beyond that of its mean
    room = density * counts.sum().double() ** 2 - counts.sum() * len(counts)
    # costs are whole: a half keeps the rounding of the density out
    best = scores.masked_fill(always, torch.inf).flatten(2).argsort(dim=-1, descending=True, stable=True)
    exact = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, best, cost[best].cumsum(-1) < room + 0.5)
    return exact.view_as(scores) | always


@lru_cache
def _warn_where_out_of_reach(config: SolConfig, tokens: int) -> None:
    """Log once per configuration and length that neighbors, sinks and means alone exceed the density."""
    counts = torch.full((math.ceil(tokens / config.block),), config.block, dtype=torch.float64, device="cpu")
    counts[-1] -= len(counts) * config.block - tokens
    always = always_exact(len(counts), config.sinks, config.neighbors, "cpu")
    least = float((counts @ torch.where(always, counts, 1)).sum() / tokens**2)
    if least > config.density:
        logger.warning(
            f"sol attention on {tokens} tokens has density {least:.3f} at least, {config.density} was asked for: "
            "a smaller block or fewer neighbors or sinks lower it"
        )


@lru_cache
def _warn_of_unknown_step(first: float, last: float) -> None:
    """Log once that a schedule of tau needs the step."""
    logger.warning(f"sol attention keeps tau at {first} instead of going to {last}: the step of the run is not known")
