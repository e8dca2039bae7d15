"""Wan 2.1 and 2.2 and their relatives: text and image arrive by cross-attention, which stays dense."""

from __future__ import annotations

from .adapter import Adapter, Blocks, register
from .grids import frames_first_grid, video_grid

ATTENTION = Blocks(blocks="attn1")

WAN = register(Adapter("WanTransformer3DModel", ATTENTION, video_grid, tested=("pipeline",)))
VACE = register(
    Adapter(
        "WanVACETransformer3DModel",
        Blocks(blocks="attn1", vace_blocks="attn1"),
        video_grid,
        branches=("vace_blocks",),
    )
)
ANIMATE = register(Adapter("WanAnimateTransformer3DModel", ATTENTION, video_grid))
CHRONO_EDIT = register(Adapter("ChronoEditTransformer3DModel", ATTENTION, video_grid))
SKYREELS_V2 = register(Adapter("SkyReelsV2Transformer3DModel", ATTENTION, video_grid))
ANYFLOW = register(Adapter("AnyFlowTransformer3DModel", ATTENTION, frames_first_grid))
# history comes before the frames that are generated
HELIOS = register(
    Adapter("HeliosTransformer3DModel", ATTENTION, video_grid, other_tokens="before", parallel_split="sequence")
)
