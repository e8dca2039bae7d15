"""FLUX and its relatives: text before the image, reference images after it, positions in `img_ids`."""

from __future__ import annotations

from torch import Tensor, nn

from .adapter import Adapter, Blocks, NoGrid, register
from .grids import Grid, position_grid, position_references, text_tokens

ATTENTION = Blocks(transformer_blocks="attn", single_transformer_blocks="attn")


def _flux2_grid(model: nn.Module, inputs: dict) -> Grid:
    if inputs.get("kv_cache_mode") is not None:
        raise NoGrid("keys and values of reference images come from a cache")
    return position_grid(model, inputs)


def _flux3_grid(model: nn.Module, inputs: dict) -> Grid:
    return _scaled_grid(inputs["img_ids"])


def _flux3_references(model: nn.Module, inputs: dict) -> tuple[Grid, ...]:
    """The last position tells images apart."""
    ids = inputs.get("image_cond_ids")
    if ids is None:
        return ()
    return tuple(map(_scaled_grid, ids.split(ids[:, -1].unique_consecutive(return_counts=True)[1].tolist())))


def _scaled_grid(ids: Tensor) -> Grid:
    """Of an image whose positions are scaled, so that they are no whole numbers."""
    height = len(ids[:, 1].unique())
    return 1, height, len(ids) // height


FLUX = register(
    Adapter(
        "FluxTransformer2DModel",
        ATTENTION,
        position_grid,
        other_tokens=text_tokens,
        references=position_references,
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
        references=position_references,
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
        references=_flux3_references,
        tested=("Edit",),
    )
)
CHROMA = register(
    Adapter("ChromaTransformer2DModel", ATTENTION, position_grid, other_tokens=text_tokens, mask="product")
)
BRIA = register(Adapter("BriaTransformer2DModel", ATTENTION, position_grid, other_tokens=text_tokens))
BRIA_FIBO = register(Adapter("BriaFiboTransformer2DModel", ATTENTION, position_grid, other_tokens=text_tokens))
LONGCAT_IMAGE = register(
    Adapter(
        "LongCatImageTransformer2DModel",
        ATTENTION,
        position_grid,
        other_tokens=text_tokens,
        references=position_references,
    )
)
OVIS_IMAGE = register(Adapter("OvisImageTransformer2DModel", ATTENTION, position_grid, other_tokens=text_tokens))
