"""The tile masks of the released Radial Attention code, with its effects at frame borders, built in less than O(n^2).

Restated from the behaviour of mit-han-lab/radial-attention at commit 72788d4 (Apache-2.0): a token band is drawn for
each pair of frames on a canvas shifted to where the frames start inside their tiles, and a tile is kept when more than
60 % of its non-empty columns are more than a third full.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..attention_config import plain_cpu
from ..grid import TokenGrid

DECIMATION_TILE = 128  # the released code decimates by this size whatever its tile size is


def official_tile_mask(grid: TokenGrid, block: int, decay: float, model: str) -> Tensor:
    """Boolean `(N, N)` tile mask of `grid`, its tail padded to a whole tile."""
    if grid.text_first and grid.text:
        raise ValueError("variant 'official' knows text after the video only; use variant 'aligned'")
    tiles = -(-grid.tokens // block)
    return tile_mask(grid.frames, grid.frame_tokens, tiles, grid.video_tokens // block, block, decay, model)


def tile_mask(frames: int, s: int, tiles: int, video_tiles: int, block: int, decay: float, model: str) -> Tensor:
    """Boolean `(tiles, tiles)` mask for `frames` frames of `s` tokens, rows and columns past `video_tiles` dense."""
    mask = torch.zeros(tiles, tiles, dtype=torch.bool)
    mask[video_tiles:] = True
    mask[:, video_tiles:] = True
    for i in range(frames):
        for j in range(frames):
            half_width = _half_width(i, j, s, block, decay, model)
            if half_width >= 0:
                pair = _pair_tiles(s, block, i * s % block, j * s % block, half_width)
                corner = mask[i * s // block :, j * s // block :][: len(pair), : len(pair)]
                corner |= pair[: corner.shape[0], : corner.shape[1]]
    return mask


def _half_width(i: int, j: int, s: int, block: int, decay: float, model: str) -> int:
    """Whole tokens of the band between frames i and j, -1 where the pair is dropped."""
    distance = abs(i - j)
    if j == 0 and model == "wan":
        return s
    width = 2 ** s.bit_length() / 2 ** distance.bit_length()
    if width < DECIMATION_TILE and distance % int(DECIMATION_TILE / width):
        return -1  # at distance 1 as well, where frames are shorter than this tile
    return s if distance <= 1 else int(max(block, width * decay))


@lru_cache(maxsize=512)
@plain_cpu()
def _pair_tiles(s: int, block: int, row_shift: int, column_shift: int, half_width: int) -> Tensor:
    """Boolean `(n, n)`, n = ceil(s / block): kept tiles of one pair of frames that start inside a tile."""
    n = -(-s // block)
    first_row = torch.arange(n).mul(block).sub(row_shift).view(-1, 1, 1)  # (n, 1, 1)
    column = torch.arange(n * block).sub(column_shift).view(1, n, block)  # (1, n, block)
    low = torch.maximum(first_row.clamp(min=0), column - half_width)
    high = torch.minimum((first_row + block).clamp(max=s), column + half_width + 1)
    kept = (high - low).clamp(min=0) * ((column >= 0) & (column < s))  # rows kept in each column
    filled, heavy = (kept > 0).sum(-1), (3 * kept > block).sum(-1)
    return 5 * heavy > 3 * filled
