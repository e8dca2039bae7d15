"""Boxes of keys: they cut a window out of tiles that lie only partly in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Boxes:
    """The keys each query row may see in partial tiles: `low <= coordinate <= high` along every axis.

    Boxes are separable: a query and a key take two comparisons per axis, and nothing is stored per pair (as in
    generalized neighborhood attention, arXiv 2504.16922). They are the same for all batch entries and heads.

    Args:
        low, high (`torch.Tensor`): `(Rq, A)` int32, inclusive bounds of each query row.
        coordinate (`torch.Tensor`): `(R, A)` int32, where the key of each row of the plan's order lies.
    """

    low: Tensor
    high: Tensor
    coordinate: Tensor

    def inside(self, rows: Tensor, keys: Tensor) -> Tensor:
        """Whether each key row lies in the box of each query row: `(..., Q)` and `(..., K)` to `(..., Q, K)` bool."""
        low, high, at = self.low[rows], self.high[rows], self.coordinate[keys]
        seen = torch.ones((), dtype=torch.bool, device=rows.device)
        for axis in range(at.shape[-1]):
            key = at[..., None, :, axis]
            seen = seen & (key >= low[..., :, None, axis]) & (key <= high[..., :, None, axis])
        return seen
