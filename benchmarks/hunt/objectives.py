"""The embedded model on the coarser token grids that it was trained on too, and its latents looked at as pictures.

A clip of 64x64 has a quarter of the tokens of one of 128x128. Latents need no decoding, which takes as long as several
steps: their channels are the mean of a chunk and its change, so that they show a clip at a quarter of its size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffattn.hunting import Objective
from examples.tiny_wan.forward import StretchedPositions
from examples.tiny_wan.latents import CHANNELS, LATENTS_MEAN, LATENTS_STD

from ..tiny import load


def load_for_any_grid() -> Any:
    """The pipeline, for 128x128, 64x64 and 32x32, always with 33 frames."""
    pipe = load()
    pipe.transformer.rope = StretchedPositions(pipe.transformer.config.attention_head_dim)
    return pipe


def pictures(latents: Tensor) -> Tensor:
    """Latents `(B, 6, 1 + n, H, W)` of the pipeline as clips `(B, 1 + 2n, 3, H, W)` in 0..1, one frame a half chunk.

    What `analytic_latents` makes of a clip, undone but for the pooling; differentiable.
    """
    std, mean = (latents.new_tensor(values).view(1, CHANNELS, 1, 1, 1) for values in (LATENTS_STD, LATENTS_MEAN))
    middle, half = (latents * std + mean).chunk(2, 1)
    frames = torch.stack([middle - half, middle + half], 3).flatten(2, 3)[:, :, 1:]
    return (frames.transpose(1, 2) / 2 + 0.5).clamp(0, 1)


def of_pictures(score: Callable[[Tensor, list[str]], Tensor], name: str) -> Objective:
    """An objective of latents from a score of clips."""
    return Objective(lambda latents, prompts: score(pictures(latents), prompts), name)
