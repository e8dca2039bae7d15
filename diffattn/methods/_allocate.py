"""Choosing a level of pooling for every block so that the sum of all errors is least at a given density."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, pairwise

import torch
from torch import Tensor

from ..attention_config import plain_cpu
from ._constants import constant


def allocate(error: Tensor, density: float, pools: tuple[int, ...]) -> Tensor:
    """The levels of least total error at no more than `density`.

    From the coarsest level on, refinements are bought in the order of how much error they remove for what they cost,
    until the next one is too much. That is the minimum of the sum (by at most one refinement), since each block's
    errors are first replaced by their lower convex envelope over the cost, where a finer step never pays more than the
    coarser one before it. Of equal refinements those of the first blocks are bought. The budget is spent even where a
    refinement gains nothing, so density 1 is exact; NaN counts as no gain. Nothing is read by the host.

    Args:
        error (`torch.Tensor`): `(L, ..., N)` float32, of every block at every level.
        density (`float`): mean of `1 / pool` over N, at most; below `1 / pools[-1]` all are at the last level.
        pools (`tuple[int, ...]`): L pool sizes, ascending from 1, each a divisor of the last.

    Returns:
        `torch.Tensor`: `(..., N)` int64, index into `pools`.

    >>> mass = torch.tensor([0.7, 0.2, 0.06, 0.04])
    >>> allocate(mass * torch.tensor([[0], [0.6], [1.5]]), 0.4, (1, 4, 16)).tolist()
    [0, 1, 1, 2]
    """
    blocks, cost = error.shape[-1], [pools[-1] // pool for pool in pools]  # whole numbers: their sums are exact
    gains = torch.stack(_gains(error, cost)[::-1], -1).flatten(-2)  # the refinements of a block side by side
    best = torch.argsort(gains.nan_to_num_(0), dim=-1, descending=True, stable=True)
    budget = int(density * pools[-1] * blocks + 1e-6) - blocks  # the coarsest level is paid for
    savings = tuple(fine - coarse for fine, coarse in pairwise(cost))[::-1]
    left = _costs(blocks, savings, error.device)[best].cumsum(-1) > budget
    return left.scatter(-1, best, left).unflatten(-1, (blocks, -1)).sum(-1)


@lru_cache(maxsize=64)
@plain_cpu()
def _costs(blocks: int, savings: tuple[int, ...], device: torch.device) -> Tensor:
    """`(blocks * len(savings),)` int32, what each refinement of each block costs; nobody may write to it."""
    return torch.tensor(savings, dtype=torch.int32).repeat(blocks).to(device)


def _gains(error: Tensor, cost: list[int]) -> list[Tensor]:
    """Error removed per cost by each step from a level to the finer one, on the lower convex envelope.

    Step i is part of chords from level a <= i to level b > i; its slope on the envelope is the largest over a of the
    smallest over b. Chords that are shared make ties exact, and no step gains more than the coarser one before it.
    """
    chords = list(combinations(range(len(cost)), 2))
    fine, coarse = (constant(ends, error.device) for ends in zip(*chords))
    saved = constant(tuple(1 / (cost[a] - cost[b]) for a, b in chords), error.device)
    slopes = (
        error.index_select(0, coarse).sub_(error.index_select(0, fine)).mul_(saved.view(-1, *[1] * (error.ndim - 1)))
    )
    slope = dict(zip(chords, slopes))
    gains: list[Tensor | None] = [None] * (len(cost) - 1)
    for a in range(len(gains)):
        least = None
        for step in reversed(range(a, len(gains))):
            least = slope[a, step + 1] if least is None else torch.minimum(least, slope[a, step + 1])
            gains[step] = least if gains[step] is None else torch.maximum(gains[step], least)
    return gains
