"""Scenes as rows of numbers, rendered many at a time on any device."""

import math

import torch
from torch import Tensor

from examples.tiny_wan.latents import analytic_latents
from examples.tiny_wan.scenes import COLOURS, HOPS, PAN_TRAVEL, PANS, SHAPES, Scene, outline_distance

GROUND = 10  # numbers: colour (3), gradient (2), wave (4), pan (1)
OBJECT = 12  # of each of two objects: shape (1), colour (3), `Item.course` (8)
ABSENT = (0.0, 0.0, 0.0, 0.0, -9.0, *(0.0,) * 7)  # far outside
NEAR = 1.5  # how far around its centre an object is near, in its radii
AT_ONCE = 8  # scenes of a batch that are rendered together


def scene_rows(scenes: list[Scene]) -> Tensor:
    """(B, 34) float32: one row of numbers for each scene of up to two objects."""
    rows = []
    for scene in scenes:
        row = [*COLOURS[scene.background], *scene.gradient, *scene.wave, PANS[scene.pan] * PAN_TRAVEL]
        for item in (*scene.items, None, None)[:2]:
            row += (SHAPES.index(item.shape), *COLOURS[item.colour], *item.course(scene.pan)) if item else ABSENT
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32).view(-1, GROUND + 2 * OBJECT)


def _centres(extent: int, device: torch.device) -> Tensor:
    return (torch.arange(extent, device=device) + 0.5) / extent


def _ground(rows: Tensor, times: Tensor, height: int, width: int) -> Tensor:
    """(B, T, 3, H, W): the colours, shaded."""
    columns = rows.view(-1, rows.shape[1], 1, 1, 1).unbind(1)
    tilt_x, tilt_y, amplitude, fx, fy, phase, pan = columns[3:GROUND]
    x, y = _centres(width, times.device), _centres(height, times.device).view(-1, 1)
    # The sine of a sum of what depends on the column and on the row alone: no sine of single pixels.
    across = 2 * math.pi * (fx * (x + pan * times.view(-1, 1, 1)) + phase)
    down = 2 * math.pi * fy * y
    shade = tilt_x * (2 * x - 1) + tilt_y * (2 * y - 1)
    shade = shade + amplitude * across.sin() * down.cos() + amplitude * across.cos() * down.sin()
    return (torch.stack(columns[:3], 2) + shade.unsqueeze(2)).clamp(-1, 1)


def _cover(item: Tensor, times: Tensor, height: int, width: int, shapes: tuple = SHAPES, scale: float = 1.0) -> Tensor:
    """(B, T, H, W): how much of each pixel objects (B, 12) of `shapes` cover, of `scale` times their radius."""
    shape, _, _, _, x, y, dx, dy, hop, radius, growth, turn = item.view(-1, OBJECT, 1, 1, 1).unbind(1)
    time = times.view(-1, 1, 1)
    right = _centres(width, times.device) - (x + dx * time)
    below = _centres(height, times.device).view(-1, 1) - (y + dy * time - hop * (HOPS * math.pi * time).sin().abs())
    radius, cos, sin = scale * (radius + growth * time), (turn * time).cos(), (turn * time).sin()
    arms = right * cos + below * sin, below * cos - right * sin
    distance = outline_distance(shapes[0], *arms, radius)
    for index, name in enumerate(shapes[1:], 1):
        distance = torch.where(shape == index, outline_distance(name, *arms, radius), distance)
    return (0.5 - min(height, width) * distance).clamp(0, 1)


def render_rows(rows: Tensor, times: Tensor, height: int, width: int) -> Tensor:
    """Scenes (B, 34) at `times` (T,): (B, T, 3, H, W) float32 in [-1, 1], anti-aliased, on the device of `times`."""
    ground, *items = rows.to(times.device).split([GROUND, OBJECT, OBJECT], 1)
    clips = _ground(ground, times, height, width)
    for item in items:
        colour = item[:, 1:4].reshape(-1, 1, 3, 1, 1)
        clips = torch.lerp(clips, colour, _cover(item, times, height, width).unsqueeze(2))
    return clips


def render(scene: Scene, times: Tensor, height: int, width: int) -> Tensor:
    """One scene at `times` (T,) in [0, 1]: (T, 3, height, width)."""
    return render_rows(scene_rows([scene]), times, height, width)[0]


def nearness_rows(rows: Tensor, times: Tensor, height: int, width: int) -> Tensor:
    """(B, T, height, width): 1 around the objects, whatever their shape, 0 elsewhere."""
    items = rows.to(times.device)[:, GROUND:].split(OBJECT, 1)
    return torch.stack([_cover(item, times, height, width, ("circle",), NEAR) for item in items]).amax(0)


def latents_of_rows(rows: Tensor, times: Tensor, height: int, width: int) -> Tensor:
    """Unnormalised latents (B, 6, n, H/4, W/4) of rendered scenes."""
    return torch.cat([analytic_latents(render_rows(part, times, height, width)) for part in rows.split(AT_ONCE)])
