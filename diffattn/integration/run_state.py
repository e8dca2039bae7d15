"""What a thread knows of the run it is in."""

from __future__ import annotations

import threading
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.plan import Plan
from ..models.adapter import NO_OTHERS
from .masks import as_key_mask
from .placement import ONE_TOKEN

NEVER_ENTERED = "the transformer was not entered through its forward"


class Location(NamedTuple):
    """Which tokens a forward has, and in which step.

    Args:
        grid (`tuple[int, int, int]`): frames, height and width of the visual tokens.
        before (`int`): tokens of the sequence before the visual ones, see [`placement.place`].
        step (`tuple[int, int]`, *optional*): denoising step, from 0, and how many there are.
        tile (`tuple[int, int, int]`): frames, height and width of the tiles that follow each other in the sequence.
        references (`tuple`): sizes of the grids that follow the first.
    """

    grid: tuple[int, int, int]
    before: int
    step: tuple[int, int] | None = None
    tile: tuple[int, int, int] = ONE_TOKEN
    references: tuple[tuple[int, int, int], ...] = ()

    def to_tensor(self) -> Tensor:
        """`(9 + 3 * references,)` int64 on the CPU: what graphs are given, so that they need no guard on numbers."""
        numbers = [*self.grid, self.before, *(self.step or (-1, -1)), *self.tile, *chain(*self.references)]
        with torch.inference_mode(False):  # graphs keep it for their backward
            return torch.tensor(numbers, device="cpu")

    @classmethod
    def from_tensor(cls, numbers: Tensor) -> Location:
        """The location that `to_tensor` wrote."""
        (*grid, before, step, steps), *sizes = numbers[:6].tolist(), *map(tuple, numbers[6:].view(-1, 3).tolist())
        return cls(tuple(grid), before, None if step < 0 else (step, steps), sizes[0], tuple(sizes[1:]))


class RunState(threading.local):
    """Step and token grid of the forward that runs in this thread: two requests may share one transformer.

    Attributes:
        step (`tuple[int, int]`, *optional*): denoising step, from 0, and how many there are.
        dense_step (`bool`): whether every layer runs dense in this step.
        grid (`tuple[int, int, int]`, *optional*): frames, height and width of the visual tokens; None where `no_grid`
            says why there is none.
        before (`int`): tokens of the sequence before the visual ones, see [`placement.place`].
        tile (`tuple[int, int, int]`): frames, height and width of the tiles that follow each other in the sequence.
        references (`tuple`): sizes of the grids that follow the first.
        location (`torch.Tensor`, *optional*): grid, `before` and the rest as [`Location.to_tensor`] writes them.
    """

    def __init__(self) -> None:
        self.step: tuple[int, int] | None = None
        self.dense_step = False
        self.grid: tuple[int, int, int] | None = None
        self.before = NO_OTHERS
        self.tile = ONE_TOKEN
        self.references: tuple[tuple[int, int, int], ...] = ()
        self.location: Tensor | None = None
        self.no_grid = NEVER_ENTERED
        self._key_mask: tuple[Tensor, tuple, tuple[str | None, Tensor | None]] | None = None
        self._masked_plan: tuple[Plan, Tensor, Plan] | None = None

    def key_mask(self, mask: Any, query: Tensor, kind: str) -> tuple[str | None, Tensor | None]:
        """[`as_key_mask`], the last answer kept: all layers of a forward are given the same tensor."""
        batch, tokens = query.shape[:2]
        if torch.compiler.is_compiling() or not isinstance(mask, Tensor) or mask.is_inference():
            return as_key_mask(mask, batch, tokens, kind)  # inference tensors do not count their changes
        known = self._key_mask
        if known is None or known[0] is not mask or known[1] != (mask._version, batch, tokens, kind):
            found = as_key_mask(mask, batch, tokens, kind)
            known = self._key_mask = (mask, (mask._version, batch, tokens, kind), found)
            self._masked_plan = None
        return known[2]

    def masked(self, plan: Plan, key_mask: Tensor | None) -> Plan:
        """The plan with a key mask, the last one kept."""
        if key_mask is None:
            return plan
        known = self._masked_plan
        if known is None or known[0] is not plan or known[1] is not key_mask:
            known = self._masked_plan = (plan, key_mask, plan.with_key_mask(key_mask))
        return known[2]
