"""Orders of tokens that keep neighbours in space and time together."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..attention_config import plain_cpu
from ..grid import TokenGrid

TILE = (4, 4, 8)
CUBE = (2, 2, 2)
SIZES = (128, 64, 32, 16)


def block_size(grid: TokenGrid, blocks: int) -> int:
    """The largest of 128, 64, 32, 16 tokens that cuts the video into at least `blocks` blocks."""
    return next((size for size in SIZES if grid.video_tokens >= size * blocks), SIZES[-1])


def coordinates(grid: TokenGrid, device: torch.device | str = "cpu") -> Tensor:
    """`(V, 3)` int64, frame, row and column of every visual token; the frames of references follow the others."""
    parts, frames = [], 0
    for sizes in grid.grids:
        axes = [torch.arange(size, device=device) for size in sizes]
        axes[0] = axes[0] + frames
        parts.append(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2))
        frames += sizes[0]
    return torch.cat(parts)


def grid_numbers(grid: TokenGrid, device: torch.device | str = "cpu") -> Tensor:
    """`(V,)` int64, the number of the grid that each visual token is in, 0 where there are no references."""
    sizes = torch.tensor([math.prod(sizes) for sizes in grid.grids], device=device)
    return torch.arange(len(sizes), device=device).repeat_interleave(sizes, output_size=grid.video_tokens)


def pack(segment: Tensor, rank: Tensor, block: int) -> Tensor:
    """Items sorted by segment, then by rank, each segment filled up with -1 to whole blocks.

    Args:
        segment, rank (`torch.Tensor`): `(N,)` int64, segments numbered from 0 without gaps.
        block (`int`): rows of a block.

    Returns:
        `torch.Tensor`: `(R,)` int64, item of each row, -1 for padding.

    >>> pack(torch.tensor([1, 0, 1, 0, 0]), torch.tensor([0, 2, 1, 1, 0]), 2).tolist()
    [4, 3, 1, -1, 0, 2]
    """
    by_rank = torch.argsort(rank, stable=True)
    item = by_rank[torch.argsort(segment[by_rank], stable=True)]
    counts = torch.bincount(segment)
    padded = (counts + block - 1) // block * block
    shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)  # (segments,)
    rows = torch.full((int(padded.sum()),), -1, device=segment.device)
    rows[torch.arange(len(item), device=segment.device) + shift[segment[item]]] = item
    return rows


def with_text(video: Tensor, grid: TokenGrid, block: int) -> Tensor:
    """`(R,)` int32, tokens of the sequence in each row: the given video tokens, numbered from 0, then the text."""
    text = torch.arange(grid.text, device=video.device) + grid.text_start
    text = torch.nn.functional.pad(text, (0, -grid.text % block), value=-1)
    return torch.cat((video + grid.video_start * (video >= 0), text)).int()


@lru_cache(maxsize=32)
@plain_cpu()
def block_order(grid: TokenGrid, name: str, block: int, device: torch.device | str = "cpu") -> tuple[Tensor, int]:
    """Rows `(R,)` in the order `"nested"`, `"hilbert"` or `"raster"`, and how many of them are video rows.

    Video, each reference and text are filled up to whole blocks separately. The text comes last. The rows are made on
    the CPU and kept on `device`: nobody may write to them.
    """
    video = pack(grid_numbers(grid, "cpu"), ORDERS[name](coordinates(grid)), block)
    return with_text(video, grid, block).to(device), len(video)


def visual_rows(grid: TokenGrid, rows: int, start: int = 0) -> tuple[int, int] | None:
    """`Plan.visual` where `rows` rows from `start` on hold the video; None where there is nothing else."""
    return (start, start + rows) if grid.text else None


def nested_rank(at: Tensor, tile: tuple[int, ...] = TILE, cube: tuple[int, ...] = CUBE) -> Tensor:
    """`(V,)` int64 rank of coordinates `(V, 3)`: tile by tile, in a tile cube by cube, in a cube in raster order.

    Consecutive rows are compact in space and time, so that a pool of 8 rows is a cube. Where tiles do not divide the
    grid, those at its end are smaller.
    """
    tile, cube = (torch.tensor(size, device=at.device) for size in (tile, cube))
    return _raster(at // tile, at % tile // cube, at % cube)


def raster_rank(at: Tensor) -> Tensor:
    """`(V,)` int64 rank: the order that the tokens already have."""
    return torch.arange(len(at), device=at.device)


def hilbert_rank(at: Tensor) -> Tensor:
    """`(V,)` int64 rank along the Hilbert curve through the smallest cube around the grid (Skilling, 2004)."""
    bits = max(int(at.max()).bit_length(), 1)
    x = list(at.unbind(-1))
    for level in reversed(range(1, bits)):
        low = (1 << level) - 1
        for axis in range(3):
            flip = (x[axis] >> level) & 1 == 1
            swap = (x[0] ^ x[axis]) & low
            x[0], other = torch.where(flip, x[0] ^ low, x[0] ^ swap), torch.where(flip, x[axis], x[axis] ^ swap)
            x[axis] = other if axis else x[0]
    x[1], x[2] = x[1] ^ x[0], x[2] ^ x[1] ^ x[0]
    turn = torch.zeros_like(x[0])
    for level in range(1, bits):
        turn = torch.where((x[2] >> level) & 1 == 1, turn ^ ((1 << level) - 1), turn)
    x = [part ^ turn for part in x]
    code = torch.zeros_like(turn)
    for level in reversed(range(bits)):
        for part in x:
            code = code << 1 | (part >> level & 1)
    return code


def split_axis(size: int, parts: int) -> int:
    """The length of the pieces when an axis is cut into at most `parts` equal pieces; the last one may be shorter."""
    return math.ceil(size / max(1, min(parts, size)))


def _raster(*digits: Tensor) -> Tensor:
    """`(V,)` int64, lexicographic rank of `(V, 3)` digit groups, the first the most significant."""
    code = torch.zeros_like(digits[0][:, 0])
    for digit in torch.cat(digits, -1).unbind(-1):
        code = code * (int(digit.max()) + 1) + digit
    return code


ORDERS = {"nested": nested_rank, "hilbert": hilbert_rank, "raster": raster_rank}
