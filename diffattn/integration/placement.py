"""Where the tokens of a joint sequence sit, and plans for sequences in another order than their grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..grid import TokenGrid
from ..kernels.plan.plan import Plan
from ..kernels.plan.routed import RoutedRows
from ..models.adapter import ALL_BEFORE, NO_OTHERS

ONE_TOKEN = (1, 1, 1)


@dataclass(frozen=True)
class Placement:
    """A grid, and how the sequence differs from its order.

    Args:
        grid ([`TokenGrid`]): where the tokens belong.
        shift (`int`, *optional*, defaults to 0): by how many tokens the sequence is rolled against it.
        ranks (`int`, *optional*, defaults to 1): into how many shares context parallelism cut what is ahead of the
            grid, or the grid where nothing is, and again the rest: share by share they follow each other.
        tile (`tuple[int, int, int]`, *optional*, defaults to one token): frames, height and width of tiles, which
            follow each other in the sequence; not together with `shift` or `ranks`.
    """

    grid: TokenGrid
    shift: int = 0
    ranks: int = 1
    tile: tuple[int, int, int] = ONE_TOKEN

    def order(self, device: torch.device | str = "cpu") -> Tensor | None:
        """`(S,)` int64, where in the sequence each token of the grid's order is; None where the two are the same."""
        if not self.shift and self.ranks == 1 and self.tile == ONE_TOKEN:
            return None
        order = torch.arange(self.grid.tokens, device=device)
        if self.tile != ONE_TOKEN:
            visual = slice(self.grid.video_start, self.grid.video_start + self.grid.video_tokens)
            order[visual] = order[visual][self._tile_by_tile(device).argsort()]
        if self.ranks > 1:
            first = self.shift or self.grid.video_start or self.grid.video_tokens
            shares = (stream.tensor_split(self.ranks) for stream in (order[:first], order[first:]))
            order = torch.cat([share for of_rank in zip(*shares) for share in of_rank]).argsort()
        return order.roll(-self.shift)

    def _tile_by_tile(self, device: torch.device | str) -> Tensor:
        """`(V,)` int64, the visual tokens by their number in raster order, in the order of the sequence."""
        token = torch.arange(self.grid.video_tokens, device=device)
        sizes = zip((self.grid.frames, self.grid.height, self.grid.width), self.tile)
        cut = [part for size, edge in sizes for part in (size // edge, edge)]
        return token.view(cut).permute(0, 2, 4, 1, 3, 5).flatten()


def place(
    video: tuple[int, int, int],
    before: int,
    tokens: int,
    ranks: int = 1,
    tile: tuple[int, int, int] = ONE_TOKEN,
    references: tuple[tuple[int, int, int], ...] = (),
) -> Placement | str:
    """The placement of a sequence of `tokens` tokens, `before` of them before the grid, or why there is none.

    Other tokens than the visual ones are the grid's text: their rows and columns are dense. Where they sit on both
    sides, attention does not care for order: those ahead are taken as if they came last. `ranks` is above 1 where
    text and visual tokens were cut into so many shares each, which follow each other rank by rank. `references` are
    grids that follow the first, in all layers but those of its tokens alone.
    """
    if tokens == math.prod(video):
        references = ()
    others = tokens - sum(math.prod(sizes) for sizes in (video, *references))
    if others < 0:
        return f"{tokens} tokens are fewer than the grid {video}"
    if not others:  # a layer of the visual tokens alone
        before = 0
    if before == NO_OTHERS and others:
        return f"{others} tokens are not on the grid {video}"
    ahead = others if before in (ALL_BEFORE, NO_OTHERS) else before
    if ahead > others:
        return f"{ahead} tokens ahead of the grid were expected, {others} are not on it"
    first = ahead == others and ahead > 0
    grid = TokenGrid(*video, text=others, text_first=first, references=references)
    return Placement(grid, 0 if first else ahead, ranks, tile)


def in_grid_order(*tensors: Tensor, order: Tensor | None) -> tuple[Tensor, ...]:
    """Query, key and more `(B, S, H, D)` in the order of the grid."""
    return tensors if order is None else tuple(tensor[:, order] for tensor in tensors)


def reorder_plan(plan: Plan, order: Tensor | None) -> Plan:
    """A plan for the order of the grid, for the sequence in which token i of the grid is at `order[i]`."""
    if order is None:
        return plan

    def moved(rows: Tensor | RoutedRows | None) -> Tensor | RoutedRows | None:
        if isinstance(rows, RoutedRows):
            return rows.moved(order)
        return None if rows is None else rows.where(rows < 0, order.to(rows.dtype)[rows.clamp(min=0)])

    return replace(plan, order=moved(plan.order), q_rows=moved(plan.q_rows))


def plan_for_queries(plan: Plan, queries: slice | None) -> Plan:
    """A plan that computes nothing for tiles without any of these queries, of which the others are zeros."""
    if queries is None:
        return plan
    rows = plan.query_rows
    asked = ((rows >= queries.start) & (rows < queries.stop)).unflatten(-1, (-1, plan.block_q)).any(-1)
    return replace(plan, lists=tuple(replace(lists, counts=lists.counts * asked) for lists in plan.lists))
