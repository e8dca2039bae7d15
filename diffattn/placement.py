"""Where the tokens of a joint sequence sit, and plans for sequences that begin with other tokens than their grid."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .grid import TokenGrid
from .kernels.plan import Plan

ALL, NONE = -1, -2  # instead of a number of tokens before the grid: all that are not on it; there are none
WHERE = {"before": ALL, "after": 0, "none": NONE}


@dataclass(frozen=True)
class Placement:
    """A grid, and by how many tokens the sequence is rolled against it."""

    grid: TokenGrid
    shift: int = 0


def place(video: tuple[int, int, int], before: int, tokens: int) -> Placement | str:
    """The placement of a sequence of `tokens` tokens, `before` of them before the grid, or why there is none.

    Other tokens than the visual ones are the grid's text: their rows and columns are dense. Where they sit on both
    sides, attention does not care for order: those ahead are taken as if they came last.
    """
    others = tokens - video[0] * video[1] * video[2]
    if others < 0:
        return f"{tokens} tokens are fewer than the grid {video}"
    if before == NONE and others:
        return f"{others} tokens are not on the grid {video}"
    ahead = others if before in (ALL, NONE) else before
    if ahead > others:
        return f"{ahead} tokens ahead of the grid were expected, {others} are not on it"
    first = ahead == others and ahead > 0
    return Placement(TokenGrid(*video, text=others, text_first=first), 0 if first else ahead)


def roll_tokens(query: Tensor, key: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """query and key `(B, S, H, D)` in the order of the grid."""
    return (query.roll(-shift, 1), key.roll(-shift, 1)) if shift else (query, key)


def roll_plan(plan: Plan, shift: int) -> Plan:
    """A plan for the order of the grid, for a sequence in which `shift` tokens of its end come first."""
    if not shift:
        return plan

    def moved(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else torch.where(rows < 0, rows, (rows + shift) % plan.tokens)

    return replace(plan, order=moved(plan.order), q_rows=moved(plan.q_rows), _cache={})
