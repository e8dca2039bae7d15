"""Image families of 2026 with text and image in one sequence."""

from __future__ import annotations

from torch import nn

from .adapter import Adapter, Blocks, NoGrid, register
from .grids import Grid, grid_of_positions, image_grid, in_patches, same_size, text_tokens

STREAM = Blocks(transformer_blocks="attn")


def _krea_grid(model: nn.Module, inputs: dict) -> Grid:
    return grid_of_positions(inputs["position_ids"][text_tokens(model, inputs) :])


def _ideogram_image(inputs: dict) -> int:
    """Where the image of the first sample begins: samples are padded on the left, and images come last."""
    at = inputs["position_ids"][0]
    return len(at) - int((at[:, 0] == at[-1, 0]).sum())


def _ideogram_grid(model: nn.Module, inputs: dict) -> Grid:
    return grid_of_positions(inputs["position_ids"][0, _ideogram_image(inputs) :])


def _gist_tokens(model: nn.Module, inputs: dict) -> int:
    """Tokens that a resampler makes of the text: before the images, or after them where samples differ in number."""
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    text, mask, config = inputs["encoder_hidden_states"], inputs.get("encoder_attention_mask"), model.config
    lengths = [text.shape[2]] * len(text) if mask is None else mask.sum(1).tolist()
    gist = {"min_gist": config.min_num_gist_tokens, "max_gist": config.max_num_gist_tokens}
    limits = {"min_text_len": config.gist_min_text_len, "max_text_len": config.gist_max_text_len}
    counts = compute_gist_count(lengths, **gist, **limits, gist_step=config.gist_step)
    return counts[0] if min(counts) == max(counts) else 0


def _fibo_references(model: nn.Module, inputs: dict) -> tuple[Grid, ...]:
    """Of the images to edit."""
    patch = (model.config.patch_size,) * 2
    return tuple((1, *in_patches(latents.shape[2:], patch)) for latents in inputs.get("context_latents") or ())


def _joy_grid(model: nn.Module, inputs: dict) -> Grid:
    """Images to edit are further frames, `(B, N, C, F, H, W)`."""
    *_, frames, height, width = inputs["hidden_states"].shape
    images = inputs["hidden_states"].shape[1] if inputs["hidden_states"].ndim == 6 else 1
    return in_patches((images * frames, height, width), tuple(model.config.patch_size))


def _joy_plus_grid(model: nn.Module, inputs: dict) -> Grid:
    """Of the image that is generated, the first of each sample."""
    if inputs.get("shape_list") is None:
        raise NoGrid("shape_list, the sizes of the images in tokens, is not given")
    return same_size([tuple(images[0]) for images in inputs["shape_list"]])


def _joy_plus_references(model: nn.Module, inputs: dict) -> tuple[Grid, ...]:
    """The images to edit; none where samples differ, and are padded."""
    samples = {tuple(map(tuple, images)) for images in inputs["shape_list"]}
    return samples.pop()[1:] if len(samples) == 1 else ()


KREA_2 = register(Adapter("Krea2Transformer2DModel", STREAM, _krea_grid, other_tokens=text_tokens))
IDEOGRAM_4 = register(
    Adapter(
        "Ideogram4Transformer2DModel",
        Blocks(layers="attention"),
        _ideogram_grid,
        other_tokens="before",
        mask="segments",
    )
)
ERNIE_IMAGE = register(
    Adapter("ErnieImageTransformer2DModel", Blocks(layers="self_attention"), image_grid, other_tokens="after")
)
GLM_IMAGE = register(
    Adapter("GlmImageTransformer2DModel", Blocks(transformer_blocks="attn1"), image_grid, other_tokens="before")
)
BRIA_FIBO_2 = register(
    Adapter(
        "BriaFibo2Transformer2DModel",
        Blocks(layers="attention"),
        image_grid,
        other_tokens=_gist_tokens,
        references=_fibo_references,
        tested=("Edit",),
    )
)
JOY_IMAGE_EDIT = register(
    Adapter(
        "JoyImageEditTransformer3DModel",
        Blocks(double_blocks="attn"),
        _joy_grid,
        other_tokens="after",
        tested=("Edit",),
    )
)
JOY_IMAGE_EDIT_PLUS = register(
    Adapter(
        "JoyImageEditPlusTransformer3DModel",
        Blocks(double_blocks="attn"),
        _joy_plus_grid,
        other_tokens="after",
        references=_joy_plus_references,
    )
)
