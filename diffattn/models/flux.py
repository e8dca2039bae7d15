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


def _flux3_grid(model: nn.Module, inputs: dict) -> Grid:
    """Positions are scaled."""
    height = len(inputs["img_ids"][..., 1].unique())
    return 1, height, inputs["hidden_states"].shape[1] // height


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
# the first blocks are of one kind of token each, those of the image and those of all tokens count
FLUX_3 = register(
    Adapter(
        "Flux3Transformer2DModel",
        Blocks({"mode_blocks.image": "attn", "single_transformer_blocks": "attn"}),
        _flux3_grid,
        other_tokens=text_tokens,
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
