"""Kandinsky 5 and 6: text arrives by cross-attention, sound and picture exchange by another."""

from __future__ import annotations

from torch import nn

from .adapter import Adapter, Blocks, NoGrid, register
from .grids import Grid, channels_last_grid


def _kandinsky5_grid(model: nn.Module, inputs: dict) -> Grid:
    if (inputs.get("sparse_params") or {}).get("to_fractal"):
        raise NoGrid("tokens in the fractal order of the model's own sparse attention")
    return channels_last_grid(model, inputs)


KANDINSKY_5 = register(
    Adapter("Kandinsky5Transformer3DModel", Blocks(visual_transformer_blocks="self_attention"), _kandinsky5_grid)
)
KANDINSKY_6 = register(
    Adapter(
        "Kandinsky6Transformer3DModel",
        Blocks(visual_transformer_blocks="video_dec_block.self_attention"),
        channels_last_grid,
    )
)
