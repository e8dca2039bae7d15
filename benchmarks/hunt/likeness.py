"""How much a clip looks like the scene its caption describes: smooth, so that a search can follow its gradient."""

import re
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from examples.tiny_wan.rendering import render
from examples.tiny_wan.scenes import COLOURS, DIRECTIONS, MOTIONS, SHAPES, SIZES, Item, Scene, frame_times

TRAVEL, HOP = 0.4, 0.28  # the middle of what training shows


def described_scene(caption: str) -> Scene:
    """The typical scene of a caption of one object, without shading, stripes and pan."""
    words = re.findall("[a-z]+", caption.lower())
    colours = [word for word in words if word in COLOURS]
    shapes = [word for word in words if word in SHAPES]
    motions = [name for name, phrases in MOTIONS.items() if any(phrase in caption.lower() for phrase in phrases)]
    if (len(colours), len(shapes), len(motions)) != (2, 1, 1):
        raise ValueError(f"not the caption of a scene of one object: {caption!r}")
    size = next((word for word in words if word in SIZES), "")
    travel = HOP if motions[0] == "bounce" else TRAVEL
    across, down = DIRECTIONS.get(motions[0], (0.0, -1.0 if motions[0] == "bounce" else 0.0))
    start = (0.5 - across * travel / 2, 0.5 - down * travel / 2)
    item = Item(shapes[0], colours[0], motions[0], size, sum(SIZES[size]) / 2, start, travel)
    return Scene((item,), colours[1])


@lru_cache(maxsize=256)
def _target(caption: str, frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The clip `(T, 3, H, W)` in 0..1, and where the object is, `(T, 1, H, W)`."""
    scene, times = described_scene(caption), frame_times(frames)
    bare = Scene((replace(scene.items[0], colour="white"),), "black")
    inside = render(bare, times, height, width).mean(1, keepdim=True) > 0
    return render(scene, times, height, width) / 2 + 0.5, inside.float()


def likeness(videos: Tensor, prompts: list[str]) -> Tensor:
    """Clips `(B, T, 3, H, W)` in 0..1 and their captions to `(B,)`: 1 minus the mean distance to the described scene,
    of which object and background count half each.
    """
    scores = []
    for video, prompt in zip(videos, prompts):
        target, inside = (part.to(video) for part in _target(prompt, video.shape[0], *video.shape[-2:]))
        distance = (video - target).abs().mean(1, keepdim=True)
        parts = [(distance * mask).sum() / mask.sum() for mask in (inside, 1 - inside)]
        scores.append(1 - sum(parts) / 2)
    return torch.stack(scores)
