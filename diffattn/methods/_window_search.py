"""Tiles that fit a grid, and the window that meets a density."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

from ..grid import TokenGrid
from ._order import SIZES, block_size
from ._window import axis

SHAPES = 16  # tile shapes tried
# What counts as much as a relative miss of the density by 10 %:
ANISOTROPY = 0.1  # a window that is e times wider along one axis than along another
PARTIAL = 0.1  # tiles that lie only partly in a window
BLOCKED = 0.1  # each axis along which the window is one tile, so that neighbours in two tiles never see each other


def tile_shapes(grid: TokenGrid, stride: tuple[int, ...] | None, dilation: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Tiles of at most 128 tokens that strides are multiples of, best first: with little padding and near to cubes."""
    if stride is not None and 16 <= math.prod(stride) <= SIZES[0]:
        return [stride]
    most = block_size(grid, 32)
    sizes = [math.ceil(size / gap) for size, gap in zip((grid.frames, grid.height, grid.width), dilation)]
    edges = [
        [edge for edge in range(1, min(size, 16) + 1) if stride is None or stride[i] == 1 or stride[i] % edge == 0]
        for i, size in enumerate(sizes)
    ]
    shapes = [shape for shape in product(*edges) if math.prod(shape) <= most]
    return sorted(shapes, key=lambda shape: (_waste(shape, sizes), shape))[:SHAPES]


def _waste(shape: tuple[int, ...], sizes: list[int]) -> float:
    tiles = math.prod(math.ceil(size / edge) for size, edge in zip(sizes, shape))
    rows = tiles * block_rows(shape) / math.prod(sizes)
    small = (SIZES[0] / block_rows(shape)) ** 0.1
    return rows * small * (max(shape) / min(shape)) ** 0.2


def block_rows(shape: tuple[int, ...]) -> int:
    """Rows that a tile is filled up to: the least of 16, 32, 64 and the multiples of 128 that holds it."""
    size = math.prod(shape)
    return next((block for block in reversed(SIZES) if block >= size), math.ceil(size / SIZES[0]) * SIZES[0])


@lru_cache(maxsize=256)
def window_of_density(
    grid: TokenGrid, density: float, dilation: tuple[int, ...], causal: tuple[bool, ...], tile: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The window whose visited share of all pairs is nearest to `density`, and its tile, which is its stride.

    Windows are odd multiples of the tile, or the whole axis (-1): only these consist of whole tiles.
    """
    best = None
    for shape in [tile] if tile else tile_shapes(grid, None, dilation):
        choices = [_choices(size, *rest) for size, *rest in zip(_sizes(grid), shape, dilation, causal)]
        for picks in product(*choices):
            window, shares, cut = zip(*picks)
            miss = abs(math.log(math.prod(shares) / density)) + PARTIAL * any(cut)
            miss += ANISOTROPY * math.log(max(shares) / min(shares))
            miss += BLOCKED * sum(width == edge < size for width, edge, size in zip(window, shape, _sizes(grid)))
            if best is None or miss < best[0] - 1e-9:
                best = (miss, window, shape)
    return best[1], best[2]


@lru_cache(maxsize=1024)
def _choices(size: int, tile: int, dilation: int, causal: bool) -> list[tuple[int, float, bool]]:
    """Windows along an axis, the share of pairs each visits, and whether it cuts tiles."""
    choices = []
    for window in [-1, *range(tile, size // dilation, 2 * tile)]:
        line = axis(size, window, tile, dilation, causal, tile)
        pairs, whole = line.tile_pairs(), line.sizes[:, None] * line.sizes
        cut = bool(((pairs > 0) & (pairs < whole)).any())
        choices.append((window, visited_share(size, window, tile, dilation, causal, tile), cut))
    return choices


@lru_cache(maxsize=4096)
def visited_share(size: int, window: int, stride: int, dilation: int, causal: bool, tile: int) -> float:
    """Share of the pairs of tokens along an axis that lie in visited tiles."""
    line = axis(size, window, stride, dilation, causal, tile)
    sizes = line.sizes.double()
    return float(sizes @ (line.tile_pairs() > 0).double() @ sizes) / size**2


def _sizes(grid: TokenGrid) -> tuple[int, int, int]:
    return grid.frames, grid.height, grid.width
