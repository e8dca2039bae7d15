"""A plan so simple that the same mask can be written down without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffattn import AttentionConfig, Plan, TileList, TokenGrid

TILE = 16


def block_of_token(grid: tuple[int, int, int]) -> Tensor:
    """`(T * H * W,)`: the frame of a video's token, the upper or lower half of an image's."""
    frames, height, width = grid
    token = torch.arange(frames * height * width)
    return token // (height * width) if frames > 1 else token // width * 2 // height


def own_block_mask(grid: tuple[int, int, int], before: int, tokens: int) -> Tensor:
    """`(S, S)` bool: visual tokens see their own block, other tokens see and are seen by everything."""
    block = torch.full((tokens,), -1)
    video = block_of_token(grid)
    block[before : before + len(video)] = video
    return (block[:, None] == block) | (block[:, None] < 0) | (block < 0)


@dataclass(frozen=True)
class OwnBlockConfig(AttentionConfig):
    """The mask above as tiles: every block filled up on its own."""

    method: ClassVar[str] = "own-block"

    def plan(self, grid: TokenGrid, query=None, key=None, *, layer: int = 0, device="cpu") -> Plan:
        owner = block_of_token((grid.frames, grid.height, grid.width))
        parts = [(owner == block).nonzero().flatten() + grid.video_start for block in owner.unique()]
        parts.append(torch.arange(grid.text) + grid.text_start)
        padded = [torch.nn.functional.pad(part, (0, -len(part) % TILE), value=-1) for part in parts]
        block = torch.cat([torch.full((len(part) // TILE,), index) for index, part in enumerate(padded)])
        text = block == len(parts) - 1
        mask = (block[:, None] == block) | text[:, None] | text
        lists = TileList.from_mask(mask[None, None], TILE)
        return Plan(grid.tokens, torch.cat(padded)[None, None], (lists,), TILE).to(device)
