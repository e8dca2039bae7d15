"""Seeded synthetic scenes: one coloured shape moving over a shaded background, with its caption.

Everything is defined in relative coordinates (the frame is the unit square, the clip lasts one unit of time),
so every resolution and frame count shows the same world.
"""

import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.8, -0.8, -0.8),
    "green": (-0.8, 0.5, -0.8),
    "blue": (-0.8, -0.6, 0.8),
    "yellow": (0.8, 0.7, -0.8),
    "white": (0.85, 0.85, 0.85),
    "black": (-0.85, -0.85, -0.85),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "still": (0.0, 0.0),
}
MOVING = (
    "a {colour} {shape} moves {motion} over a {background} background",
    "a {colour} {shape} moving {motion} on a {background} background",
    "{colour} {shape} moving {motion}, {background} background",
)
RESTING = (
    "a {colour} {shape} stays still over a {background} background",
    "a {colour} {shape} standing still on a {background} background",
    "{colour} {shape} standing still, {background} background",
)
WORDS = (
    *("a", "over", "on", "the", ",", ".", "background", "moves", "moving", "stays", "standing"),
    *COLOURS,
    *SHAPES,
    *MOTIONS,
)
HELD_OUT_SHARE = 4


@dataclass(frozen=True)
class Scene:
    """One clip, described; lengths are fractions of the frame side, y points down."""

    colour: str
    shape: str
    motion: str
    background: str
    radius: float = 0.19
    start: tuple[float, float] = (0.5, 0.5)
    travel: float = 0.4
    gradient: tuple[float, float] = (0.0, 0.0)
    wave: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    @property
    def attributes(self) -> tuple[str, str, str, str]:
        """(shape, colour, motion, background)."""
        return self.shape, self.colour, self.motion, self.background

    def caption(self, wording: int = 0) -> str:
        """The caption in one of three wordings."""
        templates = RESTING if self.motion == "still" else MOVING
        words = {"colour": self.colour, "shape": self.shape, "motion": self.motion, "background": self.background}
        return templates[wording % len(templates)].format(**words)


def combinations(held_out: bool) -> Iterator[tuple[str, str, str, str]]:
    """Every (shape, colour, motion, background) of one side of the split, in a fixed order."""
    for combination in itertools.product(SHAPES, COLOURS, MOTIONS, COLOURS):
        if combination[1] != combination[3]:
            if (zlib.crc32(" ".join(combination).encode()) % HELD_OUT_SHARE == 0) == held_out:
                yield combination


_TRAIN = tuple(combinations(held_out=False))


def sample_scene(rng: np.random.Generator, attributes: tuple[str, str, str, str] | None = None) -> Scene:
    """Draw a scene; `attributes` fixes what the caption says, the default draws a training combination."""
    shape, colour, motion, background = attributes or _TRAIN[rng.integers(len(_TRAIN))]
    radius, travel = rng.uniform(0.16, 0.20), rng.uniform(0.36, 0.44)
    start = [rng.uniform(0.44, 0.56), rng.uniform(0.44, 0.56)]
    for axis, direction in enumerate(MOTIONS[motion]):
        if direction:
            slack = (1 - travel) / 2 - radius - 0.02
            start[axis] = 0.5 - direction * travel / 2 + rng.uniform(-1, 1) * max(slack, 0.0)
    tilt, angle = rng.uniform(0, 0.2), rng.uniform(0, 2 * math.pi)
    gradient = (tilt * math.cos(angle), tilt * math.sin(angle))
    turn = rng.uniform(0, math.pi)
    cycles = rng.uniform(1.0, 3.0)
    wave = (rng.uniform(0, 0.06), cycles * math.cos(turn), cycles * math.sin(turn), rng.uniform(0, 1))
    return Scene(colour, shape, motion, background, radius, (start[0], start[1]), travel, gradient, wave)


def outline_distance(shape: str, dx: torch.Tensor, dy: torch.Tensor, radius: float) -> torch.Tensor:
    """Signed distance to the outline, negative inside, of shapes of about equal area."""
    if shape == "circle":
        return (dx.square() + dy.square()).sqrt() - radius
    if shape == "square":
        return torch.maximum(dx.abs(), dy.abs()) - 0.89 * radius
    inner = 0.74 * radius
    dy = dy - 0.5 * inner
    return torch.maximum(dy, (3**0.5 * dx.abs() - dy) / 2) - inner


def _background(scene: Scene, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(3, H, W): the named colour, shaded by a linear gradient and a faint plane wave."""
    amplitude, fx, fy, phase = scene.wave
    shade = scene.gradient[0] * (2 * x - 1) + scene.gradient[1] * (2 * y - 1)
    shade = shade + amplitude * torch.sin(2 * math.pi * (fx * x + fy * y + phase))
    return (torch.tensor(COLOURS[scene.background]).view(3, 1, 1) + shade).clamp(-1, 1)


def frame_times(frames: int) -> torch.Tensor:
    """(frames,) equal steps from 0 to 1."""
    return torch.linspace(0, 1, frames)


def render(scene: Scene, times: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The scene at `times` (T,) in [0, 1]: (T, 3, height, width) float32 in [-1, 1], anti-aliased."""
    x = ((torch.arange(width) + 0.5) / width).view(1, 1, -1)
    y = ((torch.arange(height) + 0.5) / height).view(1, -1, 1)
    time = times.view(-1, 1, 1)
    dx = x - (scene.start[0] + MOTIONS[scene.motion][0] * scene.travel * time)
    dy = y - (scene.start[1] + MOTIONS[scene.motion][1] * scene.travel * time)
    cover = (0.5 - min(height, width) * outline_distance(scene.shape, dx, dy, scene.radius)).clamp(0, 1)
    background = _background(scene, x[0], y[0])
    return torch.lerp(background, torch.tensor(COLOURS[scene.colour]).view(3, 1, 1), cover.unsqueeze(1))
