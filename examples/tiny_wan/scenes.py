"""Synthetic scenes: one or two coloured shapes moving over a shaded or striped background, with captions.

Everything is defined in relative coordinates (the frame is the unit square, the clip lasts one unit of time),
so every resolution and frame count shows the same world.
"""

import math
from dataclasses import dataclass, replace

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

    def at(self, time: Tensor, pan: str = "") -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centre x and y, radius and angle at `time`, each of its shape."""
        x, y, dx, dy, hop, radius, growth, turn = self.course(pan)
        hops = hop * torch.sin(HOPS * math.pi * time).abs()
        return x + dx * time, y + dy * time - hops, radius + growth * time, turn * time


@dataclass(frozen=True)
class Scene:
    """One clip, described. `wave` is the stripes' amplitude, cycles in x and y, and phase."""

    items: tuple[Item, ...]
    background: str
    texture: str = "plain"
    pan: str = ""
    gradient: tuple[float, float] = (0.0, 0.0)
    wave: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    @property
    def attributes(self) -> tuple[str, str, str, str]:
        """(shape, colour, motion, background) of the first object."""
        return self.items[0].shape, self.items[0].colour, self.items[0].motion, self.background

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


def _ground(scene: Scene, x: Tensor, y: Tensor, time: Tensor) -> Tensor:
    """(T | 1, 3, H, W): the named colour, shaded by a linear gradient and a plane wave that a pan shifts."""
    amplitude, fx, fy, phase = scene.wave
    shade = scene.gradient[0] * (2 * x - 1) + scene.gradient[1] * (2 * y - 1)
    seen = x + PANS[scene.pan] * PAN_TRAVEL * time if scene.pan else x
    shade = shade + amplitude * torch.sin(2 * math.pi * (fx * seen + fy * y + phase))
    return (torch.tensor(COLOURS[scene.background]).view(3, 1, 1) + shade.unsqueeze(1)).clamp(-1, 1)


def frame_times(frames: int) -> Tensor:
    """(frames,) equal steps from 0 to 1."""
    return torch.linspace(0, 1, frames)


def cover(item: Item, time: Tensor, x: Tensor, y: Tensor, side: int, pan: str = "") -> Tensor:
    """(T, H, W): how much of each pixel the object covers, 0 to 1."""
    cx, cy, radius, angle = item.at(time, pan)
    dx, dy = x - cx, y - cy
    turned = (dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin())
    return (0.5 - side * outline_distance(item.shape, *turned, radius)).clamp(0, 1)


def nearness(scene: Scene, times: Tensor, height: int, width: int) -> Tensor:
    """(T, height, width): 1 around the objects, whatever their shape, 0 elsewhere."""
    x = ((torch.arange(width) + 0.5) / width).view(1, 1, -1)
    y = ((torch.arange(height) + 0.5) / height).view(1, -1, 1)
    time = times.view(-1, 1, 1)
    discs = (replace(item, shape="circle", radius=1.5 * item.radius) for item in scene.items)
    return torch.stack([cover(disc, time, x, y, min(height, width), scene.pan) for disc in discs]).amax(0)


def render(scene: Scene, times: Tensor, height: int, width: int) -> Tensor:
    """The scene at `times` (T,) in [0, 1]: (T, 3, height, width) float32 in [-1, 1], anti-aliased."""
    x = ((torch.arange(width) + 0.5) / width).view(1, 1, -1)
    y = ((torch.arange(height) + 0.5) / height).view(1, -1, 1)
    time = times.view(-1, 1, 1)
    clip = _ground(scene, x, y, time).expand(len(times), -1, -1, -1)
    for item in scene.items:
        colour = torch.tensor(COLOURS[item.colour]).view(3, 1, 1)
        clip = torch.lerp(clip, colour, cover(item, time, x, y, min(height, width), scene.pan).unsqueeze(1))
    return clip
