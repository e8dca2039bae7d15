"""VMoBA (arXiv 2506.23858): every query attends to its own chunk of the video and to the best matching ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attention_config import AttentionConfig, Default, check_density, register
from ..grid import TokenGrid
from ..kernels.plan.plan import Plan
from ..kernels.plan.routed import RoutedRows
from ..kernels.plan.tile_list import TileList
from ..schedule import Schedule
from ._check import check_choice, check_integer, check_shares, check_size, check_triple
from ._order import SIZES, visual_rows
from ._partition import PARTITIONS, ChunkLayout, chunk_layout, chunk_shape
from ._routing import chunk_means, route_threshold, route_top
from ._scores import finite, match_heads, pooled
from ._select import extend_text

# arXiv 2506.23858, Table 4 and Appendix A, for Wan2.1-1.3B; no layer is dense
TRAINED = {"threshold": 0.25, "scope": "head"}
PUBLISHED = {
    name: ({"raw_scores": True, **options}, Schedule(dense_start=0.25, dense_layers=0))
    for name, options in {
        "wan2.1-480p": {"top_k": (2, 6, 18), "frames": 3, "area": (5, 13), "box": (7, 5, 13)},
        "wan2.1-720p": {"top_k": (2, 10, 9), "frames": 3, "area": (9, 10), "box": (7, 15, 20)},
        "train-576p": {**TRAINED, "frames": 3, "area": (6, 8), "box": (8, 12, 8)},
        "train-480p": {**TRAINED, "frames": 3, "area": (5, 13), "box": (12, 10, 13)},
    }.items()
}


@register
@dataclass(frozen=True)
class VMoBAConfig(AttentionConfig):
    """Mixture of block attention for video. Layers take turns in cutting chunks in time, in space and in both.

    A query is scored against the mean key of each chunk and attends to the best chunks, to its own, and to text.

    Args:
        density (`float`, *optional*, defaults to 0.2): share of the products between visual tokens to compute: each
            query attends to that share of the chunks.
        top_k (`tuple`, *optional*): how many chunks a query attends to, its own included, for each partition, instead
            of `density`.
        threshold (`float`, *optional*): chunks are chosen up to this share of the normalised scores, instead of
            `density`.
        scope (`str`, *optional*, defaults to `"query"`): scores compete within one `"query"`, or within a `"head"`
            (the paper's global selection, which is worse without training).
        routing (`str`, *optional*, defaults to `"token"`): every `"token"` chooses for itself, or all tokens of a
            `"tile"` of queries choose together, which is faster.
        partitions (`tuple`, *optional*, defaults to `("1d", "2d", "3d")`): how layers 0, 1, 2 cut chunks (in time, in
            space, in both); later layers repeat them.
        frames (`int`, *optional*): frames of a chunk in time; by default, like the other shapes, from the grid.
        area (`tuple`, *optional*): rows and columns of a chunk in space, which spans all frames.
        box (`tuple`, *optional*): frames, rows and columns of a chunk in both. Shapes need not divide the grid.
        raw_scores (`bool`, *optional*, defaults to `False`): score queries against the mean keys as published, without
            subtracting the mean of all keys first.
        block (`int`, *optional*): rows of a tile; by default the largest of 128, 64, 32, 16 that is at most half a
            chunk.

    Example:

    >>> query, key = torch.randn(2, 1, 2304, 2, 32, generator=torch.Generator().manual_seed(0))
    >>> plan = VMoBAConfig(density=0.25).plan(TokenGrid(9, 16, 16), query, key, layer=2)
    >>> round(plan.density, 2)
    0.25
    """

    density: float | None = Default(0.2)
    top_k: tuple[int, ...] | None = None
    threshold: float | None = None
    scope: str = "query"
    routing: str = "token"
    partitions: tuple[str, ...] = PARTITIONS
    frames: int | None = None
    area: tuple[int, int] | None = None
    box: tuple[int, int, int] | None = None
    raw_scores: bool = False
    block: int | None = None

    method: ClassVar[str] = "vmoba"
    dynamic: ClassVar[bool] = True
    density_by_head: ClassVar[bool] = False  # it decides the sizes of chunks
    published: ClassVar[dict] = PUBLISHED

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose_one("density", "top_k", "threshold")
        check_density(self.density)
        if not isinstance(self.partitions, tuple) or not self.partitions:
            raise ValueError(f"partitions must be a tuple of {', '.join(PARTITIONS)}, got {self.partitions!r}")
        for partition in self.partitions:
            check_choice("partitions", partition, PARTITIONS)
        check_triple("top_k", self.top_k, length=len(self.partitions))
        check_shares("threshold", None if self.threshold is None else (self.threshold,), 1)
        check_choice("scope", self.scope, ("query", "head"))
        check_choice("routing", self.routing, ("token", "tile"))
        if self.frames is not None:
            check_integer("frames", self.frames, least=1)
        check_triple("area", self.area, length=2)
        check_triple("box", self.box)
        check_choice("raw_scores", self.raw_scores, (True, False))
        check_size("block", self.block, SIZES)

    def _plan(self, grid: TokenGrid, query: Tensor, key: Tensor, layer: int, **_) -> Plan:
        layout = chunk_layout(grid, self._shape(grid, layer), self.block, query.device)
        block, order, video, chunk_of_tile = layout.block, layout.order, layout.video, layout.chunk_of_tile
        means = chunk_means(key, order[:video], block, chunk_of_tile, self.raw_scores)
        means = match_heads(means, query.shape[2]).mT
        if self.routing == "token":
            tokens = query[:, grid.video_start : grid.video_start + grid.video_tokens]
            chosen = self._route(grid, finite(tokens.transpose(1, 2)) @ means, layout.chunk, layer)
            lists, q_rows = _lists_by_token(grid, chosen, layout)
        else:
            tiles, _ = pooled(query, order[:video], block)
            chosen = self._route(grid, tiles @ means, chunk_of_tile, layer)[..., chunk_of_tile]
            all_tiles = len(order) // block
            lists, q_rows = TileList.from_mask(extend_text(chosen, all_tiles, all_tiles, True), block), None
        visual = visual_rows(grid, video)
        return Plan(grid.tokens, order[None, None], (lists,), block, q_rows=q_rows, visual=visual)

    def _shape(self, grid: TokenGrid, layer: int) -> tuple[int, int, int] | int:
        partition = self.partitions[layer % len(self.partitions)]
        given = {
            "1d": None if self.frames is None else (self.frames, grid.height, grid.width),
            "2d": None if self.area is None else (grid.frames, *self.area),
            "3d": self.box,
        }[partition]
        if given is not None:
            return given
        return chunk_shape(grid, partition, self._density(grid))

    def _density(self, grid: TokenGrid) -> float | None:
        if self.density is None:
            return None
        return max(self.density, 1 / grid.video_tokens)

    def _route(self, grid: TokenGrid, scores: Tensor, chunk: Tensor, layer: int) -> Tensor:
        """`(B, H, N, C)` bool, the chosen chunks of N queries (or tiles of queries) that lie in `chunk` `(N,)`."""
        own = torch.nn.functional.one_hot(chunk).bool()
        per_head = self.scope == "head"
        if self.threshold is not None:
            return route_threshold(scores, own, self.threshold, per_head)
        chunks = scores.shape[-1]
        count = self._density(grid) * chunks if self.top_k is None else self.top_k[layer % len(self.partitions)]
        return route_top(scores, own, max(count, 1), per_head)


def _lists_by_token(grid: TokenGrid, chosen: Tensor, layout: ChunkLayout) -> tuple[TileList, RoutedRows]:
    """Lists and query rows, given the chunks `(B, H, V, C)` that every query chose."""
    if grid.text:  # text is one more group of keys for all, and every query of it chooses every group
        text = (grid.text, 0) if grid.text_first else (0, grid.text)
        chosen = torch.nn.functional.pad(chosen, (0, 1, *text), value=True)
    rows = RoutedRows.of(chosen.transpose(2, 3), layout.block)
    return _tiles_of_group(rows.groups(), layout), rows


def _tiles_of_group(group: Tensor, layout: ChunkLayout) -> TileList:
    """The KV tiles of each query tile's group `(B, H, NQ)`; the tiles of a group are consecutive."""
    counts = layout.tiles[group].where(group >= 0, 0)
    indices = layout.first[group][..., None] + torch.arange(layout.widest, device=group.device)
    last = len(layout.order) // layout.block - 1
    dtype = torch.int16 if last < 2**15 else torch.int32
    return TileList(counts.int(), indices.clamp(max=last).to(dtype), layout.block)
