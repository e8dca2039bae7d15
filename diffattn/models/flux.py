"""FLUX and its relatives: text before the image, reference images after it, positions in `img_ids`."""

from __future__ import annotations

from torch import nn

from .adapter import Adapter, Blocks, NoGrid, register
from .grids import Grid, position_grid, text_tokens

ATTENTION = Blocks(transformer_blocks="attn", single_transformer_blocks="attn")


def _flux2_grid(model: nn.Module, inputs: dict) -> Grid:
    if inputs.get("kv_cache_mode") is not None:
        raise NoGrid("keys and values of reference images come from a cache")
    return position_grid(model, inputs)


FLUX = register(
    Adapter(
        "FluxTransformer2DModel",
        ATTENTION,
        position_grid,
        other_tokens=text_tokens,
        parallel_split="streams",
        tested=("Kontext", "pipeline"),
    )
)
FLUX_2 = register(
    Adapter(
        "Flux2Transformer2DModel",
        ATTENTION,
        _flux2_grid,
        other_tokens=text_tokens,
        parallel_split="streams",
        tested=("Edit",),
    )
)
CHROMA = register(
    Adapter("ChromaTransformer2DModel", ATTENTION, position_grid, other_tokens=text_tokens, mask="product")
)
BRIA = register(Adapter("BriaTransformer2DModel", ATTENTION, position_grid, other_tokens=text_tokens))
BRIA_FIBO = register(Adapter("BriaFiboTransformer2DModel", ATTENTION, position_grid, other_tokens=text_tokens))
LONGCAT_IMAGE = register(Adapter("LongCatImageTransformer2DModel", ATTENTION, position_grid, other_tokens=text_tokens))
OVIS_IMAGE = register(Adapter("OvisImageTransformer2DModel", ATTENTION, position_grid, other_tokens=text_tokens))
