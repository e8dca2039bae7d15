"""Further image families: grids of one frame."""

from __future__ import annotations

from torch import nn

from .adapter import Adapter, Blocks, NoGrid, register
from .grids import Grid, image_grid, in_patches, same_size, text_tokens


def _qwen_grid(model: nn.Module, inputs: dict) -> Grid:
    """The grid of the first image of a sample, the one that is generated."""
    return same_size([tuple(images[0] if isinstance(images, list) else images) for images in inputs["img_shapes"]])


def _qwen_references(model: nn.Module, inputs: dict) -> tuple[Grid, ...]:
    """The other images: references to edit, layers; none where samples differ."""
    samples = [tuple(map(tuple, images)) if isinstance(images, list) else (images,) for images in inputs["img_shapes"]]
    return samples[0][1:] if len(set(samples)) == 1 else ()


def _z_image_grid(model: nn.Module, inputs: dict) -> Grid:
    if isinstance(inputs["x"][0], list):
        raise NoGrid("several images in one sequence (omni mode)")
    shape = same_size([tuple(image.shape[1:]) for image in inputs["x"]])  # (C, F, H, W)
    size = inputs.get("patch_size") or 2
    return in_patches(shape, (inputs.get("f_patch_size") or 1, size, size))


def _hidream_grid(model: nn.Module, inputs: dict) -> Grid:
    if inputs["hidden_states"].ndim != 4:
        raise NoGrid("tokens that were cut into patches outside the transformer")
    return image_grid(model, inputs)


# 3.5 medium has a second, purely visual attention in its first blocks
SD3 = register(
    Adapter(
        "SD3Transformer2DModel",
        Blocks(transformer_blocks="attn attn2"),
        image_grid,
        other_tokens="after",
        attention_call="torch",
        tested=("3.5", "pipeline"),
    )
)
QWEN_IMAGE = register(
    Adapter(
        "QwenImageTransformer2DModel",
        Blocks(transformer_blocks="attn"),
        _qwen_grid,
        other_tokens=text_tokens,
        references=_qwen_references,
        parallel_split="streams",
        tested=("pipeline",),
    )
)
Z_IMAGE = register(
    Adapter("ZImageTransformer2DModel", Blocks(layers="attention"), _z_image_grid, other_tokens="after")
)
LUMINA_2 = register(
    Adapter(
        "Lumina2Transformer2DModel",
        Blocks(layers="attn"),
        image_grid,
        other_tokens="before",
        attention_call="torch",
        mask="packed",
    )
)
# an image that is not square is padded with tokens, which follow the image as the text does
HIDREAM = register(
    Adapter(
        "HiDreamImageTransformer2DModel",
        Blocks(double_stream_blocks="block.attn1", single_stream_blocks="block.attn1"),
        _hidream_grid,
        other_tokens="after",
        attention_call="torch",
    )
)
AURAFLOW = register(
    Adapter(
        "AuraFlowTransformer2DModel",
        Blocks(joint_transformer_blocks="attn", single_transformer_blocks="attn"),
        image_grid,
        other_tokens="before",
        attention_call="torch",
    )
)
COGVIEW_4 = register(
    Adapter(
        "CogView4Transformer2DModel",
        Blocks(transformer_blocks="attn1"),
        image_grid,
        other_tokens="before",
        attention_call="torch",
    )
)
COGVIEW_3_PLUS = register(
    Adapter(
        "CogView3PlusTransformer2DModel",
        Blocks(transformer_blocks="attn1"),
        image_grid,
        other_tokens="before",
        attention_call="torch",
    )
)
PIXART = register(
    Adapter("PixArtTransformer2DModel", Blocks(transformer_blocks="attn1"), image_grid, attention_call="torch")
)
DIT = register(Adapter("DiTTransformer2DModel", PIXART.attention, image_grid, attention_call="torch"))
HUNYUAN_DIT = register(Adapter("HunyuanDiT2DModel", Blocks(blocks="attn1"), image_grid, attention_call="torch"))
LUMINA_NEXT = register(Adapter("LuminaNextDiT2DModel", Blocks(layers="attn1"), image_grid, attention_call="torch"))
