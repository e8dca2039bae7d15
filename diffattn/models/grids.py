"""Token grids, read from the inputs of a transformer's forward."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .adapter import NoGrid

Grid = tuple[int, int, int]


def in_patches(sizes: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes counted in patches."""
    return tuple(size // edge for size, edge in zip(sizes, patch))


def patch_size(model: nn.Module) -> Grid:
    """`(frames, height, width)` of a patch, from `patch_size` and, where it is separate, `patch_size_t`."""
    size = model.config.patch_size
    if isinstance(size, (tuple, list)):
        return tuple(size)
    return (getattr(model.config, "patch_size_t", None) or 1, size, size)


def video_grid(model: nn.Module, inputs: dict) -> Grid:
    """From latents `(B, C, F, H, W)`."""
    return in_patches(inputs["hidden_states"].shape[2:], patch_size(model))


def frames_first_grid(model: nn.Module, inputs: dict) -> Grid:
    """From latents `(B, F, C, H, W)`."""
    frames, _, height, width = inputs["hidden_states"].shape[1:]
    return in_patches((frames, height, width), patch_size(model))


def channels_last_grid(model: nn.Module, inputs: dict) -> Grid:
    """From latents `(B, F, H, W, C)`."""
    return in_patches(inputs["hidden_states"].shape[1:4], patch_size(model))


def image_grid(model: nn.Module, inputs: dict) -> Grid:
    """From latents `(B, C, H, W)`, or `(B, C, F, H, W)`."""
    sizes = inputs["hidden_states"].shape[2:]
    patch = patch_size(model)
    return in_patches(sizes, patch) if len(sizes) == 3 else (1, *in_patches(sizes, patch[-2:]))


def stated_grid(model: nn.Module, inputs: dict) -> Grid:
    """From the arguments `num_frames`, `height` and `width`, which count tokens."""
    sizes = tuple(inputs.get(name) for name in ("num_frames", "height", "width"))
    if None in sizes:
        raise NoGrid("num_frames, height and width are not given, tokens placed by coordinates: enable(grid=) helps")
    return sizes


def position_grid(model: nn.Module, inputs: dict) -> Grid:
    """From `img_ids` `(S, 3|4)`, the positions of the tokens: the grid of the image that the first token is in."""
    ids = inputs["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    return grid_of_positions(ids[ids[:, 0] == ids[0, 0]])


def position_references(model: nn.Module, inputs: dict) -> tuple[Grid, ...]:
    """From `img_ids` too: the images after the first, where each of them fills a rectangle; else none."""
    ids = inputs["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    return tuple(grids_of_images(ids, ids[:, 0])[1:])


def grids_of_images(ids: Tensor, image: Tensor) -> list[Grid]:
    """The grid of each image, from positions `(S, 3|4)` and the number of the image `(S,)`; of rectangles only."""
    counts = image.unique_consecutive(return_counts=True)[1].tolist()
    try:
        return [grid_of_positions(part) for part in ids.split(counts)]
    except NoGrid:
        return []


def grid_of_positions(own: Tensor) -> Grid:
    """From the positions `(S, 3|4)` of the tokens of an image, of which the second and third are row and column."""
    low, high = torch.stack((own.amin(0), own.amax(0))).long().tolist()
    height, width = high[1] - low[1] + 1, high[2] - low[2] + 1
    if len(own) != height * width:
        raise NoGrid(f"the {len(own)} tokens of the image do not fill {height}x{width} positions")
    return 1, height, width


def same_size(sizes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The one size of all samples of a batch."""
    if any(size != sizes[0] for size in sizes[1:]):
        raise NoGrid("samples of different sizes in one batch")
    return sizes[0]


def text_tokens(model: nn.Module, inputs: dict) -> int:
    """Tokens of `encoder_hidden_states` `(B, S, C)`."""
    return inputs["encoder_hidden_states"].shape[1]


def pooled_tokens(latents: Tensor | None, kernel: Grid) -> int:
    """Tokens of latents `(B, C, F, H, W)` under a strided convolution that pads up to whole kernels."""
    if latents is None:
        return 0
    return math.prod(-(-size // edge) for size, edge in zip(latents.shape[2:], kernel))
