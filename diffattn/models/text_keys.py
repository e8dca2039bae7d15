"""Families whose image or video tokens ask, and whose text is keys alone: it has no queries, or asks by itself."""

from __future__ import annotations

from torch import nn

from .adapter import Adapter, Blocks, NoGrid, register
from .grids import Grid, image_grid, same_size


def _nucleus_grid(model: nn.Module, inputs: dict) -> Grid:
    shapes = inputs["img_shapes"]
    return same_size([tuple(shape) for shape in shapes]) if isinstance(shapes, list) else tuple(shapes)


def _qwen21_grid(model: nn.Module, inputs: dict) -> Grid:
    """Of the last image, the one that is generated: the images before it are keys, as the text is."""
    return same_size([tuple(images[-1]) for images in inputs["img_shapes"]])


def _cosmos3_grid(model: nn.Module, inputs: dict) -> Grid:
    shapes = inputs["vision_token_shapes"]
    if len(shapes) > 1:
        raise NoGrid(f"{len(shapes)} videos in one sequence")
    return tuple(shapes[0])


def _cosmos3_start(model: nn.Module, inputs: dict) -> int:
    return int(inputs["vision_sequence_indexes"][0])


PRX = register(
    Adapter(
        "PRXTransformer2DModel", Blocks(blocks="attention"), image_grid, other_tokens="before", keys_alone="before"
    )
)
NUCLEUS_MOE = register(
    Adapter(
        "NucleusMoEImageTransformer2DModel",
        Blocks(transformer_blocks="attn"),
        _nucleus_grid,
        other_tokens="after",
        keys_alone="after",
    )
)
# text and condition images ask in calls of their own, each of what comes before it
QWEN_IMAGE_21 = register(
    Adapter(
        "QwenImage21Transformer2DModel",
        Blocks(transformer_blocks="attn"),
        _qwen21_grid,
        other_tokens="before",
        attention_call="active_backend",
        keys_alone="before",
    )
)
COSMOS_3 = register(
    Adapter(
        "Cosmos3OmniTransformer",
        Blocks(layers="self_attn"),
        _cosmos3_grid,
        other_tokens=_cosmos3_start,
        keys_alone="before",
    )
)
