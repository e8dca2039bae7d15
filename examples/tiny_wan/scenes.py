"""Seeded synthetic scenes: one or two coloured shapes moving over a shaded or striped background, with captions.

Everything is defined in relative coordinates (the frame is the unit square, the clip lasts one unit of time),
so every resolution and frame count shows the same world.
"""

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
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
HELD_OUT_SHARE = 4
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
        """Start x and y, drift in x and y, height of a hop, radius at first, its growth, and the turn in radians."""
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

    def caption(self, wording: int = 0) -> str:
        """The caption in one of three wordings."""
        wording %= 3
        article = "" if wording == 2 else "a "
        parts = [f"{article}{item.name()} {MOTIONS[item.motion][min(wording, 1)]}" for item in self.items]
        ground = " ".join(w for w in (self.texture if self.texture != "plain" else "", self.background) if w)
        link = (" over a ", " on a ", ", ")[wording]
        pan = f", camera pans {self.pan}" if self.pan else ""
        return f"{' and '.join(parts)}{link}{ground} background{pan}"


def combinations(held_out: bool) -> Iterator[tuple[str, str, str, str]]:
    """Every (shape, colour, motion, background) of one side of the split, in a fixed order."""
    for combination in itertools.product(SHAPES, COLOURS, MOTIONS, COLOURS):
        shape, colour, motion, background = combination
        if colour != background and (shape, motion) != ("circle", "spin"):
            if (zlib.crc32(" ".join(combination).encode()) % HELD_OUT_SHARE == 0) == held_out:
                yield combination


_POOLS = {held_out: tuple(combinations(held_out)) for held_out in (False, True)}


def combination_odds(often: Mapping[str, float], held_out: bool = False) -> np.ndarray:
    """Odds of each of `combinations`, the words in `often` so many times as often as the others of their kind.

    >>> odds = combination_odds({"spin": 3.0})
    >>> float(odds.sum())
    1.0
    """
    unknown = sorted(set(often) - {*SHAPES, *MOTIONS})
    if unknown:
        raise ValueError(f"{unknown} are no shapes or motions: {', '.join((*SHAPES, *MOTIONS))}")
    odds = np.array([often.get(shape, 1.0) * often.get(motion, 1.0) for shape, _, motion, _ in _POOLS[held_out]])
    return odds / odds.sum()


def _reaches(shape: str, motion: str, radius: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """How far an object may extend left and right, then up and down of its centre of mass."""
    if motion == "grow":
        radius *= GROWTH[1]
    left_right, up_down = {
        "circle": ((1.0, 1.0), (1.0, 1.0)),
        "square": ((0.89, 0.89), (0.89, 0.89)),
        "triangle": ((1.28, 1.28), (1.48, 0.74)),
    }[shape]
    if motion == "spin":
        left_right = up_down = (1.48, 1.48)
    margin = 0.02
    return tuple((margin + radius * low, margin + radius * high) for low, high in (left_right, up_down))


def _draw_item(rng: np.random.Generator, attributes: tuple[str, str, str, str], alone: bool, pan: str) -> Item:
    shape, colour, motion, _ = attributes
    sizes = list(SIZES) if alone else ["small", ""]
    size = sizes[rng.integers(len(sizes))]
    radius = rng.uniform(*SIZES[size])
    travel = rng.uniform(0.25, 0.32) if motion == "bounce" else rng.uniform(0.36, 0.44)
    if motion == "grow":
        radius = min(radius, 0.18)
    reaches = _reaches(shape, motion, radius)
    spread = 0.08 if alone else 1.0
    start = []
    for axis, (before, after) in enumerate(reaches):
        # From where to where the centre goes on this axis, as seen from its start.
        moves = [0.0, DIRECTIONS.get(motion, (0.0, 0.0))[axis] * travel]
        if axis == 0:
            moves[1] -= PANS[pan] * PAN_TRAVEL
        if axis == 1 and motion == "bounce":
            moves[1] = -travel
        low, high = before - min(moves), 1 - after - max(moves)
        middle, half = (low + high) / 2, max((high - low) / 2, 0.0)
        start.append(middle + rng.uniform(-1, 1) * half * (1.0 if any(moves) else spread))
    return Item(shape, colour, motion, size, radius, (start[0], start[1]), travel)


_MOMENTS = np.linspace(0, 1, 17, dtype=np.float32)
_HOPS = np.abs(np.sin(HOPS * math.pi * _MOMENTS))


def _apart(items: list[Item], pan: str) -> bool:
    """Whether two objects overlap for less than a quarter of the clip, and do so at all only in passing."""
    one, two = (item.course(pan) for item in items)
    x, y, dx, dy, hop = (a - b for a, b in zip(one[:5], two[:5], strict=True))
    reach = 0.9 * (one[5] + two[5]) + 0.9 * (one[6] + two[6]) * _MOMENTS
    gap = np.hypot(x + dx * _MOMENTS, y + dy * _MOMENTS - hop * _HOPS) - reach
    return bool((gap < 0).mean() < 0.25 and gap[0] > 0)


def sample_scene(
    rng: np.random.Generator,
    attributes: tuple[str, str, str, str] | None = None,
    objects: int | None = None,
    held_out: bool = False,
    odds: np.ndarray | None = None,
) -> Scene:
    """Draw a scene.

    `attributes` fixes the first object and the background, the default draws a combination of this side of the
    split, with the `odds` of `combination_odds`; `objects` fixes their number, the default draws two in every third
    scene.
    """
    pool = _POOLS[held_out]
    first = attributes or pool[rng.integers(len(pool)) if odds is None else rng.choice(len(pool), p=odds)]
    background = first[3]
    count = objects or (2 if rng.random() < 0.33 else 1)
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    may_pan = texture == "striped" and first[2] not in ("left", "right")
    pan = ("left", "right")[rng.integers(2)] if may_pan and rng.random() < 0.3 else ""
    wanted = [first]
    while len(wanted) < count:
        other = pool[rng.integers(len(pool))]
        if other[3] == background and other[1] != first[1] and not (pan and other[2] in ("left", "right")):
            wanted.append(other)
    for _ in range(40):
        items = [_draw_item(rng, each, count == 1, pan) for each in wanted]
        if count == 1 or _apart(items, pan):
            break
    return Scene(tuple(items), background, texture, pan, *_draw_ground(rng, texture))


def _draw_ground(
    rng: np.random.Generator, texture: str
) -> tuple[tuple[float, float], tuple[float, float, float, float]]:
    tilt = rng.uniform(0.3, 0.45) if texture == "shaded" else rng.uniform(0, 0.1)
    angle, turn = rng.uniform(0, 2 * math.pi), rng.uniform(0, math.pi)
    amplitude = rng.uniform(0.2, 0.3) if texture == "striped" else 0.0
    cycles = rng.uniform(2.5, 4.0)
    wave = (amplitude, cycles * math.cos(turn), cycles * math.sin(turn), rng.uniform(0, 1))
    return (tilt * math.cos(angle), tilt * math.sin(angle)), wave


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
