"""Kandinsky 5 and 6: text arrives by cross-attention, sound and picture exchange by another."""

from __future__ import annotations

from torch import nn

from .adapter import Adapter, Blocks, register
from .grids import Grid, channels_last_grid


def _kandinsky5_tile(model: nn.Module, inputs: dict) -> Grid:
    """With NABLA, 8x8 tokens of a frame follow each other."""
    return (1, 8, 8) if (inputs.get("sparse_params") or {}).get("to_fractal") else (1, 1, 1)


def _kandinsky6_sr_tile(model: nn.Module, inputs: dict) -> Grid:
    return 1, 8, 8


KANDINSKY_5 = register(
    Adapter(
        "Kandinsky5Transformer3DModel",
        Blocks(visual_transformer_blocks="self_attention"),
        channels_last_grid,
        tile=_kandinsky5_tile,
        replaceable_pattern=True,
        tested=("NABLA",),
    )
)
KANDINSKY_6 = register(
    Adapter(
        "Kandinsky6Transformer3DModel",
        Blocks(visual_transformer_blocks="video_dec_block.self_attention"),
        channels_last_grid,
    )
)
KANDINSKY_6_SR = register(
    Adapter(
        "Kandinsky6SRTransformer3DModel",
        Blocks(visual_transformer_blocks="self_attention"),
        channels_last_grid,
        attention_call="active_backend",
        tile=_kandinsky6_sr_tile,
        replaceable_pattern=True,
    )
)
