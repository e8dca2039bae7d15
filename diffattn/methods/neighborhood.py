"""Generalized neighborhood attention (arXiv 2504.16922): a window in time and space around every query."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attention_config import AttentionConfig, Default, check_density, register
from ..grid import TokenGrid
from ..kernels.plan.boxes import Boxes
from ..kernels.plan.plan import Plan
from ..kernels.plan.tile_list import TileList
from ._check import check_triple
from ._order import coordinates, pack, visual_rows, with_text
from ._select import extend_text
from ._window import Axis, axis
from ._window_search import block_rows, tile_shapes, visited_share, window_of_density

AXES = ("frames", "height", "width")
FAR = 2**30  # beyond any coordinate


@dataclass(frozen=True)
class WindowReport:
    """The cost of a window on a grid, predicted without running anything.

    Args:
        tile (`tuple`): tokens of a tile along frames, height and width.
        window, stride (`tuple`): tokens along frames, height and width, -1 for a whole axis.
        tokens (`float`): share of the pairs of video tokens inside the windows.
        visited (`float`): share of the pairs of video tokens in visited tiles, all of which are computed.
        partial (`float`): share of the visited tiles that lie only partly in a window.
        speed_up (`float`): upper bound of the speed-up over dense attention, with text.
    """

    tile: tuple[int, int, int]
    window: tuple[int, int, int]
    stride: tuple[int, int, int]
    tokens: float
    visited: float
    partial: float
    speed_up: float


@dataclass(frozen=True)
class Geometry:
    """A window on a grid: its three axes, and the tile."""

    axes: tuple[Axis, Axis, Axis]
    tile: tuple[int, int, int]
    window: tuple[int, int, int]
    stride: tuple[int, int, int]


@register
@dataclass(frozen=True)
class NeighborhoodConfig(AttentionConfig):
    """Neighborhood attention with window, stride, dilation and causality for each of frames, height and width.

    The plan is static. Where windows consist of whole tiles, no product is computed in vain; elsewhere an interval
    test cuts the window out of the tiles that it touches. Text attends to everything and everything to text.

    Args:
        density (`float`, *optional*, defaults to 0.2): share of the products between visual tokens to compute; sets
            window, stride and tile so that windows consist of whole tiles, as near to `density` as these allow.
        window (`tuple`, *optional*): tokens of the window, -1 for the whole axis, instead of `density`.
        stride (`tuple`, *optional*, defaults to `(1, 1, 1)`): how many queries share a window: 1 gives a sliding
            window, a tile gives sliding tile attention, and the window itself gives blocked attention.
        dilation (`tuple`, *optional*, defaults to `(1, 1, 1)`): step between the keys of a window.
        causal (`tuple`, *optional*, defaults to no axis): the axes along which queries see no later token.
        tile (`tuple`, *optional*): tokens of a tile; by default the stride, or a tile that fits the grid.

    Example:

    >>> grid = TokenGrid(30, 48, 80)
    >>> report = NeighborhoodConfig(window=(18, 24, 24), stride=(16, 8, 8), tile=(2, 8, 8)).report(grid)
    >>> round(report.visited, 3), report.partial, round(report.speed_up, 1)
    (0.09, 0.0, 11.1)
    """

    density: float | None = Default(0.2)
    window: tuple[int, int, int] | None = None
    stride: tuple[int, int, int] | None = None
    dilation: tuple[int, int, int] = (1, 1, 1)
    causal: tuple[bool, bool, bool] = (False, False, False)
    tile: tuple[int, int, int] | None = None

    method: ClassVar[str] = "neighborhood"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose_one("density", "window")
        check_density(self.density)
        if self.stride is not None and self.window is None:
            raise ValueError("stride goes with a window; with density it is a whole tile")
        check_triple("window", self.window, least=-1)
        for name in ("stride", "dilation", "tile"):
            check_triple(name, getattr(self, name))
        if self.dilation is None or not isinstance(self.causal, tuple) or len(self.causal) != 3:
            raise ValueError(f"dilation and causal need a value for each of {AXES}")
        if any(flag not in (True, False) for flag in self.causal):
            raise ValueError(f"causal must be three booleans, got {self.causal!r}")
        for window, stride in zip(self.window or (), self.stride or (1, 1, 1)):
            if window == 0 or (window != -1 and stride > window):
                raise ValueError(f"window must be -1 or at least the stride, got {self.window} and {self.stride}")

    @classmethod
    def sliding_tile(cls, tile: tuple[int, int, int], tiles: tuple[int, int, int], **options) -> NeighborhoodConfig:
        """Sliding tile attention (arXiv 2502.04507): each tile sees `tiles` tiles around itself, an odd number."""
        check_triple("tiles", tuple(tiles))
        if any(count % 2 == 0 for count in tiles):
            raise ValueError(f"tiles must be odd, for a tile to sit in the middle, got {tiles}")
        window = tuple(edge * count for edge, count in zip(tile, tiles))
        return cls(window=window, stride=tuple(tile), tile=tuple(tile), **options)

    @classmethod
    def inward(cls, height: int, width: int, **options) -> NeighborhoodConfig:
        """FreeSwim's window (arXiv 2511.14712): `height` rows and `width` columns to each side, in every frame.

        At the border the window is shifted inward, so that every query sees as many keys as at the resolution that the
        model was trained at.
        """
        return cls(window=(-1, 2 * height + 1, 2 * width + 1), **options)

    def _plan(self, grid: TokenGrid, **_) -> Plan:
        geometry = self._geometry(grid)
        block = block_rows(geometry.tile)
        order, video = _tile_order(grid, geometry, block)
        visited, full = _tile_masks(geometry)
        split = block // min(block, 128)
        visited, full = (mask.repeat_interleave(split, 0).repeat_interleave(split, 1) for mask in (visited, full))
        block //= split
        tiles = len(order) // block
        visited, full = (extend_text(mask, tiles, tiles, True)[None, None] for mask in (visited, full))
        lists = TileList.from_mask(visited, block, partial=~full)
        boxes = None if lists.partial is None else _boxes(grid, geometry, order, video)
        return Plan(grid.tokens, order[None, None], (lists,), block, boxes=boxes, visual=visual_rows(grid, video))

    def report(self, grid: TokenGrid) -> WindowReport:
        """Visited tiles, partial tiles and the bound of the speed-up on `grid`, without a plan."""
        geometry = self._geometry(grid)
        pairs = [line.tile_pairs() for line in geometry.axes]
        areas = [line.sizes[:, None] * line.sizes for line in geometry.axes]
        tokens = math.prod(int(pair.sum()) for pair in pairs) / grid.video_tokens**2
        visited = math.prod(int(area[pair > 0].sum()) for pair, area in zip(pairs, areas)) / grid.video_tokens**2
        touched = math.prod(int((pair > 0).sum()) for pair in pairs)
        whole = math.prod(int((pair == area).sum()) for pair, area in zip(pairs, areas))
        text = 1 - grid.video_tokens**2 / grid.tokens**2
        speed_up = 1 / (visited * (1 - text) + text)
        return WindowReport(
            geometry.tile, geometry.window, geometry.stride, tokens, visited, 1 - whole / touched, speed_up
        )

    def _geometry(self, grid: TokenGrid) -> Geometry:
        sizes = (grid.frames, grid.height, grid.width)
        if self.window is None:
            density = max(self.density, 1 / grid.video_tokens)
            window, tile = window_of_density(grid, density, self.dilation, self.causal, self.tile)
            stride = tile
        else:
            window, stride = self.window, self.stride or (1, 1, 1)
            tile = self.tile or self._best_tile(grid)
        for name, size, width, gap in zip(AXES, sizes, window, self.dilation):
            if max(width, 1) * gap > size:
                raise ValueError(
                    f"window {width} at dilation {gap} does not fit {size} {name} of the grid {grid}: at most "
                    f"{size // gap}, or -1 for all"
                )
        lines = zip(sizes, window, stride, self.dilation, self.causal, tile)
        return Geometry(tuple(axis(*line) for line in lines), tile, window, stride)

    def _best_tile(self, grid: TokenGrid) -> tuple[int, ...]:
        """The tile that visits least, rows of padding counted."""
        sizes, stride = (grid.frames, grid.height, grid.width), self.stride or (1, 1, 1)

        def visited(tile: tuple[int, ...]) -> float:
            lines = zip(sizes, self.window, stride, self.dilation, self.causal, tile)
            return math.prod(visited_share(*line) for line in lines) * block_rows(tile) / math.prod(tile)

        return min(tile_shapes(grid, self.stride, self.dilation), key=visited)


def _tile_order(grid: TokenGrid, geometry: Geometry, block: int) -> tuple[Tensor, int]:
    """Rows `(R,)` tile by tile, each tile filled up to `block` rows, then text; and how many are video rows."""
    at = coordinates(grid)
    tile, rank = torch.zeros_like(at[:, 0]), torch.zeros_like(at[:, 0])
    for line, position, size in zip(geometry.axes, at.unbind(-1), (grid.frames, grid.height, grid.width)):
        tile = tile * len(line.sizes) + line.tile[position]
        rank = rank * size + line.coordinate[position]
    video = pack(tile, rank, block)
    return with_text(video, grid, min(block, 128)), len(video)


def _tile_masks(geometry: Geometry) -> tuple[Tensor, Tensor]:
    """`(N, N)` bool twice: tiles of which some pair of tokens see each other, and of which all do."""
    some = whole = torch.ones(1, 1, dtype=torch.bool)
    for line in geometry.axes:
        pairs, area = line.tile_pairs(), line.sizes[:, None] * line.sizes
        some, whole = _outer(some, pairs > 0), _outer(whole, pairs == area)
    return some, whole


def _outer(first: Tensor, second: Tensor) -> Tensor:
    return (first[:, None, :, None] & second[:, None]).flatten(2, 3).flatten(0, 1)


def _boxes(grid: TokenGrid, geometry: Geometry, order: Tensor, video: int) -> Boxes:
    token = (order[:video] - grid.video_start).clamp(min=0)
    at = coordinates(grid)[token]
    parts = [torch.stack([getattr(line, name)[at[:, i]] for i, line in enumerate(geometry.axes)], -1).int()
             for name in ("low", "high", "coordinate")]  # fmt: skip
    fill = ((order[:video] < 0), len(order) - video)
    low, high = (_unbounded(part, *fill, value) for part, value in zip(parts, (-FAR, FAR)))
    return Boxes(low, high, _unbounded(parts[2], *fill, 0))


def _unbounded(part: Tensor, padding: Tensor, text: int, value: int) -> Tensor:
    """`part` with `value` in padding rows and in `text` rows more: boxes that everything lies in."""
    return torch.nn.functional.pad(part.masked_fill(padding[:, None], value), (0, 0, 0, text), value=value)
