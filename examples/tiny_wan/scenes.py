"""Synthetic scenes: one or two coloured shapes moving over a shaded or striped background, with captions.

Everything is defined in relative coordinates (the frame is the unit square, the clip lasts one unit of time),
so every resolution and frame count shows the same world.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.8, -0.8, -0.8),
    "green": (-0.8, 0.5, -0.8),
    "blue": (-0.8, -0.6, 0.8),
    "yellow": (0.8, 0.7, -0.8),
    "white": (0.85, 0.85, 0.85),
    "black": (-0.85, -0.85, -0.85),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
# What the captions say of each motion, as a verb and as a participle.
MOTIONS: dict[str, tuple[str, str]] = {
    **{name: (f"moves {name}", f"moving {name}") for name in DIRECTIONS},
    "still": ("stays still", "standing still"),
    "bounce": ("bounces", "bouncing"),
    "spin": ("spins", "spinning"),
    "grow": ("grows", "growing"),
}
TEXTURES = ("plain", "shaded", "striped")
SIZES: dict[str, tuple[float, float]] = {"small": (0.11, 0.13), "": (0.15, 0.18), "large": (0.20, 0.22)}
PANS: dict[str, float] = {"": 0.0, "left": -1.0, "right": 1.0}
PAN_TRAVEL = 0.3
HOPS, SPIN = 2, math.pi / 2
GROWTH = (0.6, 1.4)
WORDS = (
    *("a", "over", "on", "the", ",", ".", "background", "and", "camera", "pans"),
    *(word for verbs in MOTIONS.values() for phrase in verbs for word in phrase.split() if word not in DIRECTIONS),
    *COLOURS,
    *SHAPES,
    *DIRECTIONS,
    *("small", "large", "shaded", "striped"),
)
WORDS = tuple(dict.fromkeys(WORDS))


@dataclass(frozen=True)
class Item:
    """One object; lengths are fractions of the frame side, y points down, `start` is its centre at time 0."""

    shape: str
    colour: str
    motion: str
    size: str = ""
    radius: float = 0.17
    start: tuple[float, float] = (0.5, 0.5)
    travel: float = 0.4

    def name(self) -> str:
        """Its noun phrase without an article."""
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)

    def course(self, pan: str = "") -> tuple[float, ...]:
        """Start x and y, drift in x and y, height of a hop, radius at first, its growth, turn in radians."""
        dx, dy = DIRECTIONS.get(self.motion, (0.0, 0.0))
        low, high = GROWTH if self.motion == "grow" else (1.0, 1.0)
        drift = dx * self.travel - PANS[pan] * PAN_TRAVEL, dy * self.travel
        hop, turn = self.travel * (self.motion == "bounce"), SPIN * (self.motion == "spin")
        return *self.start, *drift, hop, low * self.radius, (high - low) * self.radius, turn


@dataclass(frozen=True)
class Scene:
    """One clip, described. `wave` is the stripes' amplitude, cycles in x and y, and phase."""

    items: tuple[Item, ...]
    background: str
    texture: str = "plain"
    pan: str = ""
    gradient: tuple[float, float] = (0.0, 0.0)
    wave: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def phrases(self, wording: int = 0) -> list[str]:
        """What the caption says of each object."""
        wording %= 3
        article = "" if wording == 2 else "a "
        return [f"{article}{item.name()} {MOTIONS[item.motion][min(wording, 1)]}" for item in self.items]

    def caption(self, wording: int = 0) -> str:
        """The caption in one of three wordings."""
        ground = " ".join(w for w in (self.texture if self.texture != "plain" else "", self.background) if w)
        link = (" over a ", " on a ", ", ")[wording % 3]
        pan = f", camera pans {self.pan}" if self.pan else ""
        return f"{' and '.join(self.phrases(wording))}{link}{ground} background{pan}"


def outline_distance(shape: str, dx: Tensor, dy: Tensor, radius: Tensor | float) -> Tensor:
    """Signed distance to the outline, negative inside, of shapes of about equal area around their centre of mass."""
    if shape == "circle":
        return (dx.square() + dy.square()).sqrt() - radius
    if shape == "square":
        return torch.maximum(dx.abs(), dy.abs()) - 0.89 * radius
    return torch.maximum(dy, (3**0.5 * dx.abs() - dy) / 2) - 0.74 * radius


def frame_times(frames: int) -> Tensor:
    """(frames,) equal steps from 0 to 1."""
    return torch.linspace(0, 1, frames)
