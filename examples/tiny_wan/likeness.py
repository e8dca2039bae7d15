"""How much a clip looks like the scene its caption describes: smooth, so that a search can follow its gradient."""

import re
from functools import lru_cache

import torch
from torch import Tensor

from examples.tiny_wan.scenes import COLOURS, MOTIONS, SHAPES, Scene, frame_times, render

RADIUS, TRAVEL = 0.18, 0.4  # the middle of what training shows


def described_scene(caption: str) -> Scene:
    """The typical scene of a caption, without shading."""
    words = re.findall("[a-z]+", caption.lower())
    colours = [word for word in words if word in COLOURS]
    shapes, motions = ([word for word in words if word in known] for known in (SHAPES, MOTIONS))
    if (len(colours), len(shapes), len(motions)) != (2, 1, 1):
        raise ValueError(f"not the caption of a scene: {caption!r}")
    start = tuple(0.5 - direction * TRAVEL / 2 for direction in MOTIONS[motions[0]])
    return Scene(colours[0], shapes[0], motions[0], colours[1], RADIUS, start, TRAVEL)


@lru_cache(maxsize=256)
def _target(caption: str, frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The clip `(T, 3, H, W)` in 0..1, and where the object is, `(T, 1, H, W)`."""
    scene, times = described_scene(caption), frame_times(frames)
    bare = Scene("white", scene.shape, scene.motion, "black", scene.radius, scene.start, scene.travel)
    cover = render(bare, times, height, width).mean(1, keepdim=True)
    return render(scene, times, height, width) / 2 + 0.5, (cover > 0).float()


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
