"""Where the visual tokens of a forward sit, as a tensor: graphs of torch.compile then hold no number of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models.adapter import NoGrid
from ..models.grids import grid_of_positions


def grid_location(grid: Any, before: int) -> Tensor:
    """`(4,)` int64 on the CPU: frames, height, width, and the tokens before the visual ones.

    Args:
        grid (`tuple[int, int, int]` or `torch.Tensor`): or, while a graph is traced, the positions `(S, 3|4)` of the
            tokens; zeros where these fill no grid.
        before (`int`): see [`placement.place`].
    """
    return _location_of_positions(grid, before) if isinstance(grid, Tensor) else _location([*grid, before])


@torch.library.custom_op("diffattn::location", mutates_args=())
def _location(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


@_location.register_fake
def _(numbers: list[int]) -> Tensor:
    return torch.empty(4, dtype=torch.int64, device="cpu")


@torch.library.custom_op("diffattn::location_of_positions", mutates_args=())
def _location_of_positions(positions: Tensor, before: int) -> Tensor:
    try:
        grid = grid_of_positions(positions)
    except NoGrid:
        grid = (0, 0, 0)
    return torch.tensor([*grid, before], dtype=torch.int64, device="cpu")


@_location_of_positions.register_fake
def _(positions: Tensor, before: int) -> Tensor:
    return torch.empty(4, dtype=torch.int64, device="cpu")
