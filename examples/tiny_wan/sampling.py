"""Seeded scenes: which combinations training sees, and where everything in a scene is."""

import itertools
import math
import zlib
from collections.abc import Iterator

import numpy as np

from examples.tiny_wan import scenes
from examples.tiny_wan.scenes import COLOURS, DIRECTIONS, HOPS, MOTIONS, PAN_TRAVEL, PANS, SHAPES, SIZES, Item, Scene

HELD_OUT_SHARE = 4


def combinations(held_out: bool) -> Iterator[tuple[str, str, str, str]]:
    """Every (shape, colour, motion, background) of one side of the split, in a fixed order."""
    for combination in itertools.product(SHAPES, COLOURS, MOTIONS, COLOURS):
        shape, colour, motion, background = combination
        if colour != background and (shape, motion) != ("circle", "spin"):
            if (zlib.crc32(" ".join(combination).encode()) % HELD_OUT_SHARE == 0) == held_out:
                yield combination


_POOLS = {held_out: tuple(combinations(held_out)) for held_out in (False, True)}


def _reaches(shape: str, motion: str, radius: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """How far an object may extend left and right, then up and down of its centre of mass."""
    if motion == "grow":
        radius *= scenes.GROWTH[1]
    left_right, up_down = {
        "circle": ((1.0, 1.0), (1.0, 1.0)),
        "square": ((0.89, 0.89), (0.89, 0.89)),
        "triangle": ((1.28, 1.28), (1.48, 0.74)),
    }[shape]
    if motion == "spin":
        left_right = up_down = (1.48, 1.48)
    margin = 0.02
    return tuple((margin + radius * low, margin + radius * high) for low, high in (left_right, up_down))


def _draw_item(
    rng: np.random.Generator, attributes: tuple[str, str, str, str], alone: bool, pan: str, column: float
) -> Item:
    """`column` is where from left to right, 0 to 1, one of two objects is in the middle of its course."""
    shape, colour, motion, _ = attributes
    sizes = list(SIZES) if alone else ["small", ""]
    size = sizes[rng.integers(len(sizes))]
    radius = rng.uniform(*SIZES[size])
    travel = rng.uniform(0.25, 0.32) if motion == "bounce" else rng.uniform(0.36, 0.44)
    if motion == "grow":
        radius = min(radius, 0.18)
    reaches = _reaches(shape, motion, radius)
    start = []
    for axis, (before, after) in enumerate(reaches):
        # From where to where the centre goes on this axis, as seen from its start.
        moves = [0.0, DIRECTIONS.get(motion, (0.0, 0.0))[axis] * travel]
        if axis == 0:
            moves[1] -= PANS[pan] * PAN_TRAVEL
        if axis == 1 and motion == "bounce":
            moves[1] = -travel
        low, high = before - min(moves), 1 - after - max(moves)
        middle, half, shift = (low + high) / 2, max((high - low) / 2, 0.0), rng.uniform(-1, 1)
        if alone:
            start.append(middle + shift * half * (1.0 if any(moves) else 0.08))
        else:
            goal = (column if axis == 0 else 0.5) + 0.15 * shift - sum(moves) / 2
            start.append(float(np.clip(goal, middle - half, middle + half)))
    return Item(shape, colour, motion, size, radius, (start[0], start[1]), travel)


# Of two objects the one named first is on the left. Were either anywhere, nothing would tell noise where to put which.
COLUMNS = (0.3, 0.7)
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
) -> Scene:
    """Draw a scene.

    `attributes` fixes the first object and the background, the default draws a combination of this side of the
    split; `objects` fixes their number, the default draws two in every other scene.
    """
    pool = _POOLS[held_out]
    first = attributes or pool[rng.integers(len(pool))]
    background = first[3]
    count = objects or (2 if rng.random() < 0.5 else 1)
    texture = scenes.TEXTURES[rng.integers(len(scenes.TEXTURES))]
    may_pan = texture == "striped" and first[2] not in ("left", "right")
    pan = ("left", "right")[rng.integers(2)] if may_pan and rng.random() < 0.3 else ""
    wanted = [first]
    while len(wanted) < count:
        other = pool[rng.integers(len(pool))]
        if other[3] == background and other[1] != first[1] and not (pan and other[2] in ("left", "right")):
            wanted.append(other)
    for _ in range(40):
        items = [_draw_item(rng, each, count == 1, pan, column) for each, column in zip(wanted, COLUMNS, strict=False)]
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
