"""VMoBA's partitions of the video into chunks: in time, in space, and in both; and their place in a plan."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention_config import plain_cpu
from ..grid import TokenGrid
from ._order import SIZES, coordinates, pack, split_axis, with_text

PARTITIONS = ("1d", "2d", "3d")
LEAST_CHUNKS = {"1d": 8, "2d": 24, "3d": 36}  # the published settings have 7-12, 24-48 and 36-72


def chunk_shape(grid: TokenGrid, partition: str, density: float | None) -> tuple[int, int, int] | int:
    """Frames, rows and columns of a chunk where none are configured; in time, maybe a number of tokens instead.

    There are at least as many chunks as in the published settings; with `density` at least 20, and enough that four
    are chosen.
    """
    wanted = LEAST_CHUNKS[partition] if density is None else max(LEAST_CHUNKS[partition], 20, math.ceil(4 / density))
    wanted = min(wanted, max(1, grid.video_tokens // 4))
    if partition == "1d":
        if wanted > grid.frames:
            return split_axis(grid.video_tokens, wanted)
        return split_axis(grid.frames, wanted), grid.height, grid.width
    frames = range(1, grid.frames + 1) if partition == "3d" else (1,)
    best = min(
        ((t, h, w) for t, h, w in product(frames, range(1, grid.height + 1), range(1, grid.width + 1))
         if wanted <= t * h * w <= 2 * wanted),
        key=lambda parts: _unevenness(grid, parts, partition),
        default=(1 if partition == "2d" else grid.frames, grid.height, grid.width),
    )  # fmt: skip
    return tuple(split_axis(size, part) for size, part in zip((grid.frames, grid.height, grid.width), best))


def _unevenness(grid: TokenGrid, parts: tuple[int, int, int], partition: str) -> float:
    """How far chunks are from cubes of equal size: their padding times the root of longest over shortest edge."""
    sizes = (grid.frames, grid.height, grid.width)
    edges = [split_axis(size, part) for size, part in zip(sizes, parts)]
    padded = math.prod(math.ceil(size / edge) * edge / size for size, edge in zip(sizes, edges))
    edges = edges if partition == "3d" else edges[1:]
    return padded * (max(edges) / min(edges)) ** 0.5


def chunk_of_token(grid: TokenGrid, shape: tuple[int, int, int] | int, device: torch.device | str = "cpu") -> Tensor:
    """`(V,)` int64, the chunk of every video token; an int `shape` cuts the raster order every `shape` tokens.

    Chunks at the ends of the axes may be smaller.
    """
    if isinstance(shape, int):
        return torch.arange(grid.video_tokens, device=device) // shape
    parts = [math.ceil(size / edge) for size, edge in zip((grid.frames, grid.height, grid.width), shape)]
    t, h, w = (coordinates(grid, device) // torch.tensor(shape, device=device)).unbind(-1)
    return (t * parts[1] + h) * parts[2] + w


class ChunkLayout(NamedTuple):
    """Where the chunks of a partition lie in the order of a plan, text last as one more chunk for the keys.

    Args:
        chunk (`torch.Tensor`): `(V,)` int64, of every video token.
        block (`int`): rows of a tile.
        order (`torch.Tensor`): `(R,)` int32, every chunk in tiles of its own.
        video (`int`): rows with video tokens.
        chunk_of_tile (`torch.Tensor`): `(video / block,)` int64.
        tiles, first (`torch.Tensor`): `(C,)` int64, tiles of each chunk, and the first of them.
        widest (`int`): the most tiles of a chunk.
    """

    chunk: Tensor
    block: int
    order: Tensor
    video: int
    chunk_of_tile: Tensor
    tiles: Tensor
    first: Tensor
    widest: int


@lru_cache(maxsize=32)
def chunk_layout(
    grid: TokenGrid, shape: tuple[int, int, int] | int, block: int | None, device: torch.device
) -> ChunkLayout:
    """The layout of chunks of `shape`, in tiles of `block` tokens or of the most that fit into chunks twice.

    The tensors are kept and shared. They are made on the CPU, so that no other device is waited for.
    """
    with plain_cpu():
        chunk = chunk_of_token(grid, shape)
        sizes = chunk.bincount()
        block = block or next((size for size in SIZES if 2 * size <= int(sizes.max())), SIZES[-1])
        rows = pack(chunk, torch.arange(len(chunk)), block)
        chunk_of_tile = torch.repeat_interleave((sizes + block - 1) // block)
        tiles = (torch.cat((sizes, sizes.new_tensor([grid.text] * (grid.text > 0)))) + block - 1) // block
        placed = [part.to(device) for part in (chunk, with_text(rows, grid, block), chunk_of_tile, tiles)]
        first = (tiles.cumsum(0) - tiles).to(device)
        return ChunkLayout(placed[0], block, placed[1], len(rows), *placed[2:], first, int(tiles.max()))
