"""Radial Attention (arXiv 2506.19852): a static O(n log n) mask that narrows with distance in time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers.utils import logging
from torch import Tensor

from ..attention_config import AttentionConfig, Default, check_density, register
from ..grid import TokenGrid
from ..kernels.plan.plan import Plan
from ..kernels.plan.tile_list import TileList
from ..schedule import Schedule
from ._check import check_choice, check_size, is_number
from ._order import SIZES, visual_rows
from ._radial_official import official_tile_mask

logger = logging.get_logger(__name__)


# arXiv 2506.19852, Section 5, and the released scripts
PUBLISHED = {
    name: (
        {"decay": decay, "block_size": block_size, "model": "wan" if name.startswith("wan") else "hunyuan"},
        Schedule(dense_start=dense_start, dense_layers=dense_layers),
    )
    for name, decay, block_size, dense_start, dense_layers in (
        ("wan2.1-14b", 0.2, 128, 12 / 50, 1),
        ("wan2.1-14b-2x", 1.0, 128, 2 / 50, 2),
        ("wan2.1-14b-4step", 0.2, 128, 1, 1),
        ("wan2.2-a14b", 0.8, 64, 11 / 40, 1),
        ("hunyuan", 0.95, 128, 12 / 50, 0),
        ("hunyuan-2x", 1.0, 128, 2 / 50, 2),
        ("hunyuan-4x", 1.0, 128, 2 / 50, 2),
    )
}


@register
@dataclass(frozen=True)
class RadialConfig(AttentionConfig):
    """Radial Attention: a frame sees itself and its neighbours whole, more distant frames through a narrowing band.

    At distance d >= 2 in time the half-width of the band is `decay * 2^bl(s) / 2^bl(d)` tokens and at least one tile,
    with s tokens in a frame and bl the bit length. Where the band without decay would be narrower than a tile, only
    every second, fourth, ... distance is kept. Text attends to everything and everything to text.

    Args:
        density (`float`, *optional*): share of the products between visual tokens to compute, at most; sets `decay`,
            and where the smallest decay is not enough, narrows the near frames too. Tiles make it a step function;
            `Plan.density` is the density that was reached.
        decay (`float`, *optional*, defaults to 0.2): scale of the bands at distance 2 and more. At the published
            0.2 the official masks keep one tile to either side, whatever the distance.
        block_size (`int`, *optional*): tokens of a tile; by default the largest of 128, 64, 32, 16 that cuts a frame
            into at least eight tiles, or a smaller one where `density` needs it.
        variant (`str`, *optional*, defaults to `"aligned"`): `"aligned"` pads every frame to whole tiles of its own,
            so that no row loses a key of its band at any resolution; `"official"` gives the released tile masks.
        model (`str`, *optional*, defaults to `"wan"`): `"wan"` keeps frame 0 as a sink for every query,
            `"hunyuan"` does not (Section 4.2, and the released code).

    Example:

    >>> plan = RadialConfig(variant="official", decay=0.2, block_size=128).plan(TokenGrid(18, 48, 80))
    >>> round(plan.density, 6)
    0.287133
    """

    density: float | None = None
    decay: float | None = Default(0.2)
    block_size: int | None = None
    variant: str = "aligned"
    model: str = "wan"

    method: ClassVar[str] = "radial"
    published: ClassVar[dict] = PUBLISHED

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose_one("density", "decay")
        check_density(self.density)
        if self.decay is not None and not (is_number(self.decay) and self.decay >= 0):
            raise ValueError(f"decay must be at least 0, got {self.decay!r}")
        check_size("block_size", self.block_size, SIZES)
        check_choice("variant", self.variant, ("aligned", "official"))
        check_choice("model", self.model, ("wan", "hunyuan"))
        if self.variant == "official" and self.density is not None:
            raise ValueError("variant 'official' is steered by decay, not by density")

    def _plan(self, grid: TokenGrid, **_) -> Plan:
        block = self.block_size or self._tile_size(grid)
        if self.variant == "official":
            mask = official_tile_mask(grid, block, self.decay, self.model)
            order, visual = _pad(torch.arange(grid.tokens), block), visual_rows(grid, grid.video_tokens)
        else:
            mask = self._video_mask(grid, block)
            order, visual, mask = _with_text(grid, block, mask)
        lists = TileList.from_mask(mask[None, None], block)
        return Plan(grid.tokens, order[None, None], (lists,), block, visual=visual)

    def _tile_size(self, grid: TokenGrid) -> int:
        sizes = [size for size in SIZES if grid.frame_tokens >= 8 * size] or [SIZES[-1]]
        if self.density is None:
            return sizes[0]
        narrowest = (video_tile_mask(grid, size, self.model, decay=0.0, near=0.0) for size in sizes)
        fits = (size for size, mask in zip(sizes, narrowest) if _density(mask, grid, size) <= self.density)
        return next(fits, sizes[-1])

    def _video_mask(self, grid: TokenGrid, block: int) -> Tensor:
        if self.density is None:
            return video_tile_mask(grid, block, self.model, self.decay)
        return _mask_of_density(grid, block, self.model, self.density)


def _with_text(grid: TokenGrid, block: int, mask: Tensor) -> tuple[Tensor, tuple[int, int] | None, Tensor]:
    """Order `(R,)`, visual rows and tile mask `(N, N)` of the sequence, given the mask of the video.

    Every frame, and the text, is filled up to whole tiles with -1.
    """
    frames = torch.arange(grid.video_tokens).view(grid.frames, -1) + grid.video_start
    video = _pad(frames, block).flatten()
    text = _pad(torch.arange(grid.text) + grid.text_start, block)
    tiles = len(text) // block
    if grid.text_first:
        order, sides = torch.cat((text, video)), (tiles, 0, tiles, 0)
    else:
        order, sides = torch.cat((video, text)), (0, tiles, 0, tiles)
    visual = visual_rows(grid, len(video), start=len(text) if grid.text_first else 0)
    return order, visual, torch.nn.functional.pad(mask, sides, value=True)


def video_tile_mask(grid: TokenGrid, block: int, model: str, decay: float, near: float = 1.0) -> Tensor:
    """Bool `(N, N)` mask over the tiles of the video; `near` scales the windows at distance 0 and 1."""
    reach = _tile_reach(grid, block, model, decay, near)  # (T, T)
    tiles = -(-grid.frame_tokens // block)
    offset = torch.arange(tiles).view(-1, 1, 1) - torch.arange(tiles)  # (tiles, 1, tiles)
    return (offset.abs() <= reach[:, None, :, None]).flatten(2, 3).flatten(0, 1)


def _tile_reach(grid: TokenGrid, block: int, model: str, decay: float, near: float) -> Tensor:
    """`(T, T)` int, how many tiles to either side a frame sees of another; -1 where it sees nothing of it."""
    frame = torch.arange(grid.frames)
    distance = (frame[:, None] - frame).abs()
    tokens = grid.frame_tokens
    bands = [2.0 ** tokens.bit_length() / 2.0 ** d.bit_length() for d in range(grid.frames)]
    band = torch.tensor(bands, dtype=torch.float32)[distance]  # before decay
    half_width = torch.where(distance <= 1, near * tokens, band * decay).clamp(block, tokens)
    reach = (half_width / block).ceil().int()
    stride = (block / (band * max(decay, 1))).clamp(min=1).int()
    kept = (distance <= 1) | (distance % stride == 0)
    if model == "wan":
        sink = max(math.ceil(near * tokens / block), 1)
        reach[:, 0], kept[:, 0] = reach[:, 0].clamp(min=sink), True
    return reach.where(kept, -1)


def _mask_of_density(grid: TokenGrid, block: int, model: str, density: float) -> Tensor:
    """The densest mask of at most `density`: the widest decay that fits, then the widest near frames."""

    def fits(mask: Tensor) -> bool:
        return _density(mask, grid, block) <= density

    def widest(low: float, high: float, make: Callable[[float], Tensor]) -> Tensor | None:
        if not fits(make(low)):
            return None
        if fits(make(high)):
            return make(high)
        for _ in range(32):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(make(middle)) else (low, middle)
        return make(low)

    mask = widest(-24.0, 24.0, lambda exponent: video_tile_mask(grid, block, model, 2.0**exponent))
    if mask is None:
        mask = widest(0.0, 1.0, lambda near: video_tile_mask(grid, block, model, 0.0, near))
    if mask is None:
        mask = video_tile_mask(grid, block, model, 0.0, 0.0)
        least = _density(mask, grid, block)
        logger.warning(f"radial attention on {grid} has density {least:.3f} at least, {density} was asked for")
    return mask


def _density(mask: Tensor, grid: TokenGrid, block: int) -> float:
    """Share of the pairs of video tokens that lie in the tiles of a video mask."""
    tiles = len(mask) // grid.frames
    valid = torch.full((tiles,), block, dtype=torch.float64)
    valid[-1] -= tiles * block - grid.frame_tokens
    valid = valid.repeat(grid.frames)
    return float(valid @ mask.double() @ valid) / grid.video_tokens**2


def _pad(rows: Tensor, block: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, -rows.shape[-1] % block), value=-1)
